"""Augmentation: one draw for the image and its label, the paper's (scale, crop, flip, brightness) and more.

Scale and crop are one step. A random crop of a randomly resized image shows a window of the source, which is
the size of the crop divided by the scale. The window is drawn and cut first, and only the window is resized,
so the cost depends on the crop, not on the image. The window has whole source pixels, which shifts scale and
position by less than half a pixel compared with resizing first.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from ann_jax.data.augment.colors import CHANNELS, OPERATIONS, in_channels
from ann_jax.data.augment.rand_augment import draw_operations
from ann_jax.data.augment.warps import IDENTITY, Warp, rotated, warp_window
from ann_jax.data.labels import count_bytes
from ann_jax.data.layout import INVALID
from ann_jax.errors import ConfigError
from ann_jax.ranges import RANGES, check, shown
from ann_jax.typing import IGNORE, Sample

cv2.setNumThreads(0)  # several threads and processes augment at once

_TRIES = 10  # of a crop that one class fills


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
    warp: Warp | None = None  # of the crop; the window lies around the same place
    colors: tuple[tuple, ...] = ()  # names of `colors.OPERATIONS` and their arguments, in order


@dataclass(frozen=True)
class Augment:
    """Random scale, aspect, crop, flip, brightness and, off by default, all that follows `resize_short`.

    Attributes:
        crop: (height, width) of the result.
        scale_range: the scale is uniform in it.
        aspect_range: the scale of the width is also multiplied by a factor uniform in it.
        flip: mirror left and right with probability 1/2.
        brightness: a grey level uniform over the integers -brightness..brightness is added.
        mean: levels of the channels of the padding at the right and bottom, if the resized image is smaller
            than the crop.
        resize_short: length of the short side before the random scale; None to leave it as it is.
        jitter: brightness, contrast, saturation and hue, as of torchvision's ColorJitter: factors are uniform
            in 1 - x .. 1 + x, above 0, the turn of the hue in -x .. x; in random order.
        jitter_share: probability of a jitter.
        blur: probability of a Gaussian blur.
        blur_sigma: range of its standard deviation, in pixels of the crop.
        noise: highest standard deviation of Gaussian noise, in levels; it is uniform from 0.
        grey: probability that the image becomes grey.
        rotation: highest angle in degrees, both ways; what lies beyond the source is ignored.
        max_class_share: crops of which one class fills more are drawn again, up to 10 times, as mmseg's
            cat_max_ratio; ignored pixels do not count, and a crop of one class alone is drawn again too.
        rare_crop: probability that the crop is laid around a random pixel of a class, drawn from those of
            the image by the inverse of `frequencies`.
        frequencies: of the classes; () for the same.
        rand_augment: number of operations, see `rand_augment.py`.
        rand_magnitude: their strength, 0 to 30.
    """

    crop: tuple[int, int]
    scale_range: tuple[float, float] = (0.5, 2.0)
    aspect_range: tuple[float, float] = (1.0, 1.0)
    flip: bool = True
    brightness: int = 10
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    resize_short: int | None = None
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_share: float = 1.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    noise: float = 0.0
    grey: float = 0.0
    rotation: float = 0.0
    max_class_share: float = 1.0
    rare_crop: float = 0.0
    frequencies: tuple[float, ...] = ()
    rand_augment: int = 0
    rand_magnitude: int = 9

    def __post_init__(self):
        """Checks the numbers.

        Raises:
            ConfigError: one is out of the range of the setting of its name.
        """
        whole = lambda side: isinstance(side, int | np.integer) and side > 0
        if not isinstance(self.crop, list | tuple) or len(self.crop) != 2 or not all(map(whole, self.crop)):
            raise ConfigError(f'augment.crop={shown(self.crop)}: must be two whole numbers above 0')
        for name, value in vars(self).items():
            if name != 'crop' and f'augment.{name}' in RANGES:
                check(f'augment.{name}', 0 if value is None else value)
        check('input.mean', tuple(self.mean))

    def draw(
        self,
        rng: np.random.Generator,
        height: int,
        width: int,
        label: np.ndarray | None = None,
        focus: int | None = None,
    ) -> Draw:
        """Draws the numbers for a sample of height x width.

        Args:
            rng: what is off takes nothing from it.
            height, width: of the sample.
            label: of the sample, on which `max_class_share` and `rare_crop` depend.
            focus: a class that the crop is to show, if the label has it.
        """
        scale = rng.uniform(*self.scale_range)
        if self.resize_short:
            scale *= self.resize_short / min(height, width)
        window_h, new_h = _window(height, self.crop[0], scale)
        window_w, new_w = _window(width, self.crop[1], scale * rng.uniform(*self.aspect_range))
        draw = Draw(
            top=int(rng.integers(height - window_h + 1)),
            left=int(rng.integers(width - window_w + 1)),
            height=window_h,
            width=window_w,
            new_height=new_h,
            new_width=new_w,
            flip=bool(self.flip and rng.random() < 0.5),
            brightness=int(rng.integers(-self.brightness, self.brightness + 1)),
        )
        if label is not None:
            draw = self._placed(rng, draw, label, focus)
        return self._colored(rng, draw)

    def _placed(self, rng, draw, label, focus):
        """Moves the window to where rare classes are, or no class fills it."""
        if focus is None and self.rare_crop and rng.random() < self.rare_crop:
            present = np.flatnonzero(_count(label)[:INVALID])
            if len(present):
                focus = int(pick_rare(rng, present, self.frequencies))
        if focus is not None:
            places = np.flatnonzero(label == focus)
            if len(places):
                y, x = divmod(int(rng.choice(places)), label.shape[1])
                spans = (y, draw.height, label.shape[0]), (x, draw.width, label.shape[1])
                top, left = (
                    int(rng.integers(max(place - length + 1, 0), min(place, whole - length) + 1))
                    for place, length, whole in spans
                )
                return draw._replace(top=top, left=left)
        if self.max_class_share < 1:
            for _ in range(_TRIES):
                counts = _count(label[draw.top : draw.top + draw.height, draw.left : draw.left + draw.width])
                counts = counts[:IGNORE]
                if np.count_nonzero(counts) > 1 and counts.max() < self.max_class_share * counts.sum():
                    break
                top = int(rng.integers(label.shape[0] - draw.height + 1))
                draw = draw._replace(top=top, left=int(rng.integers(label.shape[1] - draw.width + 1)))
        return draw

    def _colored(self, rng, draw):
        """Adds the operations on levels, and the warp."""
        colors: list[tuple] = []
        warp = IDENTITY
        if any(self.jitter) and rng.random() < self.jitter_share:
            for number in rng.permutation(4).tolist():
                kind, x = ('brightness', 'contrast', 'saturation', 'hue')[number], self.jitter[number]
                if x:
                    low, high = (-x, x) if kind == 'hue' else (max(1 - x, 0.0), 1 + x)
                    colors.append((kind, rng.uniform(low, high)))
        if self.rand_augment:
            more, warp = draw_operations(rng, self.rand_augment, self.rand_magnitude, self.crop)
            colors += more
        if self.rotation:
            warp = rotated(warp, rng.uniform(-self.rotation, self.rotation))
        if self.grey and rng.random() < self.grey:
            colors.append(('grey',))
        if self.blur and rng.random() < self.blur:
            colors.append(('blur', rng.uniform(*self.blur_sigma)))
        if self.noise:
            colors.append(('noise', rng.uniform(0, self.noise), int(rng.integers(2**32))))
        return draw._replace(warp=warp if warp != IDENTITY else None, colors=tuple(colors))

    def apply(self, sample: Sample, draw: Draw) -> Sample:
        """Returns the sample with image (*crop, N) uint8 and label (*crop) uint8.

        Raises:
            ConfigError: `mean` has another number of channels than the image.
        """
        padding = tuple(round(level) for level in self.mean)
        if len(padding) != sample['image'].shape[2]:
            raise ConfigError(
                f'mean={shown(tuple(self.mean))} of Augment: the images have {sample["image"].shape[2]} '
                'channels: give a level for each'
            )
        if draw.warp:
            window, size = draw[:4], (draw.new_height, draw.new_width)
            image, label = warp_window(sample['image'], sample['label'], window, size, draw.warp, self.crop)
        else:
            image, label = _cut(sample, draw)
        if draw.brightness:
            # Saturates. As one channel, because OpenCV's scalars have four.
            flat = image.reshape(len(image), -1)
            image = cv2.add(flat, float(draw.brightness)).reshape(image.shape)  # type: ignore[call-overload]
        for name, *arguments in draw.colors:
            image = OPERATIONS[name](image, *arguments)
        if draw.warp:
            beyond = label == INVALID
            image[beyond], label[beyond] = padding, IGNORE
        if draw.flip:
            image, label = _flip(image), _flip(label)
        return Sample(
            name=sample['name'],
            image=_pad(image, self.crop, padding),
            label=_pad(label, self.crop, IGNORE),
        )


def pick_rare(rng: np.random.Generator, classes: np.ndarray, frequencies: tuple[float, ...]) -> int:
    """Draws one of some classes, with probabilities inverse to their frequencies."""
    if not frequencies:
        return rng.choice(classes)
    rarity = np.array([1 / frequencies[k] if frequencies[k] else 0 for k in classes])
    return rng.choice(classes, p=rarity / rarity.sum() if rarity.any() else None)


def _count(label):
    return count_bytes(np.ascontiguousarray(label, np.uint8))


def _cut(sample, draw):
    """The window, resized."""
    window = slice(draw.top, draw.top + draw.height), slice(draw.left, draw.left + draw.width)
    size = draw.new_width, draw.new_height
    image = in_channels(lambda part: cv2.resize(part, size), sample['image'][window])
    rows = draw.top + _nearest(draw.height, draw.new_height)
    columns = draw.left + _nearest(draw.width, draw.new_width)
    return image, sample['label'].take(rows, 0).take(columns, 1)  # faster than one index with both


def _flip(array):
    """Mirrors left and right."""
    if array.ndim == 3 and array.shape[2] > CHANNELS:
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
