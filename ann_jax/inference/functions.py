"""Test protocols of the paper for any function from images to logits.

    predict = lambda images: model.apply(variables, normalize(images), full_size=True).main
    windows = sliding_window(predict, (864, 864), (576, 576))
    test_of_the_paper = multi_scale(windows, (0.75, 1, 1.25), flip=True)

They may be called inside of `jax.jit`. `protocols` has the same for batches of several sizes and for a mesh.
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
    """Means of a function's logits over overlapping windows (Sec. 4.2).

    Windows start every `stride` pixels, the last ones at the far edges, so that every pixel is covered.

    Args:
        predict: gives the logits of a window, of its size.
        crop: height and width of the windows; an image that is smaller is a window of its own size.
        stride: distance of windows, at most `crop`.

    Raises:
        ConfigError: crop or stride cannot be used; from the result, logits are not of the size of the window.
    """
    crop, stride = tuple(crop), tuple(stride)
    check_protocol(crop=crop, stride=stride)

    def logits(images: Num[Array, 'B H W 3']) -> Float[jax.Array, 'B H W K']:
        fitting = tuple(map(min, crop, images.shape[1:3]))
        return _apply(protocols.sliding_window(_checked(predict), fitting, stride, None), images)

    return logits


def multi_scale(
    predict: Predict, scales: Sequence[float], flip: bool = False, average: str = 'logits'
) -> Predict:
    """Means of a function's logits over scales of the image and, with `flip`, its mirror images (Sec. 4.2).

    Args:
        predict: gives the logits of a scaled image, of its size.
        scales: factors on height and width, which are rounded half up.
        flip: whether mirror images count too.
        average: 'logits' (the authors), or 'probabilities' (mmsegmentation), whose logarithm is returned.

    Raises:
        ConfigError: unknown `average`, no scale; from the result, logits are not of the size of the image.
    """
    check_protocol(scales=tuple(scales), flip=flip, average=average)
    protocol = protocols.multi_scale(
        _checked(predict), scales, flip, average, None, Canvases(exact_only=True)
    )

    def logits(images: Num[Array, 'B H W 3']) -> Float[jax.Array, 'B H W K']:
        return _apply(protocol, images)

    return logits


def _apply(protocol, images):
    images = jnp.asarray(images)
    sizes = np.array([images.shape[1:3]] * len(images), np.int32)
    return protocol({}, Canvas(images, sizes)).array


def _checked(predict):
    """A function as a protocol."""

    def protocol(_, images):
        logits = predict(images.array)
        if logits.shape[:3] != images.array.shape[:3]:
            raise ConfigError(
                f'the function gives logits {logits.shape} for images {images.array.shape}: they must have '
                'the height and width of the image, as those of ANN with full_size=True'
            )
        return Canvas(logits, images.size)

    return protocol
