"""Normalisation of the input, which depends on the weights."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from ann_jax.errors import ConfigError, DataError
from ann_jax.ranges import check, shown

logger = logging.getLogger(__name__)

Normalize = Callable[[jax.Array], jax.Array]


class Normalization(TypedDict):
    """The arguments of `normalizer`, as `config.input` holds them."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
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
        A function from (B, H, W, 3) uint8 RGB, or as many channels as there are means, to float32.

    Raises:
        ConfigError: see `check_input`; or there are not as many deviations as means.
    """
    numbers = {'mean': tuple(np.asarray(mean).tolist()), 'std': tuple(np.asarray(std).tolist())}
    check_input({**numbers, 'bgr': bgr}, len(numbers['mean']))
    if len({len(each) for each in numbers.values()}) > 1:
        raise ConfigError(f'input.std={shown(numbers["std"])}: must be as many as there are means')
    if max(numbers['mean']) <= 1 and max(numbers['std']) < 1:
        logger.warning(
            'input.mean=%s and input.std=%s are those of values from 0 to 1, but levels are from 0 to 255: '
            'give both times 255',
            shown(numbers['mean']), shown(numbers['std']),
        )  # fmt: skip
    offset, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)

    def normalize(image):
        image = image.astype(jnp.float32)
        return ((image[..., ::-1] if bgr else image) - offset) / scale

    return normalize


def check_levels(image: Any, normalize: Normalize) -> None:
    """Refuses images that `imagenet_rgb` would normalise wrongly; those on a device are not looked at.

    Raises:
        DataError: they are floats from 0 to 1, as torchvision's, or were normalised before.
    """
    if normalize is not imagenet_rgb or not isinstance(image, np.ndarray) or image.dtype.kind != 'f':
        return
    low, high = image.min(initial=0), image.max(initial=0)
    if low < 0 or 0 < high <= 1:
        raise DataError(
            f'the batch has images from {low:g} to {high:g}, but levels are from 0 to 255: give these, or '
            'normalize=..., a function from your images to the input of the network'
        )


def check_input(settings: Mapping[str, Any], channels: int) -> None:
    """Checks that a normalisation suits a number of channels.

    Raises:
        ConfigError: it does not hold 3 numbers or one per channel, one is out of its range, or it swaps
            other channels than RGB.
    """
    for key in ('mean', 'std'):
        check(f'input.{key}', settings[key])
        if len(settings[key]) not in (3, channels):
            raise ConfigError(
                f'input.{key}={tuple(settings[key])!r}: must be {channels} numbers, one per channel, or 3, '
                'of which the average is used'
            )
    if not isinstance(settings['bgr'], bool):
        raise ConfigError(f'input.bgr={settings["bgr"]!r}: must be True or False')
    if settings['bgr'] and channels != 3:
        raise ConfigError(
            f'input.bgr=True: red and blue cannot be swapped in {channels} channels; set '
            '--config.input.bgr=False, and order the bands with dataset.bands'
        )


def for_channels(settings: Mapping[str, Any], channels: int) -> Normalization:
    """The normalisation for a number of channels: that of RGB, or else its average for each channel.

    Raises:
        ConfigError: see `check_input`.
    """
    check_input(settings, channels)
    fit = lambda each: tuple(each) if len(each) == channels else (round(float(np.mean(each)), 4),) * channels
    return {'mean': fit(settings['mean']), 'std': fit(settings['std']), 'bgr': settings['bgr']}


imagenet_rgb = normalizer(**IMAGENET_RGB)
