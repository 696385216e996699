"""--mode=browse: a contact sheet of samples as training sees them, with their labels drawn over them."""

import contextlib
from pathlib import Path

import cv2
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from ann_jax import build
from ann_jax.data.pipeline import train_batches
from ann_jax.files import replacing
from ann_jax.inference import pictures
from ann_jax.modes.class_counts import class_counts

ROWS, COLUMNS = 4, 4  # of samples, each shown as an image without and with its label
CELL = 320  # pixels of the longer side of a picture
GAP = 4


def browse(config: ConfigDict, workdir: Path) -> Path:
    """Writes workdir/browse.png: the first augmented samples of training, and a legend of their classes.

    Returns:
        The file.

    Raises:
        DataError: the dataset cannot be used.
        SaveError: the picture cannot be written.
    """
    source = build.source(config, config.dataset.train_split)
    counts = class_counts(config, source, workdir)
    samples, mix = build.epoch(config, source, counts)
    batches = train_batches(
        samples,
        build.augment(config, counts),
        batch_size=ROWS * COLUMNS,
        seed=config.seed,
        num_threads=build.readers(config).threads,
        prefetch=1,
        mix=mix,
    )
    with contextlib.closing(batches):
        batch = next(batches)
    picture = sheet(batch['image'], batch['label'], source.dataset.classes, source.dataset.colors)
    file = workdir / 'browse.png'
    with replacing(file) as draft:
        Image.fromarray(picture).save(draft)
    print(f'{ROWS * COLUMNS} crops of {len(source)} images, with and without their labels: {file}')
    return file


def sheet(images: np.ndarray, labels: np.ndarray, classes, colors) -> np.ndarray:
    """Arranges samples in a grid above a legend of their classes.

    Args:
        images: (B, H, W, N) uint8.
        labels: (B, H, W) uint8.
        classes: names.
        colors: RGB of each.

    Returns:
        (height, width, 3) uint8.
    """
    height, width = labels.shape[1:]
    scale = min(1.0, CELL / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    cells = []
    for image, label in zip(images, labels, strict=True):
        drawn = pictures.overlay(image, label, colors)
        pair = [
            cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
            for picture in (pictures.shown(image), drawn)
        ]
        cells.append(_frame(np.concatenate(pair, 1)))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % COLUMNS)
    rows = [np.concatenate(cells[i : i + COLUMNS], 1) for i in range(0, len(cells), COLUMNS)]
    grid = np.concatenate(rows, 0)
    return pictures.with_legend(grid, labels, classes, colors)


def _frame(picture):
    return cv2.copyMakeBorder(picture, GAP, GAP, GAP, GAP, cv2.BORDER_CONSTANT, value=(255, 255, 255))
