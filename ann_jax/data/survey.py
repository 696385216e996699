"""Reads every sample of a source in parallel; collects errors and statistics."""

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from ann_jax.errors import DataError
from ann_jax.typing import IGNORE, Source


class Survey(NamedTuple):
    """Errors and statistics of a source; samples with errors are not counted."""

    errors: list[str]
    pixels: np.ndarray  # (K + 1,) int64: pixels per class, and last the ignored ones
    images: np.ndarray  # (K + 1,) int64: images that contain the class
    sizes: Counter[tuple[int, int]]  # (height, width) -> images
    blank: list[str]  # names of samples of which no pixel has a class


def survey(
    source: Source, progress: Callable[[Iterable], Iterable] = iter, *, num_threads: int = 2
) -> Survey:
    """Reads every sample, and collects errors instead of stopping at the first.

    Args:
        source: any source; a `FolderSource` built with `strict=False` adds its pairing problems. If it has
            `examine()`, this reads the samples.
        progress: wraps the iterable, like `tqdm`.
        num_threads: samples read at a time.
    """
    classes = source.dataset.num_classes
    errors, blank = list(source.problems), []
    sizes: Counter[tuple[int, int]] = Counter()
    pixels, images = np.zeros((2, classes + 1), np.int64)
    pool = ThreadPoolExecutor(num_threads)
    try:
        for future in progress([pool.submit(_count, source, i, classes) for i in range(len(source))]):
            try:
                name, size, counts = future.result()
            except DataError as e:
                errors.append(str(e))
                continue
            sizes[size] += 1
            pixels += counts
            images += counts > 0
            if not counts[:-1].any():
                blank.append(name)
    finally:
        pool.shutdown(cancel_futures=True)
    return Survey(errors, pixels, images, sizes, blank)


def _count(source, index, classes):
    sample = getattr(source, 'examine', source.__getitem__)(index)
    counts = np.bincount(sample['label'].ravel(), minlength=256)
    return sample['name'], sample['label'].shape, np.append(counts[:classes], counts[IGNORE])
