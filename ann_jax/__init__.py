"""Asymmetric Non-local Neural Networks for semantic segmentation (ICCV 2019) in JAX.

seg = ann_jax.load('runs/camvid')
result = seg('street.jpg')
result.overlay('street.png')
"""

import importlib

__version__ = '0.1.0'

# Name -> the module that defines it.
_PUBLIC = {
    'ANN': 'models.ann',
    'ResNet': 'models.resnet',
    'Segmenter': 'inference.segmenter',
    'evaluate': 'modes.evaluate',
    'load': 'inference.segmenter',
    'train': 'modes.train',
}
__all__ = list(_PUBLIC)


def __getattr__(name):
    # Late: who imports a part of the package, such as a worker process that reads images, needs no network.
    if name in _PUBLIC:
        return getattr(importlib.import_module(f'ann_jax.{_PUBLIC[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
    return sorted([*globals(), *__all__])
