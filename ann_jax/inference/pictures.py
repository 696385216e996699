"""Label pictures: colours, overlays and side-by-side panels, as (H, W, 3) uint8 arrays."""

from collections.abc import Sequence

import cv2
import numpy as np

from ann_jax.inference.lettering import LINE, Color, legend, line
from ann_jax.typing import IGNORE

WRONG = (255, 120, 0)  # colour of wrong pixels


def shown(image: np.ndarray) -> np.ndarray:
    """The first three of the bands of an (H, W, N) image, or three times its first, as RGB."""
    return image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, 2)


def colorize(label: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """(H, W) class indices -> (H, W, 3) uint8 colours; IGNORE is black."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)] = colors
    palette[IGNORE] = 0
    return palette[label]


def overlay(
    image: np.ndarray, label: np.ndarray, colors: Sequence[Color], opacity: float = 0.6
) -> np.ndarray:
    """Blends class colours over an (H, W, N) uint8 image; ignored pixels show the image."""
    image = shown(image)
    blend = (1 - opacity) * image + opacity * colorize(label, colors)
    return np.where((label == IGNORE)[..., None], image, blend.round()).astype(np.uint8)


def errors(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Where a prediction is wrong: orange on the grey (H, W, N) image; ignored pixels are black."""
    grey = 96 + (shown(image).mean(2, keepdims=True) / 2).astype(np.uint8)
    picture = np.repeat(grey, 3, 2)
    picture[truth != prediction] = WRONG
    picture[truth == IGNORE] = 0
    return picture


def panel(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    colors: Sequence[Color],
    classes: Sequence[str],
    title: str = '',
    gap: int = 4,
) -> np.ndarray:
    """Image and truth, below them prediction and errors, with a title and a legend of the classes present.

    Args:
        image: (H, W, N) uint8.
        truth: (H, W) class indices or IGNORE.
        prediction: (H, W) class indices.
        colors: RGB of the classes.
        classes: their names.
        title: written above.
        gap: pixels between the pictures.

    Returns:
        (height, max(2 W + gap, 320), 3) uint8: a line; twice a line and H rows; and the legend.
    """
    cells = [
        [('image', shown(image)), ('truth', overlay(image, truth, colors))],
        [
            ('prediction', overlay(image, prediction, colors)),
            ('errors (orange)', errors(image, truth, prediction)),
        ],
    ]
    space = np.full((LINE + image.shape[0], gap, 3), 255, np.uint8)
    rows = []
    for (left, one), (right, other) in cells:
        captioned = [np.concatenate([line(text, p.shape[1]), p]) for text, p in ((left, one), (right, other))]
        rows.append(np.concatenate([captioned[0], space, captioned[1]], 1))
    key = legend(present(truth, prediction), classes, colors, rows[0].shape[1])
    return stacked([line(title, key.shape[1]), *rows, key])


def scored(name: str, miou: float) -> str:
    """The title of a panel: the name of the image and its mIoU, if any pixel has a label."""
    return f'{name}   mIoU {100 * miou:.2f}' if miou == miou else f'{name}   no pixel has a label'


def with_legend(
    picture: np.ndarray, ids: np.ndarray, classes: Sequence[str], colors: Sequence[Color]
) -> np.ndarray:
    """A picture (H, W, 3) uint8 of class indices above a legend of those present; at least 320 wide."""
    return stacked([picture, legend(present(ids), classes, colors, picture.shape[1])])


def present(*labels: np.ndarray) -> list[int]:
    """The classes that occur in label maps, in order."""
    counts = sum(np.bincount(label.ravel(), minlength=256) for label in labels)
    return [i for i in np.flatnonzero(counts).tolist() if i != IGNORE]


def small(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture (H, W, 3) or class map (H, W), uint8, whose longer side is at most `side` pixels."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = max(1, round(width * scale)), max(1, round(height * scale))
    way = cv2.INTER_AREA if picture.ndim == 3 else cv2.INTER_NEAREST
    return cv2.resize(picture, size, interpolation=way)


def stacked(pictures: Sequence[np.ndarray], gap: int = 0) -> np.ndarray:
    """Pictures (h, w, 3) uint8 one below the other, with `gap` white rows below each, and white beside it."""
    width = max(picture.shape[1] for picture in pictures)
    return np.concatenate(
        [np.pad(p, ((0, gap), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    )
