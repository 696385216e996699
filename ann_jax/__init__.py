"""Asymmetric Non-local Neural Networks for semantic segmentation (ICCV 2019) in JAX.

seg = ann_jax.load('runs/camvid')
result = seg('street.jpg')
result.overlay('street.png')
"""

__version__ = '0.1.0'


def __getattr__(name):
    # Late: who imports a part of the package, such as a worker process that reads images, needs no network.
    if name == 'load':
        from ann_jax.inference.segmenter import load

        return load
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
