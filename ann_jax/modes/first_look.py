"""A look at some labels before the first step, which tells what would be learned wrong."""

import logging
import time

import numpy as np
from ml_collections import ConfigDict

from ann_jax import build
from ann_jax.data.own import findings as judge
from ann_jax.data.own.survey import survey
from ann_jax.data.readers import cores
from ann_jax.errors import DataError
from ann_jax.parallel.processes import all_agree, is_main
from ann_jax.typing import Source

logger = logging.getLogger(__name__)

_LABELS = 64  # per split
_IMAGES = 8  # of these, whose image is decoded too
_OWN = 16  # samples of a source that decodes both at once
_GROWTH = 8  # of the sample, where the first would end the run


def first_look(config: ConfigDict, source: Source, eval_source: Source) -> None:
    """Counts the classes in samples of both splits, evenly drawn; logs warnings. All processes must call it.

    Raises:
        DataError: training would be in vain, or a sample cannot be used and `loader.bad_samples` is stop.
    """
    refusal = None
    if is_main():
        try:
            _look(config, source, eval_source)
        except DataError as error:
            refusal = error
    if not all_agree(refusal is None):
        raise refusal or DataError('process 0 cannot train with these labels: see its message')


def _look(config, source, eval_source):
    if getattr(source.dataset, 'name', '') == 'scenes':  # drawn as they should be
        return
    start = time.perf_counter()
    splits = {_name(source, 'train'): source}
    if not (eval_source is source or _files(source) and _files(eval_source) == _files(source)):
        name = _name(eval_source, 'eval')
        splits[f'{name} to evaluate' if name in splits else name] = eval_source
    told, surveys = [], []
    for split, samples in splits.items():
        found, news = _sample(config, split, samples, train=samples is source)
        if found.errors and config.loader.bad_samples == 'stop':
            raise DataError(found.errors[0])
        told += [
            *news,
            *judge.repeats(split, judge.same_files(_files(samples)) or judge.same_contents(found)),
        ]
        surveys.append(found)
    if len(surveys) == 2:
        paths = sorted(set(_files(source)) & set(_files(eval_source)))
        both = [(path, path) for path in paths] or judge.contents_in_both(*surveys)
        told += judge.shared(list(splits), both)
        told += judge.other_palettes(list(splits), *surveys)
    for finding in told:
        if not finding.fatal:
            logger.warning('%s', finding.text)
    fatal = [finding.text for finding in told if finding.fatal]
    if fatal:
        raise DataError('; '.join(fatal))
    counts = [f'{found.read} of {found.total} {split}' for split, found in zip(splits, surveys, strict=True)]
    logger.info('looked at %s labels in %.1f s', ' and '.join(counts), time.perf_counter() - start)


def _sample(config, split, source, train):
    """Surveys an even sample of a split, and all of it before calling it unusable."""
    files = hasattr(source, 'look')
    threads = build.readers(config).threads
    if files:
        threads = max(threads, cores())
    count = _LABELS if files else _OWN
    images = _IMAGES
    while True:
        indices = _evenly(len(source), count)
        decode = indices[:: len(indices) // images + 1] if images else []
        found = survey(source, num_threads=threads, indices=indices, decode=decode)
        told = judge.findings(split, source.dataset, found, train=train)
        if count >= len(source) or not any(finding.fatal for finding in told):
            return found, told
        count, images = count * _GROWTH, 0


def _evenly(total, count):
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


def _name(source, default):
    return getattr(source, 'split', '') or default


def _files(source):
    return getattr(source, 'image_files', list)()
