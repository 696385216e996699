"""Asymmetric Non-local Neural Networks for semantic segmentation (ICCV 2019) in JAX.

seg = ann_jax.load('runs/camvid')
result = seg('street.jpg')
result.overlay('street.png')
"""

import importlib

__version__ = '0.2.0'

# Name -> the module that defines it. docs/api.md says what each is for, and what is stable.
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
    'segmentation_loss': 'training.losses',
    'ohem_cross_entropy': 'training.pixel_losses',
    'cross_entropy': 'training.pixel_losses',
    'sample_anchors': 'kernels.anchors',
    'confusion_matrix': 'evaluation.metrics',
    'scores': 'evaluation.metrics',
    'normalizer': 'weights.inputs',
    'IGNORE': 'typing',
    # Inference protocols
    'sliding_window': 'inference.functions',
    'multi_scale': 'inference.functions',
    # Data
    'Dataset': 'data.layout',
    'FolderSource': 'data.datasets',
    'Reading': 'data.decode.levels',
    'SceneSource': 'data.scenes',
    'Augment': 'data.augment.transforms',
    'Mix': 'data.augment.mixing',
    'train_batches': 'data.pipeline',
    'eval_batches': 'data.pipeline',
    # Your own loop
    'make_mesh': 'parallel.mesh',
    'create_state': 'training.state',
    'make_step': 'training.step',
    'make_eval': 'evaluation.evaluate',
    'sgd': 'training.optimizers',
    'poly_schedule': 'training.schedules',
    # The whole run
    'load_config': 'command',
    'defaults': 'config',
    'train': 'modes.train',
    'evaluate': 'modes.evaluate',
    # Trained networks
    'load': 'inference.segmenter',
    'Segmenter': 'inference.segmenter',
    'Result': 'inference.results',
    'BlockAttention': 'inference.attention',
    'convert': 'weights.converter',
    'Weights': 'weights.folder',
    # Protocols that your own parts follow
    'Backbone': 'typing',
    'Source': 'typing',
    'Writer': 'typing',
    # Errors
    'ConfigError': 'errors',
    'DataError': 'errors',
    'SaveError': 'errors',
}
__all__ = list(_PUBLIC)


def __getattr__(name):
    # Lazy: a worker process that only reads images should not import the network.
    if name in _PUBLIC:
        return getattr(importlib.import_module(f'ann_jax.{_PUBLIC[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
    return sorted([*globals(), *__all__])
