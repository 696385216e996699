"""The paper's augmentation: random scale and crop, flip, brightness; one draw for the image and its label.

Scale and crop are one step. A random crop of a randomly resized image shows a window of the source, which is
the size of the crop divided by the scale. The window is drawn and cut first, and only the window is resized,
so the cost depends on the crop, not on the image. The window has whole source pixels, which shifts scale and
position by less than half a pixel compared with resizing first.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from ann_jax.typing import IGNORE, Sample

cv2.setNumThreads(0)  # several threads and processes augment at once

_CHANNELS = 128  # the most that OpenCV takes


class Draw(NamedTuple):
    """The numbers drawn for one sample."""

    top: int  # of the window, in source pixels
    left: int
    height: int
    width: int
    new_height: int  # what the window is resized to, at most the crop
    new_width: int
    flip: bool
    brightness: int  # added to every channel


@dataclass(frozen=True)
class Augment:
    """Random scale, aspect, crop, flip and brightness.

    Attributes:
        crop: (height, width) of the result.
        scale_range: the scale is uniform in it.
        aspect_range: the scale of the width is also multiplied by a factor uniform in it.
        flip: mirror left and right with probability 1/2.
        brightness: a grey level uniform over the integers -brightness..brightness is added.
        mean: levels of the channels of the padding at the right and bottom, if the resized image is smaller
            than the crop.
        resize_short: length of the short side before the random scale; None to leave it as it is.
    """

    crop: tuple[int, int]
    scale_range: tuple[float, float] = (0.5, 2.0)
    aspect_range: tuple[float, float] = (1.0, 1.0)
    flip: bool = True
    brightness: int = 10
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    resize_short: int | None = None

    def draw(self, rng: np.random.Generator, height: int, width: int) -> Draw:
        """Draws the numbers for a sample of height x width."""
        scale = rng.uniform(*self.scale_range)
        if self.resize_short:
            scale *= self.resize_short / min(height, width)
        window_h, new_h = _window(height, self.crop[0], scale)
        window_w, new_w = _window(width, self.crop[1], scale * rng.uniform(*self.aspect_range))
        return Draw(
            top=int(rng.integers(height - window_h + 1)),
            left=int(rng.integers(width - window_w + 1)),
            height=window_h,
            width=window_w,
            new_height=new_h,
            new_width=new_w,
            flip=bool(self.flip and rng.random() < 0.5),
            brightness=int(rng.integers(-self.brightness, self.brightness + 1)),
        )

    def apply(self, sample: Sample, draw: Draw) -> Sample:
        """Returns the sample with image (*crop, N) uint8 and label (*crop) uint8."""
        window = slice(draw.top, draw.top + draw.height), slice(draw.left, draw.left + draw.width)
        image = _resize(sample['image'][window], (draw.new_width, draw.new_height))
        rows = draw.top + _nearest(draw.height, draw.new_height)
        columns = draw.left + _nearest(draw.width, draw.new_width)
        label = sample['label'].take(rows, 0).take(columns, 1)  # faster than one index with both
        if draw.brightness:
            # Saturates. As one channel, because OpenCV's scalars have four.
            flat = image.reshape(len(image), -1)
            image = cv2.add(flat, float(draw.brightness)).reshape(image.shape)  # type: ignore[call-overload]
        if draw.flip:
            image, label = _flip(image), _flip(label)
        return Sample(
            name=sample['name'],
            image=_pad(image, self.crop, tuple(round(level) for level in self.mean)),
            label=_pad(label, self.crop, IGNORE),
        )


def _resize(image, size):
    """Resizes (H, W, N) to (width, height), bilinearly."""
    resized = [
        cv2.resize(image[..., first : first + _CHANNELS], size).reshape(*size[::-1], -1)
        for first in range(0, image.shape[2], _CHANNELS)
    ]
    return resized[0] if len(resized) == 1 else np.concatenate(resized, 2)


def _flip(array):
    """Mirrors left and right."""
    if array.ndim == 3 and array.shape[2] > _CHANNELS:
        return np.ascontiguousarray(array[:, ::-1])
    return cv2.flip(array, 1).reshape(array.shape)


def _window(length, crop, scale):
    """Returns how many source pixels the crop shows, and how many pixels they become."""
    window = max(1, round(crop / scale))
    if window <= length:
        return window, crop
    return length, min(max(1, round(length * scale)), crop)


def _nearest(length, new_length):
    """Returns the source pixel that contains the centre of each new one, in exact integer arithmetic."""
    return (2 * np.arange(new_length) + 1) * length // (2 * new_length)


def _pad(array, size, value):
    bottom, right = size[0] - array.shape[0], size[1] - array.shape[1]
    if not bottom and not right:
        return np.ascontiguousarray(array)
    padded = np.empty((*size, *array.shape[2:]), np.uint8)
    padded[...] = value
    padded[: array.shape[0], : array.shape[1]] = array
    return padded
