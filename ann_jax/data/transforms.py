"""The paper's augmentation: random scale and crop, flip, brightness; one draw for the image and its label.

Scale and crop are one step. By definition the whole image is resized (bilinear, half-pixel centres, no
antialiasing, as OpenCV's resize does) and cut at an integer offset; computed are only the pixels of the cut,
from the part of the source that they see, so the cost follows the crop and not the image.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from ann_jax.typing import IGNORE, Sample

cv2.setNumThreads(0)  # several threads and processes augment at once


class Draw(NamedTuple):
    """The numbers drawn for one sample."""

    height: int  # of the whole resized image
    width: int
    top: int  # of the crop in the resized image
    left: int
    flip: bool
    brightness: int  # added to every channel


@dataclass(frozen=True)
class Augment:
    """Random scale, aspect, crop, flip and brightness.

    Attributes:
        crop: (height, width) of the result.
        scale_range: the scale is uniform in it.
        aspect_range: the width's scale is multiplied by a number uniform in it.
        flip: mirror left and right with probability 1/2.
        brightness: a grey level uniform over the integers -brightness..brightness is added.
        mean: RGB of the padding to the right and below, where the resized image is smaller than the crop.
        resize_short: length to which the short side is brought before the random scale; None leaves the size.
    """

    crop: tuple[int, int]
    scale_range: tuple[float, float] = (0.5, 2.0)
    aspect_range: tuple[float, float] = (1.0, 1.0)
    flip: bool = True
    brightness: int = 10
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    resize_short: int | None = None

    def draw(self, rng: np.random.Generator, height: int, width: int) -> Draw:
        """Draws the numbers for a sample of height x width."""
        scale = rng.uniform(*self.scale_range)
        if self.resize_short:
            scale *= self.resize_short / min(height, width)
        new_h = max(1, round(height * scale))
        new_w = max(1, round(width * scale * rng.uniform(*self.aspect_range)))
        return Draw(
            height=new_h,
            width=new_w,
            top=int(rng.integers(max(0, new_h - self.crop[0]) + 1)),
            left=int(rng.integers(max(0, new_w - self.crop[1]) + 1)),
            flip=bool(self.flip and rng.random() < 0.5),
            brightness=int(rng.integers(-self.brightness, self.brightness + 1)),
        )

    def apply(self, sample: Sample, draw: Draw) -> Sample:
        """Returns the sample with image (*crop, 3) uint8 and label (*crop) uint8."""
        size = min(self.crop[0], draw.height), min(self.crop[1], draw.width)
        image = _crop_of_resized(sample['image'], draw, size)
        label = _crop_of_resized_label(sample['label'], draw, size)
        if draw.brightness:
            image = cv2.LUT(image, np.clip(np.arange(256) + draw.brightness, 0, 255).astype(np.uint8))
        if draw.flip:
            image, label = cv2.flip(image, 1), cv2.flip(label, 1)
        return Sample(
            name=sample['name'],
            image=_pad(image, self.crop, tuple(round(level) for level in self.mean)),
            label=_pad(label, self.crop, IGNORE),
        )


def _crop_of_resized(image, draw, size):
    """Returns `size` pixels from (top, left) of the image resized to the draw's size: (*size, 3) uint8.

    OpenCV 5 places the samples in float32, so little more is lost than in rounding to uint8; releases that
    place them at multiples of 1/32 pixel are off by up to 1/64 of the contrast of neighbours along each axis.
    """
    y, step_y, rows = _window(image.shape[0], draw.height, draw.top, size[0])
    x, step_x, columns = _window(image.shape[1], draw.width, draw.left, size[1])
    to_source = np.array([[step_x, 0, x - columns.start], [0, step_y, y - rows.start]])
    return cv2.warpAffine(
        image[rows, columns],
        to_source,
        size[::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _window(length, new_length, start, count):
    """Returns the source place of pixel `start`, the step between pixels, and the source slice they see."""
    step = length / new_length
    first = (start + 0.5) * step - 0.5
    last = first + (count - 1) * step
    # One pixel beyond the two neighbours of the ends: rounded places may fall just outside.
    return first, step, slice(max(0, int(first) - 1), min(length, int(last) + 3))


def _crop_of_resized_label(label, draw, size):
    rows = _nearest(label.shape[0], draw.height, draw.top, size[0])
    columns = _nearest(label.shape[1], draw.width, draw.left, size[1])
    return label[rows][:, columns]


def _nearest(length, new_length, start, count):
    """Returns floor((i + 1/2) * length / new_length), in integers and so exact, for pixels i from `start`."""
    return (2 * np.arange(start, start + count) + 1) * length // (2 * new_length)


def _pad(array, size, value):
    bottom, right = size[0] - array.shape[0], size[1] - array.shape[1]
    if not bottom and not right:
        return array
    return cv2.copyMakeBorder(array, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=value)
