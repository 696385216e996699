"""Figures as in the paper: predictions side by side (Fig. 5 and 6), and maps of the stages (Fig. 7)."""

from collections.abc import Sequence

import cv2
import numpy as np

from ann_jax.inference import pictures
from ann_jax.inference.lettering import Color, legend, line
from ann_jax.typing import IGNORE

CELL = 320  # pixels of the longer side of a picture
_GAP = 4

Palette = tuple[Sequence[str], Sequence[Color]]  # names and colours of classes


def predictions(
    names: Sequence[str],
    images: Sequence[np.ndarray],
    columns: Sequence[tuple[str, Sequence[np.ndarray], Palette]],
) -> np.ndarray:
    """A row per image: the image, and class maps over it; below, a legend of the classes that occur.

    Args:
        names: of the images.
        images: (H, W, 3) uint8, of any sizes.
        columns: title, class map of each image, and classes: of networks, or of the ground truth.

    Returns:
        (height, width, 3) uint8.
    """
    rows = []
    found: dict[tuple[str, Color], None] = {}
    for number, image in enumerate(images):
        size = _size(image)
        picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        cells = [(names[number], picture)]
        for title, maps, (classes, colors) in columns:
            ids = cv2.resize(maps[number], size, interpolation=cv2.INTER_NEAREST)
            cells.append((title, pictures.overlay(picture, ids, colors)))
            found |= {(classes[i], tuple(colors[i])): None for i in np.unique(ids) if i != IGNORE}
        rows.append(_row(cells))
    table = pictures.stacked(rows, _GAP)
    present, shades = zip(*found, strict=True)
    key = legend(range(len(found)), present, shades, table.shape[1])
    return pictures.stacked([table, key], _GAP)


def stages(
    rows: Sequence[tuple[str, np.ndarray, Sequence[np.ndarray]]],
) -> np.ndarray:
    """A row per network and image: the image, and the mean over the channels of each stage.

    Each map is coloured from its smallest value, dark blue, to its largest, yellow.

    Args:
        rows: title, image (H, W, 3) uint8 and maps (h, w), the last of which is Stage5.

    Returns:
        (height, width, 3) uint8.
    """
    made = []
    for title, image, maps in rows:
        size = _size(image)
        cells = [(title, cv2.resize(image, size, interpolation=cv2.INTER_AREA))]
        for number, values in enumerate(maps, 6 - len(maps)):
            share = (values - values.min()) / max(np.ptp(values), 1e-12)
            colored = cv2.applyColorMap((255 * share).round().astype(np.uint8), cv2.COLORMAP_VIRIDIS)
            picture = cv2.resize(colored[..., ::-1], size, interpolation=cv2.INTER_NEAREST)
            cells.append((f'Stage{number}, {values.shape[1]} x {values.shape[0]}', picture))
        made.append(_row(cells))
    return pictures.stacked(made, _GAP)


def _size(image):
    """Width and height of a cell."""
    scale = CELL / max(image.shape[:2])
    return max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))


def _row(cells):
    """Pictures of one size beside each other, each below its title."""
    columns = []
    for title, picture in cells:
        space = np.full((1, _GAP, 3), 255, np.uint8)
        columns += [np.concatenate([line(title, picture.shape[1]), picture]), space]
    height = columns[0].shape[0]
    return np.concatenate([np.broadcast_to(x, (height, *x.shape[1:])) for x in columns[:-1]], 1)
