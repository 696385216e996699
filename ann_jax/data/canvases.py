"""Canvases: a few array sizes to which images of many sizes are padded, so that few programs are compiled."""

from collections.abc import Sequence

import numpy as np

EXACT = 3  # the first sizes get canvases of their own: a dataset with few sizes wastes nothing
WASTE = 4  # a canvas is reused for an image if it is at most this many times as large


class Canvases:
    """Chooses canvases, depending only on the sizes requested so far."""

    def __init__(self, exact_only: bool = False):
        """With `exact_only`, every size gets its own canvas, for networks that do not support padding."""
        self._known: list[tuple[int, int]] = []
        self._exact_only = exact_only

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the canvas for an image."""
        size, limit = (height, width), WASTE * height * width
        if size in self._known:
            return size
        fitting = [c for c in self._known if c[0] >= height and c[1] >= width and c[0] * c[1] <= limit]
        if fitting and not self._exact_only:
            return min(fitting, key=lambda canvas: canvas[0] * canvas[1])
        if not self._exact_only and len(self._known) >= EXACT:
            size = _rung(height), _rung(width)
        self._known.append(size)
        return size


def _rung(length):
    """The smallest of 64, 96, 128, 192, 256, 384, ... that is not below the length."""
    rung = 64
    while rung < length:
        rung = rung * 3 // 2 if rung & (rung - 1) == 0 else rung * 4 // 3
    return rung


def pad(
    images: Sequence[np.ndarray],
    canvas: tuple[int, int],
    count: int,
    channels: tuple[int, ...] = (),
    fill: int = 0,
) -> np.ndarray:
    """Puts uint8 arrays (H, W, *channels) at the top left of `count` canvases filled with `fill`."""
    stack = np.full((count, *canvas, *channels), fill, np.uint8)
    for i, image in enumerate(images):
        stack[i, : image.shape[0], : image.shape[1]] = image
    return stack
