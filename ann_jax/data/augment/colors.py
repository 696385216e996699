"""Operations on the levels of an image, with the meaning that they have in Pillow and torchvision.

Each maps (H, W, 3) uint8, and `blur` and `noise` any number of channels, to a new array; none changes labels.
Factors are those of torchvision's `adjust_*`: 1 leaves the image as it is.
"""

import cv2
import numpy as np

CHANNELS = 128  # the most that OpenCV takes
_GREY = np.array([0.299, 0.587, 0.114])  # of RGB, ITU-R 601
_LEVELS = np.arange(256)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's


def brightness(image, factor):
    """All levels times a factor."""
    return _mapped(image, _LEVELS * factor)


def contrast(image, factor):
    """The distance of all levels from the mean grey times a factor."""
    mean = round(float(np.dot(cv2.mean(image)[:3], _GREY)))
    return _mapped(image, mean + (_LEVELS - mean) * factor)


def saturation(image, factor):
    """The distance of each colour from its grey times a factor; 0 makes the image grey."""
    return cv2.transform(image, np.eye(3) * factor + (1 - factor) * _GREY)


def hue(image, shift):
    """Turns colours by a part of the circle, -0.5 to 0.5."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(shift * 256) % 256)  # wraps around
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def grey(image):
    """All channels become the grey level."""
    return saturation(image, 0.0)


def blur(image, sigma):
    """Gaussian blur with a standard deviation in pixels; the image goes on mirrored beyond its edges."""
    size = 2 * int(np.ceil(3 * sigma)) + 1
    return in_channels(lambda part: cv2.GaussianBlur(part, (size, size), sigma), image)


def noise(image, sigma, seed):
    """Adds independent Gaussian noise with a standard deviation in levels."""
    drawn = np.random.default_rng(seed).standard_normal(image.shape, np.float32)
    drawn *= np.float32(sigma)
    drawn += image
    return np.clip(np.rint(drawn, out=drawn), 0, 255, out=drawn).astype(np.uint8)


def sharpness(image, factor):
    """The distance from a smoothed copy times a factor; the outermost pixels stay."""
    smooth = image.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, _SMOOTH)[1:-1, 1:-1]
    return cv2.addWeighted(image, factor, smooth, 1 - factor, 0)


def posterize(image, bits):
    """Keeps the upper bits of each level."""
    return image & np.uint8(256 - (1 << (8 - bits)))


def solarize(image, threshold):
    """Inverts the levels from a threshold on."""
    return _mapped(image, np.where(threshold <= _LEVELS, 255 - _LEVELS, _LEVELS))


def autocontrast(image):
    """Stretches each channel to all levels."""
    return _by_channel(image, _stretched)


def equalize(image):
    """Makes the histogram of each channel even."""
    return _by_channel(image, _equalized)


def in_channels(operation, image, most=CHANNELS):
    """Applies an operation of OpenCV to as many channels at a time as it takes; keeps (H, W, N)."""
    parts = [operation(image[..., first : first + most]) for first in range(0, image.shape[2], most)]
    parts = [part.reshape(*part.shape[:2], -1) for part in parts]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, 2)


def _mapped(image, levels):
    return cv2.LUT(image, np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def _by_channel(image, levels_of):
    counts = [np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)]
    table = np.stack([levels_of(count) for count in counts], -1)
    return cv2.LUT(image, table[None].astype(np.uint8))


def _stretched(count):
    used = np.flatnonzero(count)
    low, high = used[0], used[-1]
    if low == high:
        return _LEVELS
    return np.clip((_LEVELS - low) * (255.0 / (high - low)), 0, 255)


def _equalized(count):
    """Pillow's table: steps of equal numbers of pixels, the last level apart."""
    step = (count.sum() - count[count > 0][-1]) // 255
    if not step:
        return _LEVELS
    return np.minimum((step // 2 + np.cumsum(count) - count) // step, 255)


OPERATIONS = {
    operation.__name__: operation
    for operation in (
        brightness,
        contrast,
        saturation,
        hue,
        grey,
        blur,
        noise,
        sharpness,
        posterize,
        solarize,
        autocontrast,
        equalize,
    )
}
