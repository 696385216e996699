"""Asymmetric Non-local Neural Networks for semantic segmentation (ICCV 2019) in JAX.

seg = ann_jax.load('runs/camvid')
result = seg('street.jpg')
result.overlay('street.png')
"""

import importlib

__version__ = '0.1.0'

# Name -> the module that defines it. docs/api.md says what each is, and what is promised.
_PUBLIC = {
    # Networks
    'ANN': 'models.ann',
    'ResNet': 'models.resnet',
    'APNB': 'models.blocks',
    'AFNB': 'models.blocks',
    'NB': 'models.blocks',
    'FNB': 'models.blocks',
    'FeatureMap': 'models.feature_map',
    'initial_variables': 'models.initializers',
    'fold': 'models.fold',
    # Functions on arrays
    'sample_anchors': 'kernels.anchors',
    'segmentation_loss': 'training.losses',
    'ohem_cross_entropy': 'training.losses',
    'cross_entropy': 'training.losses',
    'confusion_matrix': 'evaluation.metrics',
    'scores': 'evaluation.metrics',
    'sliding_window': 'inference.functions',
    'multi_scale': 'inference.functions',
    'normalizer': 'weights.inputs',
    'IGNORE': 'typing',
    # A loop of one's own
    'make_mesh': 'parallel.mesh',
    'create_state': 'training.state',
    'make_step': 'training.step',
    'make_eval': 'evaluation.evaluate',
    'poly_schedule': 'training.optimizers',
    'sgd': 'training.optimizers',
    'Augment': 'data.transforms',
    'FolderSource': 'data.datasets',
    'SceneSource': 'data.scenes',
    'train_batches': 'data.pipeline',
    'eval_batches': 'data.pipeline',
    # Whole runs
    'defaults': 'config',
    'train': 'modes.train',
    'evaluate': 'modes.evaluate',
    # Trained networks
    'load': 'inference.segmenter',
    'Segmenter': 'inference.segmenter',
    'Result': 'inference.segmenter',
    # Errors
    'ConfigError': 'errors',
    'DataError': 'errors',
    'SaveError': 'errors',
}
__all__ = list(_PUBLIC)


def __getattr__(name):
    # Late: who imports a part of the package, such as a worker process that reads images, needs no network.
    if name in _PUBLIC:
        return getattr(importlib.import_module(f'ann_jax.{_PUBLIC[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
    return sorted([*globals(), *__all__])
