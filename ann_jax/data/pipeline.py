"""Batches for training and evaluation, read and augmented in threads or in worker processes (grain).

The training stream is a pure function of (source, augment, seed, batch size): step `n` has the same arrays
with any number of threads and workers, the shards of a batch together are the batch of a single shard, and
only the step number needs to be saved. Worker processes are spawned and start no JAX backend.
"""

import errno
import functools
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import grain
import numpy as np
from absl import flags

from ann_jax.data import shared
from ann_jax.data.augment.mixing import Mix
from ann_jax.data.augment.transforms import Augment
from ann_jax.data.canvases import Canvases, pad
from ann_jax.data.decode.rasters import Raster
from ann_jax.data.layout import check_sample
from ann_jax.errors import DataError
from ann_jax.typing import IGNORE, Batch, Sample, Source

logger = logging.getLogger(__name__)

T = TypeVar('T')
_SIGBUS = int(getattr(signal, 'SIGBUS', 0))  # Windows has none
_TRACKER = 'ignore:resource_tracker:UserWarning'


@dataclass(frozen=True)
class _RandomMap(grain.transforms.RandomMap):
    """Draws and applies the augmentation, and mixes in another sample."""

    augment: Augment
    mix: Mix | None

    def random_map(self, element: Sample, rng: np.random.Generator) -> Sample:
        height, width = element['label'].shape
        sample = self.augment.apply(element, self.augment.draw(rng, height, width, element['label']))
        sample['problem'] = element.get('problem', '')
        return self.mix.apply(sample, self.augment, rng) if self.mix else sample


class _Formed:
    """A source whose samples have the form of a `Sample`: others would be cut, padded or cast to bytes."""

    def __init__(self, source: Source):
        self._source = source

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index) -> Sample:
        sample = self._source[index]
        # Of a raster, a crop will be read.
        if isinstance(sample, dict) and isinstance(sample.get('image'), Raster):
            return sample
        return check_sample(sample, None, None, 'source')


class Replacing:
    """A source with unusable samples replaced by the next usable one, whose `problem` says why."""

    def __init__(self, source: Source, *, unlabelled: bool = False):
        """With `unlabelled`, replacements have no labels, so that they count in no score."""
        self._source, self._unlabelled = source, unlabelled

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index) -> Sample:
        """Reads a sample.

        Raises:
            DataError: no sample can be used.
        """
        problem = ''
        for step in range(len(self)):
            try:
                sample = self._source[(index + step) % len(self)]
                label = (
                    np.full_like(sample['label'], IGNORE) if step and self._unlabelled else sample['label']
                )
                return {**sample, 'label': label, 'problem': problem}
            except DataError as error:
                problem = problem or str(error)
        raise DataError(f'no sample can be used; the first: {problem}')


class ClosingIterator(Iterator[T]):
    """The elements of a grain reader; reports a worker that died, or has no room, as a `DataError`."""

    def __init__(self, reader):
        self._iterator = iter(reader)

    def __next__(self) -> T:
        try:
            return next(self._iterator)
        except OSError as error:
            if error.errno != errno.ENOSPC:  # reading needs no space but that of shared memory
                raise
            raise _no_room(error) from error
        except RuntimeError as error:
            if 'terminated unexpectedly' not in str(error):
                raise
            if f'exit code -{_SIGBUS}.' in str(error):  # on writing to memory that is not there
                raise _no_room(error) from error
            raise DataError(
                f'a data worker died ({error}), usually for lack of memory: use fewer loader.workers; '
                'the same command resumes'
            ) from error

    def close(self) -> None:
        """Ends the threads and the workers."""
        self._iterator.close()


def _no_room(error):
    try:
        room = shutil.disk_usage(shared.FOLDER)
        size = f', {room.total / 2**20:,.1f} MiB, {room.free / 2**20:,.1f} of them free'
    except OSError:
        size = ''
    reason = ' '.join(str(error).split())
    return DataError(
        f'the data workers have no room in shared memory (/dev/shm{size}; {reason[:80]}): make it larger, in '
        'docker with --shm-size=8g or --ipc=host, or read without workers, --config.loader.workers=0; the '
        'same command resumes'
    )


def train_batches(
    source,
    augment: Augment,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
    num_workers: int = 0,
    num_threads: int = 2,
    prefetch: int = 0,
    mix: Mix | None = None,
) -> ClosingIterator[Batch]:
    """Returns an endless iterator of augmented batches: every sample once an epoch, in a new order each time.

    Args:
        source: anything with `__len__` and `__getitem__(i) -> Sample`; picklable if there are workers.
        augment: the augmentation.
        batch_size: of all shards together.
        seed: for the order and the augmentation, 0 <= seed < 2**32.
        start_step: batches to skip, at no cost: the step to resume from.
        shard_index: this shard, which gets samples shard_index::shard_count of each batch.
        shard_count: number of shards.
        num_workers: worker processes, which need a `__main__` guard; 0 for none.
        num_threads: threads to read with, in each process.
        prefetch: batches to read ahead, in each process; fewer than threads leave some idle. 0: one for each
            thread, and 4 at least.
        mix: pastes parts of other samples; None for none.

    Returns:
        An iterator of batches: image (batch_size / shard_count, *crop, N) uint8, label (batch_size /
        shard_count, *crop) uint8, and the names of the samples. Its `close()` ends the threads and workers.

    Raises:
        ValueError: batch_size is not divisible by shard_count; the source is empty; start_step is negative.
        DataError: raised by the iterator if the source raises it or gives what is no `Sample`, or if a worker
            died.
    """
    local = _local_size(batch_size, shard_index, shard_count)
    if start_step < 0:
        raise ValueError(f'start_step={start_step}: must be the number of batches to skip')
    if not len(source):
        raise ValueError('the source has no samples to train on')
    if mix:
        mix = replace(mix, source=_Formed(mix.source))
    samples = grain.MapDataset.source(_Formed(source)).seed(seed).shuffle().repeat()
    samples = samples.random_map(_RandomMap(augment, mix))
    # Batched before the split over workers, which take whole batches in turn: their number changes nothing.
    batches = samples[shard_index::shard_count].batch(local, drop_remainder=True)[start_step:]
    ahead = prefetch or max(4, num_threads)
    return ClosingIterator(_read(batches, num_workers=num_workers, num_threads=num_threads, prefetch=ahead))


def eval_batches(
    source,
    *,
    batch_size: int,
    shard_index: int = 0,
    shard_count: int = 1,
    num_workers: int = 0,
    num_threads: int = 2,
    exact_sizes: bool = False,
) -> Generator[tuple[Batch, tuple[str, ...]]]:
    """Yields every sample once, in order, at its own size, at the top left of a canvas.

    Consecutive samples with the same canvas share a batch; an incomplete batch is filled up with image 0 and
    label IGNORE. Every shard reads all samples, because their sizes determine the batches, and keeps its own
    rows, so all shards yield the same number of batches with the same shapes.

    Args:
        source: as in `train_batches`.
        batch_size: of all shards together.
        shard_index: this shard, which gets the shard_index-th block of batch_size / shard_count rows.
        shard_count: number of shards.
        num_workers: as in `train_batches`.
        num_threads: threads to read with, in each process.
        exact_sizes: every size gets its own canvas, see `Canvases`.

    Yields:
        (batch, names): image (batch_size / shard_count, H, W, N) uint8, label (batch_size / shard_count, H,
        W) uint8, size (batch_size / shard_count, 2) int32; the names of the rows that are samples, which
        come first.

    Raises:
        ValueError: batch_size is not divisible by shard_count.
        DataError: if the source raises it, or gives what is no `Sample`.
    """
    local = _local_size(batch_size, shard_index, shard_count)
    samples = grain.MapDataset.source(_Formed(source))
    reader = _read(samples, num_workers=num_workers, num_threads=num_threads, prefetch=2 * num_threads)
    rows = slice(shard_index * local, (shard_index + 1) * local)
    return _eval_batches(reader, batch_size, rows, Canvases(exact_sizes))


def _eval_batches(reader, batch_size, rows, canvases):
    iterator: ClosingIterator[Sample] = ClosingIterator(reader)
    try:
        group: list[Sample] = []
        canvas: tuple[int, int] | None = None
        for sample in iterator:
            if sample.get('problem'):
                logger.warning('not evaluated: %s', sample['problem'])
            fit = canvases.fit(*sample['label'].shape)
            if group and (len(group) == batch_size or fit != canvas):
                yield _stack(group, rows, canvas)
                group = []
            canvas = fit
            group.append(sample)
        if group:
            yield _stack(group, rows, canvas)
    finally:
        iterator.close()


def _stack(group, rows, canvas):
    own, count = group[rows], rows.stop - rows.start
    sizes = [sample['label'].shape for sample in own] + [canvas] * (count - len(own))
    batch = Batch(
        image=pad([sample['image'] for sample in own], canvas, count, group[0]['image'].shape[2:]),
        label=pad([sample['label'] for sample in own], canvas, count, fill=IGNORE),
        size=np.array(sizes, np.int32),
    )
    return batch, tuple(sample['name'] for sample in own)


def _read(dataset, *, num_workers, num_threads, prefetch):
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    reader = dataset.to_iter_dataset(options)
    if num_workers:
        if not flags.FLAGS.is_parsed():  # grain reads its own, and a script may be no absl app
            flags.FLAGS.mark_as_parsed()
        # Batches on their way when the workers end are removed by Python's tracker of shared memory, which
        # would warn of them at the end of each run. It is a process that gets these options.
        if _TRACKER not in sys.warnoptions:
            sys.warnoptions.append(_TRACKER)
        start = functools.partial(_start_worker, shared.claim())
        reader = reader.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers), start)
    return reader


def _start_worker(name, _index, _count):
    """Keeps a worker alive when all processes of a run get a signal, but not longer than the run."""
    shared.name_segments(name)
    run = os.getppid()

    def watch():
        while os.getppid() == run:
            time.sleep(1)
        os._exit(1)  # the run was killed

    def end_later(*_):
        timer = threading.Timer(60, os._exit, (143,))
        timer.daemon = True
        timer.start()

    threading.Thread(target=watch, daemon=True).start()
    # The run still needs batches to finish its step; it ends the workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_later)


def _local_size(batch_size, shard_index, shard_count):
    """Returns the number of rows of a batch in one shard."""
    if not 0 <= shard_index < shard_count:
        raise ValueError(f'shard_index {shard_index} is not in 0..{shard_count - 1}')
    if batch_size < 1 or batch_size % shard_count:
        below = batch_size // shard_count * shard_count
        near = f'{below} or {below + shard_count}' if below > 0 else f'{shard_count}'
        raise ValueError(f'batch_size {batch_size} is not divisible among {shard_count} shards: try {near}')
    return batch_size // shard_count
