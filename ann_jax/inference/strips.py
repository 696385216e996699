"""Class maps of large images: windows are averaged in strips, so memory does not grow with the height."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ann_jax.inference.protocols import Canvas, TestProtocol, window_starts

_ROWS = 16  # of which the classes are chosen at a time


def segment_in_strips(
    protocol: TestProtocol,
    variables: Any,
    rows: Callable[[int, int], np.ndarray],
    size: tuple[int, int],
    crop: Sequence[int],
    stride: Sequence[int],
) -> np.ndarray:
    """The classes that `protocols.sliding_window` gives, without the logits of the whole image.

    Logits are kept for the rows of one window, crop[0] x width, and the result takes a byte per pixel.

    Args:
        protocol: returns the logits of a window, on the device.
        variables: of the network.
        rows: (top, bottom) -> those rows of the image, (bottom - top, W, N) uint8.
        size: height and width of the image.
        crop: height and width of the windows.
        stride: distance between windows, at most `crop`.

    Returns:
        (H, W) uint8.
    """
    height, width = size
    tops, lefts = (window_starts(*each) for each in zip(size, crop, stride, strict=True))
    inside = np.minimum(size, crop)  # of a window
    ids = np.empty(size, np.uint8)
    total = None
    counts = [
        _coverage(length, starts, n) for length, starts, n in zip(size, (tops, lefts), inside, strict=True)
    ]
    for top, following in zip(tops, [*tops[1:], height], strict=True):
        strip = rows(top, top + inside[0])
        for left, logits in _windows(protocol, variables, strip, lefts, inside, crop):
            if total is None:
                total = np.zeros((inside[0], width, logits.shape[-1]), np.float32)
            total[:, left : left + inside[1]] += logits
        assert total is not None  # there is a window
        done = following - top
        for row in range(0, done, _ROWS):
            part = slice(row, min(row + _ROWS, done))
            count = counts[0][top:following][part, None] * counts[1]
            ids[top:following][part] = (total[part] / count[..., None]).argmax(-1)
        _shift_up(total, done)
    return ids


def _windows(protocol, variables, strip, lefts, inside, crop) -> Iterator[tuple[int, np.ndarray]]:
    """(left, logits) of each window; one is computed while the host adds the previous one."""
    fetch = lambda logits: np.asarray(logits)[0, : inside[0], : inside[1]]
    pending: list[tuple[int, Any]] = []
    for left in lefts:
        window = np.zeros((1, *crop, strip.shape[2]), np.uint8)
        window[0, : inside[0], : inside[1]] = strip[:, left : left + inside[1]]
        logits = protocol(variables, Canvas(window, inside[None].astype(np.int32))).array
        yield from ((at, fetch(previous)) for at, previous in pending)
        pending = [(left, logits)]
    yield from ((at, fetch(previous)) for at, previous in pending)


def _coverage(length, starts, window):
    """How many windows cover each pixel along one side, float32."""
    count = np.zeros(length, np.float32)
    for start in starts:
        count[start : start + window] += 1
    return count


def _shift_up(total, rows):
    """Moves a strip up, in place, and clears the rows that come in."""
    for row in range(len(total)):
        total[row] = total[row + rows] if row + rows < len(total) else 0
