"""Test protocols of the paper for any function from images to logits.

    predict = lambda images: model.apply(variables, normalize(images), full_size=True).main
    windows = sliding_window(predict, (864, 864), (576, 576))
    test_of_the_paper = multi_scale(windows, (0.75, 1, 1.25), flip=True)

They may be called inside `jax.jit`. `protocols` has them for batches of several sizes and for a mesh.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from ann_jax.data.canvases import Canvases
from ann_jax.errors import ConfigError
from ann_jax.inference import protocols
from ann_jax.inference.protocols import Canvas, check_protocol
from ann_jax.kernels import Array

# Images, uint8 or float32, -> logits
Predict = Callable[[Num[Array, 'B H W 3']], Float[jax.Array, 'B H W K']]


def sliding_window(predict: Predict, crop: Sequence[int], stride: Sequence[int]) -> Predict:
    """Averages a function's logits over overlapping windows (Sec. 4.2).

    A window starts every `stride` pixels; the last ones end at the far edges, so every pixel is covered.

    Args:
        predict: returns logits of the size of the window.
        crop: height and width of the windows; a smaller image is a single window of its own size.
        stride: distance between windows, at most `crop`.

    Raises:
        ConfigError: crop or stride cannot be used; raised by the result, logits do not have the size of the
            window.
    """
    crop, stride = tuple(crop), tuple(stride)
    check_protocol(crop=crop, stride=stride)

    def logits(images: Num[Array, 'B H W 3']) -> Float[jax.Array, 'B H W K']:
        images = _batch(images)
        fitting = tuple(map(min, crop, images.shape[1:3]))
        return _apply(protocols.sliding_window(_checked(predict), fitting, stride, None), images)

    return logits


def multi_scale(
    predict: Predict, scales: Sequence[float], flip: bool = False, average: str = 'logits'
) -> Predict:
    """Averages a function's logits over scales of the image and, with `flip`, mirror images (Sec. 4.2).

    Args:
        predict: returns logits of the size of the scaled image.
        scales: factors on height and width; sizes are rounded half up.
        flip: whether to include mirror images.
        average: 'logits' (the authors), or 'probabilities' (mmsegmentation), whose logarithm is returned.

    Raises:
        ConfigError: unknown `average`, or no scale; raised by the result, logits do not have the size of the
            image.
    """
    check_protocol(scales=tuple(scales), flip=flip, average=average)
    protocol = protocols.multi_scale(
        _checked(predict), scales, flip, average, None, Canvases(exact_only=True)
    )

    def logits(images: Num[Array, 'B H W 3']) -> Float[jax.Array, 'B H W K']:
        return _apply(protocol, _batch(images))

    return logits


def _batch(images):
    images = jnp.asarray(images)
    if images.ndim != 4 or not images.size:
        raise ConfigError(f'images of shape {images.shape}: must be (B, H, W, C), with at least one image')
    return images


def _apply(protocol, images):
    sizes = np.array([images.shape[1:3]] * len(images), np.int32)
    return protocol({}, Canvas(images, sizes)).array


def _checked(predict):
    """Makes a protocol from a function."""

    def protocol(_, images):
        logits = predict(images.array)
        if logits.shape[:3] != images.array.shape[:3]:
            raise ConfigError(
                f'the function returns logits {logits.shape} for images {images.array.shape}: they must have '
                'the height and width of the image, like those of ANN with full_size=True'
            )
        return Canvas(logits, images.size)

    return protocol
