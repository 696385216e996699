"""Rotation, shear and translation of a crop, cut from the source in one step."""

import math

import cv2
import numpy as np

from ann_jax.data.augment.colors import in_channels
from ann_jax.data.layout import INVALID

# Where a pixel of the result comes from: x' = a x + b y + c, y' = d x + e y + f, in pixels of the crop, from
# the centre of the picture in it.
Warp = tuple[float, float, float, float, float, float]
IDENTITY: Warp = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def rotated(warp: Warp, degrees: float) -> Warp:
    """A warp, and then a rotation of the picture about its centre, counterclockwise."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _then(warp, (cos, -sin, 0.0, sin, cos, 0.0))


def sheared(warp: Warp, factor: float, axis: str) -> Warp:
    """A warp, and then a shear along the axis x or y."""
    return _then(
        warp, (1.0, factor, 0.0, 0.0, 1.0, 0.0) if axis == 'x' else (1.0, 0.0, 0.0, factor, 1.0, 0.0)
    )


def shifted(warp: Warp, pixels: float, axis: str) -> Warp:
    """A warp, and then a translation along the axis x or y: to the right or down if above 0."""
    return _then(
        warp, (1.0, 0.0, -pixels, 0.0, 1.0, 0.0) if axis == 'x' else (1.0, 0.0, 0.0, 0.0, 1.0, -pixels)
    )


def _then(first, second):
    """The later warp says where its pixels come from in the picture that the earlier one made."""
    matrix = _matrix(first) @ _matrix(second)
    return tuple(matrix[:2].ravel().tolist())


def _matrix(warp):
    return np.array([*warp, 0, 0, 1], np.float64).reshape(3, 3)


def warp_window(image, label, window, size, warp: Warp, crop) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the warped crop from a sample.

    Args:
        image: (H, W, N) uint8, or anything that is sliced to it.
        label: (H, W) uint8.
        window: (top, left, height, width) of the picture in the source.
        size: (height, width) that the picture has in the crop, at its top left.
        warp: where pixels come from; beyond the picture, what lies there in the source is shown.
        crop: (height, width) of the result.

    Returns:
        The image, bilinear, with the edges of the source continued, and the label, nearest, INVALID beyond.
    """
    top, left, height, width = window
    centre = _place(size[1] / 2, size[0] / 2)
    # Centres of pixels lie at halves.
    to_source = _place(left, top) @ np.diag([width / size[1], height / size[0], 1.0])
    matrix = (
        _place(-0.5, -0.5) @ to_source @ centre @ _matrix(warp) @ np.linalg.inv(centre) @ _place(0.5, 0.5)
    )
    corners = np.array([[x, y, 1] for x in (0, crop[1] - 1) for y in (0, crop[0] - 1)]).T
    x, y = (matrix @ corners)[:2]
    columns, rows = _span(x, label.shape[1]), _span(y, label.shape[0])
    matrix = (_place(-columns.start, -rows.start) @ matrix)[:2]

    def cut(part, flags, **border):
        return cv2.warpAffine(part, matrix, crop[::-1], flags=flags | cv2.WARP_INVERSE_MAP, **border)

    pixels = np.ascontiguousarray(image[rows, columns])
    warped = in_channels(
        lambda part: cut(part, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), pixels, most=4
    )
    classes = np.ascontiguousarray(label[rows, columns], np.uint8)
    return warped, cut(classes, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=INVALID)


def _place(x, y):
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


def _span(places, length):
    """The slice of pixels around some places that exists, of at least one."""
    first = min(max(math.floor(places.min()) - 1, 0), length - 1)
    return slice(first, max(min(math.ceil(places.max()) + 2, length), first + 1))
