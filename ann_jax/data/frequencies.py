"""How often the classes occur in the labels of a split, and what follows: weights, repeats, rarity."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ann_jax.data.labels import count_bytes
from ann_jax.data.own.survey import look
from ann_jax.errors import ConfigError, DataError
from ann_jax.ranges import check
from ann_jax.typing import Source

BALANCES = 'none', 'median', 'inverse', 'effective'


def count_classes(source: Source, *, num_threads: int = 2, skip_bad: bool = False) -> np.ndarray:
    """Counts the pixels of each class in each sample: (N, K) int64.

    Args:
        source: any source; images are not decoded if it can read labels alone.
        num_threads: samples read at a time.
        skip_bad: a sample that cannot be used counts as one without labels.

    Raises:
        DataError: a sample cannot be used.
    """
    classes = source.dataset.num_classes

    def count(index):
        try:
            label = _label(source, index)
        except DataError:
            if not skip_bad:
                raise
            return np.zeros(classes, np.int64)
        return count_bytes(label.astype(np.uint8, copy=False))[:classes]

    pool = ThreadPoolExecutor(num_threads)
    try:
        return np.stack(list(pool.map(count, range(len(source)))))
    finally:
        pool.shutdown(cancel_futures=True)


def _label(source, index):
    own = getattr(source, 'label', None)
    return own(index) if own else look(source, index, image=False, closely=False).label.classes


def class_weights(counts: np.ndarray, balance: str, classes: Sequence[str]) -> tuple[float, ...]:
    """Weights of the classes by their frequencies f, the shares of the labelled pixels.

    - median: the median of all frequencies over each, where a class's is taken over the samples that contain
      it (Eigen and Fergus 2015).
    - inverse: 1 / (K f).
    - effective: proportional to 1 / (1 - b ** n), where n is the number of the pixels of a class and
      b = 1 - K / (the number of all), with a mean of 1 (Cui et al. 2019, Eq. 2 to 4). Classes above the mean
      frequency get similar weights.

    Args:
        counts: as of `count_classes`.
        balance: one of `BALANCES`, except none.
        classes: their names, for errors.

    Raises:
        ConfigError: a class does not occur, or so rarely that its weight is not among those allowed.
    """
    pixels = counts.sum(0)
    if not pixels.all():
        absent = ', '.join(classes[k] for k in np.flatnonzero(pixels == 0)[:5])
        raise ConfigError(
            f'loss.balance={balance}: no training label has the classes {absent}, so their frequency is 0: '
            'give loss.class_weights yourself, and loss.balance=none, or leave these classes out of the '
            'dataset'
        )
    total = pixels.sum()
    if balance == 'median':
        frequency = pixels / (counts.sum(1)[:, None] * (counts > 0)).sum(0)
        weights = np.median(frequency) / frequency
    elif balance == 'inverse':
        weights = total / (len(pixels) * pixels)
    else:
        b = 1 - len(pixels) / total
        weights = 1 / -np.expm1(pixels * np.log(b))
        weights /= weights.mean()
    found = tuple(float(f'{weight:.6g}') for weight in weights)
    check('loss.class_weights', found)
    return found


def repeated(counts: np.ndarray, threshold: float, seed: int) -> np.ndarray:
    """Indices of the samples of an epoch in which those with rare classes come several times.

    A sample comes max(1, sqrt(threshold / f)) times, where f is the share of samples that contain its rarest
    class (LVIS: Gupta et al. 2019, Sec. 5.2). Fractions are rounded up or down by systematic sampling, once
    for all epochs, so that the sum is right.

    Args:
        counts: as of `count_classes`.
        threshold: f below which samples are repeated.
        seed: of the rounding.
    """
    held = counts > 0
    share = np.maximum(held.mean(0), 1 / len(counts))
    factors = np.maximum(1, np.where(held, np.sqrt(threshold / share), 0).max(1))
    offset = np.random.default_rng(seed).random()
    ends = np.floor(np.cumsum(factors) + offset).astype(np.int64)
    return np.repeat(np.arange(len(counts)), np.diff(ends, prepend=0))
