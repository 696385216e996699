"""Samples from folders: finds and pairs the files of a split; decodes, checks, maps image and label.

The datasets themselves are the table of `classes.py`. What is wrong with a file is a `DataError` naming it.
"""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from ann_jax.data.classes import DATASETS, INVALID, Dataset
from ann_jax.errors import DataError, unknown
from ann_jax.typing import IGNORE, Sample, Source

# Several threads read samples at once: OpenCV's own threads on top would fight them for the same cores.
cv2.setNumThreads(0)

_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    Image.DecompressionBombError,
    cv2.error,
    struct.error,
    zlib.error,
)


class FolderSource:
    """Random access to the samples of one split of a dataset on disk.

    Attributes:
        dataset: the `Dataset`.
        split: name of the split.
        problems: what is wrong with the files' pairing, one text each; always empty when `strict`.
    """

    def __init__(self, dataset: Dataset, root: str | os.PathLike, split: str, *, strict: bool = True):
        """Finds and pairs the files.

        Raises:
            DataError: unknown split, missing root or folder, no images; and, when `strict`, an image without
                a label or a label without an image. Otherwise those are left out and described in `problems`.
        """
        if split not in dataset.splits:
            raise DataError(unknown(f'{dataset.name} split', split, dataset.splits))
        self.dataset, self.split = dataset, split
        self._root = os.path.expanduser(root or '')
        self._samples, self.problems = _pair_files(dataset, self._root, split)
        if strict and self.problems:
            more = len(self.problems) - 1
            raise DataError(self.problems[0] + (f' ({more} more such problems)' if more else ''))

    def __len__(self):
        return len(self._samples)

    def __getitem__(self, index) -> Sample:
        """Reads one sample.

        Raises:
            DataError: a file is unreadable or truncated, sizes differ, or the label has values that are not
                in the map.
        """
        name, image_path, label_path = self._samples[index]
        image_path, label_path = os.path.join(self._root, image_path), os.path.join(self._root, label_path)
        image = read_image(image_path)
        label = read_label(label_path, self.dataset)
        if image.shape[:2] != label.shape:
            (h, w), (lh, lw) = image.shape[:2], label.shape
            raise DataError(
                f'{image_path} is {w}x{h} but its label {label_path} is {lw}x{lh}: make them the same size'
            )
        return Sample(name=name, image=image, label=label)


class Head:
    """The first `count` samples of a source."""

    def __init__(self, source: Source, count: int):
        self.dataset, self.problems = source.dataset, source.problems
        self._source, self._count = source, count

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return self._source[index]


def open_source(name: str, *, root: str | os.PathLike, split: str, strict: bool = True) -> FolderSource:
    """Returns the source of a split of the dataset `name` of DATASETS under `root`.

    Raises:
        DataError: as `FolderSource`, or the name is unknown.
    """
    if name not in DATASETS:
        raise DataError(unknown('dataset', name, DATASETS))
    return FolderSource(DATASETS[name], root, split, strict=strict)


def _pair_files(dataset, root, split):
    """Returns [(name, image path, label path)] with paths relative to the root, and [problem]."""
    if not root or not os.path.isdir(root):
        raise DataError(
            f'{dataset.name}: no folder {root!r}; set --config.dataset.root to the folder that holds '
            f'{dataset.layout}'
        )
    samples, problems = [], []
    parts = dataset.splits[split]
    for part in parts:
        image_dir, label_dir = dataset.images.format(part=part), dataset.labels.format(part=part)
        images = _list_files(dataset, root, image_dir, dataset.image_endings)
        labels = _list_files(dataset, root, label_dir, (dataset.label_ending,))
        keys, strays = sorted(images), sorted(labels.keys() - images.keys())
        if dataset.lists:
            keys, strays = _read_list(dataset, root, dataset.lists.format(part=part)), []
        if not keys:
            raise DataError(
                f'{dataset.name}: no samples in {os.path.join(root, image_dir)}: expected {dataset.layout}'
            )
        for key in keys:
            if key in images and key in labels:
                name = f'{part}/{key}' if len(parts) > 1 else key
                samples.append((name, images[key], labels[key]))
            elif key in images:
                missing = os.path.join(root, label_dir, key + dataset.label_ending)
                problems.append(f'image {os.path.join(root, images[key])} has no label: add {missing}')
            else:
                missing = os.path.join(root, image_dir, key + dataset.image_endings[0])
                problems.append(f'no image {missing}: add it, or take {key} off the list or the labels')
        for key in strays:
            missing = os.path.join(root, image_dir, key + dataset.image_endings[0])
            problems.append(f'label {os.path.join(root, labels[key])} has no image: add {missing}')
    return samples, problems


def _list_files(dataset, root, folder, endings):
    """Returns {path below `folder` without its ending: path below `root`} of the files with an ending."""
    top = os.path.join(root, folder)
    if not os.path.isdir(top):
        found = ', '.join(sorted(os.listdir(root))[:8]) or 'nothing'
        raise DataError(
            f'{dataset.name}: no folder {top}; --config.dataset.root should hold {dataset.layout}; '
            f'it holds {found}'
        )
    files = {}
    for where, _, names in os.walk(top, followlinks=True):
        for name in names:
            ending = next((e for e in endings if name.endswith(e)), None)
            if ending is None or name.startswith('.'):
                continue
            path = os.path.join(where, name)
            key = Path(path.removesuffix(ending)).relative_to(top).as_posix()
            if key in files:
                raise DataError(
                    f'{path} and {os.path.join(root, files[key])} have one name: remove one of them'
                )
            files[key] = os.path.relpath(path, root)
    return files


def _read_list(dataset, root, path):
    path = os.path.join(root, path)
    if not os.path.isfile(path):
        raise DataError(f'{dataset.name}: no list {path}; --config.dataset.root should hold {dataset.layout}')
    return Path(path).read_text().split()


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Returns the image file as (H, W, 3) uint8 RGB, upright by its EXIF orientation.

    Raises:
        DataError: it cannot be read, or is truncated.
    """
    try:
        data = Path(path).read_bytes()
        # OpenCV is faster, but imread, and imdecode of some releases, fill what a truncated JPEG lacks with
        # grey: so it gets streams that end as they should, and Pillow, which raises, judges the rest.
        if data.endswith((b'\xff\xd9', b'IEND\xaeB`\x82')):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
            if image is not None:
                return image
        with Image.open(io.BytesIO(data)) as image:
            return np.array(ImageOps.exif_transpose(image).convert('RGB'))
    except _DECODER_ERRORS as e:
        raise DataError(f'cannot read the image {path}: {e}; copy or download the file again') from e


def read_label(path: str | os.PathLike, dataset: Dataset) -> np.ndarray:
    """Returns the label file mapped to (H, W) uint8: class index, or IGNORE.

    Raises:
        DataError: it is unreadable or truncated, holds colours, or values that the dataset does not list.
    """
    try:
        # Not OpenCV: it turns the indices of a palette PNG into colours.
        with Image.open(path) as image:
            mode, raw = image.mode, np.array(image)
    except _DECODER_ERRORS as e:
        raise DataError(f'cannot read the label {path}: {e}; copy or download the file again') from e
    if raw.ndim != 2:
        raise DataError(
            f'label {path} holds colours ({mode}), not class values: save it as a greyscale or palette PNG '
            'of class values'
        )
    if raw.dtype == np.uint8:
        label = cv2.LUT(raw, dataset.lut)
        wrong = label == INVALID
    else:
        byte = raw.astype(np.uint8)
        label = cv2.LUT(byte, dataset.lut)
        wrong = (label == INVALID) | (raw != byte)
    if wrong.any():
        values, pixels = np.unique(raw[wrong], return_counts=True)
        found = ', '.join(
            f'{v} ({n} pixels)' for v, n in zip(values[:8].tolist(), pixels.tolist(), strict=False)
        )
        known = ', '.join(str(v) for v in np.flatnonzero(dataset.lut != INVALID))
        raise DataError(
            f'label {path} holds values that are not {dataset.name} labels: {found}'
            f'{" and more" if len(values) > 8 else ""}; relabel them, or choose the dataset that has them. '
            f'Known: {known}'
        )
    return label


def check_source(
    source: Source, progress: Callable[[Iterable], Iterable], *, num_threads: int = 2
) -> tuple[list[str], np.ndarray]:
    """Reads every sample of a source and collects what is wrong instead of stopping at the first.

    Args:
        source: any source; a `FolderSource` built with `strict=False` adds its pairing problems.
        progress: wraps the list that is walked, such as `tqdm`.
        num_threads: samples read at a time.

    Returns:
        (errors, counts): counts are pixels per class, (num_classes + 1,) int64, the last of ignored pixels.
        Samples with errors count nothing.
    """
    num_classes = source.dataset.num_classes
    errors, counts = list(source.problems), np.zeros(256, np.int64)
    pool = ThreadPoolExecutor(num_threads)
    try:
        for future in progress([pool.submit(_count_pixels, source, i) for i in range(len(source))]):
            try:
                counts += future.result()
            except DataError as e:
                errors.append(str(e))
    finally:
        pool.shutdown(cancel_futures=True)
    return errors, np.append(counts[:num_classes], counts[IGNORE])


def _count_pixels(source, index):
    return np.bincount(source[index]['label'].ravel(), minlength=256)
