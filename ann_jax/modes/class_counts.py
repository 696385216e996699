"""The pixels of each class in each training image, counted once in the life of a run."""

import io
import logging
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ann_jax import build
from ann_jax.data.frequencies import class_weights, count_classes
from ann_jax.data.readers import cores
from ann_jax.files import replacing
from ann_jax.parallel.processes import is_main
from ann_jax.typing import Source

logger = logging.getLogger(__name__)

FILE = 'class_counts.npy'


def class_counts(config: ConfigDict, source: Source, workdir: Path) -> np.ndarray | None:
    """Counts the pixels of each class in each sample.

    A run keeps them in its working directory, and counts again only until its first checkpoint, since labels
    may be mended before.

    Returns:
        (N, K) int64; None if no setting asks for them.

    Raises:
        DataError: a sample cannot be used, and `loader.bad_samples` is stop.
        SaveError: the file cannot be written.
    """
    if not _wanted(config):
        return None
    path = workdir / FILE
    shape = len(source), source.dataset.num_classes
    if path.is_file() and any((workdir / 'checkpoints').glob('[0-9]*')):
        try:
            counts = np.load(io.BytesIO(path.read_bytes()))
            if counts.shape == shape:
                return counts
        except (OSError, ValueError, EOFError):
            pass
        logger.warning('%s is not of these %d images and %d classes: it is made again', path, *shape)
    start = time.perf_counter()
    threads = max(build.readers(config).threads, cores())
    counts = count_classes(source, num_threads=threads, skip_bad=config.loader.bad_samples == 'skip')
    logger.info(
        'counted the pixels of the classes in %d labels in %.1f s', len(source), time.perf_counter() - start
    )
    if is_main():
        with replacing(path) as draft, open(draft, 'wb') as file:
            np.save(file, counts)
    return counts


def _wanted(config):
    c = config.augment
    balance = config.loss.balance != 'none' and not config.loss.class_weights
    return balance or config.dataset.repeat_threshold or c.rare_crop or c.mix == 'copy_paste'


def set_class_weights(config: ConfigDict, counts: np.ndarray | None, source: Source) -> None:
    """Sets `loss.class_weights` as `loss.balance` says, unless the run has them already.

    Raises:
        ConfigError: see `class_weights`.
    """
    if counts is None or config.loss.balance == 'none' or config.loss.class_weights:
        return
    classes = source.dataset.classes
    config.loss.class_weights = class_weights(counts, config.loss.balance, classes)
    named = ', '.join(
        f'{name} {weight:g}' for name, weight in zip(classes, config.loss.class_weights, strict=True)
    )
    logger.info('loss.class_weights by loss.balance=%s: %s', config.loss.balance, named)
