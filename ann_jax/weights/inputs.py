"""Normalisation of the input, which depends on the weights."""

from collections.abc import Callable, Sequence
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np

Normalize = Callable[[jax.Array], jax.Array]


class Normalization(TypedDict):
    """The arguments of `normalizer`, as `config.input` holds them."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool


# Normalisation of torchvision's, timm's and mmseg's weights; also a good one for training from scratch.
IMAGENET_RGB: Normalization = {
    'mean': (123.675, 116.28, 103.53),
    'std': (58.395, 57.12, 57.375),
    'bgr': False,
}
# Normalisation of the authors' weights: blue first, means only.
AUTHORS_BGR: Normalization = {'mean': (102.9801, 115.9465, 122.7717), 'std': (1.0, 1.0, 1.0), 'bgr': True}
# Normalisation of PaddleSeg's weights: values from -1 to 1.
PADDLE_RGB: Normalization = {'mean': (127.5, 127.5, 127.5), 'std': (127.5, 127.5, 127.5), 'bgr': False}


def normalizer(*, mean: Sequence[float], std: Sequence[float], bgr: bool) -> Normalize:
    """Returns the normalisation that a backbone was trained with.

    Args:
        mean: per channel, in levels of 0 to 255 and in the channel order of the backbone.
        std: likewise.
        bgr: whether the backbone takes blue first.

    Returns:
        A function from (B, H, W, 3) uint8 RGB to float32.
    """
    offset, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)

    def normalize(image):
        image = image.astype(jnp.float32)
        return ((image[..., ::-1] if bgr else image) - offset) / scale

    return normalize


imagenet_rgb = normalizer(**IMAGENET_RGB)
