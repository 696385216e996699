"""What an evaluation leaves for the page of a run, small enough to keep.

evaluation/confusion.csv    pixels by true class (rows) and predicted class
evaluation/images.csv       scores of each image
evaluation/details.json     classes, colours, versions, date, duration, and the images below
evaluation/worst-1.jpg      one of the best or worst images, at most 640 pixels wide and high
evaluation/worst-1-truth.png, worst-1-prediction.png    its class maps
"""

import csv
import io
import json
import logging
import platform
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import numpy as np
from PIL import Image

from ann_jax import __version__
from ann_jax.evaluation.samples import ImageScore, Kept, Samples
from ann_jax.files import replacing, write_csv, write_json, writing
from ann_jax.inference.lettering import Color
from ann_jax.inference.pictures import present

logger = logging.getLogger(__name__)

_PICTURE = re.compile(r'(best|worst)-\d+(-truth|-prediction)?\.(png|jpg)')


class Details(NamedTuple):
    """The details of one evaluation, as far as they could be read."""

    classes: tuple[str, ...] = ()
    colors: tuple[Color, ...] = ()
    confusion: np.ndarray | None = None  # (K, K) int64
    images: int = 0
    about: dict[str, Any] = {}  # date, seconds, versions, device
    samples: dict[str, list[Kept]] = {}  # 'best' and 'worst'


def write_details(
    folder: Path,
    classes: Sequence[str],
    colors: Sequence[Color],
    confusion: np.ndarray,
    samples: Samples,
    seconds: float,
) -> None:
    """Replaces the details of an evaluation.

    Args:
        folder: is made if it is missing.
        classes: names.
        colors: RGB of each.
        confusion: (K, K), rows are true classes.
        samples: its images.
        seconds: that it took.

    Raises:
        SaveError: a file cannot be written.
    """
    kept = {
        f'{kind}-{number}': sample
        for kind, some in (('worst', samples.worst()), ('best', samples.best()))
        for number, sample in enumerate(some, 1)
    }
    with writing(folder):
        for file in folder.iterdir() if folder.is_dir() else ():
            if _PICTURE.fullmatch(file.name):
                file.unlink()
    rows = ([name, *counts] for name, counts in zip(classes, confusion.tolist(), strict=True))
    write_csv(folder / 'confusion.csv', ['truth / prediction', *classes], rows)
    write_csv(folder / 'images.csv', ImageScore._fields, samples.scores)
    for stem, sample in kept.items():
        with replacing(folder / f'{stem}.jpg') as draft:
            Image.fromarray(sample.image).save(draft, quality=90)
        for name, ids in (('truth', sample.truth), ('prediction', sample.prediction)):
            picture = Image.fromarray(ids, 'P')
            palette = np.zeros((256, 3), np.uint8)  # all of it, or fewer bits would cut IGNORE off
            palette[: len(colors)] = colors
            picture.putpalette(palette.tobytes())
            with replacing(folder / f'{stem}-{name}.png') as draft:
                picture.save(draft)
    device = jax.devices()[0]
    versions = {'ann_jax': __version__, 'jax': jax.__version__, 'flax': flax.__version__}
    about = {
        'date': datetime.now().astimezone().isoformat(timespec='seconds'),
        'seconds': round(seconds, 3),
        'device': f'{jax.device_count()} x {device.device_kind} ({device.platform})',
        'versions': {**versions, 'python': platform.python_version()},
        'platform': platform.platform(),
    }
    record = {'about': about, 'images': samples.images, 'classes': classes, 'colors': colors}
    record['samples'] = {stem: sample.score._asdict() for stem, sample in kept.items()}
    write_json(folder / 'details.json', record)


def read_details(folder: Path) -> Details:
    """Reads what `write_details` wrote; what is missing or not understood is left out."""
    try:
        record = json.loads((folder / 'details.json').read_text(encoding='utf-8'))
        classes = tuple(record['classes'])
        colors = tuple((int(r), int(g), int(b)) for r, g, b in record['colors'])
        table = io.StringIO((folder / 'confusion.csv').read_text(encoding='utf-8'), newline='')
        confusion = np.array([row[1:] for row in list(csv.reader(table))[1:]], np.int64)
        if not len(classes) == len(colors) == len(confusion) == confusion.shape[1]:
            raise ValueError('classes, colours and matrix do not fit')
        samples: dict[str, list[Kept]] = {'best': [], 'worst': []}
        for stem, score in record['samples'].items():
            files = (folder / f'{stem}{ending}' for ending in ('.jpg', '-truth.png', '-prediction.png'))
            image, truth, prediction = map(_pixels, files)
            if not image.shape[:2] == truth.shape == prediction.shape:
                raise ValueError(f'the pictures of {stem} are of different sizes')
            if max(map(max, map(present, (truth, prediction)))) >= len(classes):
                raise ValueError(f'the pictures of {stem} show other classes')
            samples[stem.split('-')[0]].append(Kept(ImageScore(**score), image, truth, prediction))
        return Details(classes, colors, confusion, record['images'], record['about'], samples)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if folder.is_dir():
            logger.warning('%s cannot be read (%s): no page shows its matrix and images', folder, error)
        return Details()


def _pixels(path):
    with path.open('rb') as file, Image.open(file) as image:
        return np.array(image)
