"""What a run leaves in its folder: config, scores, event files and pictures.

workdir/config.json     the resolved config
workdir/metrics.json    scores of the newest evaluation
workdir/tensorboard/    event files
workdir/pictures/       image, truth and prediction side by side
workdir/checkpoints/    see `checkpoint`
workdir/log.txt         see `workdir`
"""

import contextlib
import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tqdm import tqdm

from ann_jax import metrics, visualize
from ann_jax.errors import DataError
from ann_jax.workdir import note, writing

logger = logging.getLogger(__name__)


class Report:
    """Writes into one workdir; every method that writes raises SaveError where it cannot."""

    def __init__(
        self,
        workdir: Path,
        classes: Sequence[str],
        colors: Sequence[visualize.Color],
        first_step: int = 0,
        silent: bool = False,
    ):
        """Opens the files; curves that a broken-off run drew from `first_step` on are dropped.

        Args:
            workdir: the folder.
            classes, colors: of the dataset.
            first_step: the first that this process draws.
            silent: write nothing, as all but one of several processes.
        """
        self._workdir, self._classes, self._colors = workdir, classes, colors
        self._silent = silent
        if not silent:
            with writing(workdir):
                (workdir / 'pictures').mkdir(parents=True, exist_ok=True)
                self._events = _Events(workdir / 'tensorboard', first_step)

    def config(self, config: Mapping) -> None:
        """Writes config.json."""
        if not self._silent:
            with writing(self._workdir):
                write_json(self._workdir / 'config.json', config)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds points to the curves of the event file."""
        if self._silent:
            return
        with writing(self._workdir):
            self._events.add(step, [summary.scalar(name, value) for name, value in values.items()])

    def picture(
        self, step: int, name: str, image: np.ndarray, truth: np.ndarray, prediction: np.ndarray
    ) -> None:
        """Writes one panel, over the one of an earlier evaluation."""
        if self._silent:
            return
        panel = visualize.panel(image, truth, prediction, self._colors)
        file = self._workdir / 'pictures' / f'{name.replace("/", "_")}.png'
        with writing(self._workdir):
            Image.fromarray(panel).save(file)
            self._events.add(step, [summary.image(f'pictures/{name}', panel, dataformats='HWC')])

    def scores(
        self, step: int, split: str, confusion: np.ndarray, categories: Sequence[str] = ()
    ) -> metrics.Scores:
        """Writes metrics.json and the curves, and returns the scores of a confusion matrix.

        `categories` holds the group of each class, where the benchmark scores groups too.

        Raises:
            DataError: no pixel was labelled.
        """
        if not confusion.any():
            raise DataError(f'no pixel of the split {split!r} has a label to score: evaluate one that has')
        scores = metrics.scores(confusion, categories)
        means = {
            'miou': scores.miou,
            'pixel_accuracy': scores.pixel_accuracy,
            'mean_accuracy': scores.mean_accuracy,
        }
        if categories:
            means['category_miou'] = scores.category_miou
        # JSON has no NaN: a class that is absent from truth and prediction is null.
        by_name = lambda items: {name: None if np.isnan(x) else float(x) for name, x in items}
        by_class = lambda values: by_name(zip(self._classes, values, strict=True))
        record = {
            'step': step,
            'split': split,
            **means,
            'iou': by_class(scores.iou),
            'accuracy': by_class(scores.accuracy),
        }
        if categories:
            record['categories'] = by_name(scores.categories.items())
        if not self._silent:
            with writing(self._workdir):
                write_json(self._workdir / 'metrics.json', record)
        self.scalars(step, {f'{split}/{name}': value for name, value in means.items()})
        return scores

    def table(self, scores: metrics.Scores) -> str:
        """The scores as a table with the names of the classes."""
        return metrics.table(self._classes, scores)

    def close(self) -> None:
        """Writes out what the event file still buffers."""
        if not self._silent:
            with writing(self._workdir):
                self._events.close()


class _Events:
    """An event file for TensorBoard, written at once.

    Not tensorboardX's SummaryWriter: it writes in a thread, and where that fails, as on a full disk, the
    run waits for it for ever.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / 'events'))
        if first_step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(step=first_step, session_log=start))

    def add(self, step: int, summaries: Iterable[Any]) -> None:
        for each in summaries:
            self._write(event_pb2.Event(step=step, summary=each))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, event):
        event.wall_time = time.time()
        self._file.write_event(event)


class Clock:
    """Seconds spent on each of several things since they were last asked for."""

    def __init__(self):
        self._spent: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, what: str):
        """Counts the time inside as spent on `what`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spent[what] = self._spent.get(what, 0.0) + time.perf_counter() - start

    def take(self, what: str) -> float:
        """Seconds spent on `what` since the last time that this was asked."""
        return self._spent.pop(what, 0.0)


class TrainLog:
    """Curves and progress bar of training, read from the device a few steps late so that it never waits.

    Attributes:
        clock: where the run counts the time it waits for data, under 'data'.
        stop: whether a process was asked to stop when one of the steps read so far began; the same in all.
        skipped: steps left out because they were not finite.
        replaced: samples that could not be used.
    """

    # Steps under way on the device while the host prepares the next batch: enough to keep the device
    # busy, few enough not to pile up batches.
    IN_FLIGHT = 2

    def __init__(
        self,
        report: Report,
        bar: tqdm,
        schedule: Callable[[int], float],
        every: int,
        newest: Callable[[], int | None] = lambda: None,
    ):
        """Takes learning rate by step, steps between points of a curve, and the newest checkpoint."""
        self._report, self._bar, self._schedule, self._every = report, bar, schedule, every
        self._newest = newest
        self._pending: deque = deque()
        self._since, self._steps = time.perf_counter(), 0
        self.clock, self.stop, self.skipped, self.replaced = Clock(), False, 0, 0

    def add(self, number: int, metrics: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """Takes the metrics of a step, still on the device, and logs those of the step `IN_FLIGHT` before.

        Raises:
            FloatingPointError: the loss or gradient of that step is not finite, and it was not left out.
        """
        for name, problem in zip(batch['name'], batch['problem'], strict=True):
            if problem:
                self.replaced += 1
                logger.warning('step %d: %s instead of: %s', number, name, problem)
        self._pending.append((number, metrics, batch['name']))
        if len(self._pending) > self.IN_FLIGHT:
            self._log(*self._pending.popleft())

    def flush(self) -> None:
        """Logs what is pending.

        Raises:
            FloatingPointError: as in `add`.
        """
        while self._pending:
            self._log(*self._pending.popleft())

    def seconds_per_step(self) -> tuple[float, float]:
        """Time a step took since this was last asked, and how much of it was waiting for data."""
        now, steps = time.perf_counter(), max(self._steps, 1)
        spent = (now - self._since) / steps, self.clock.take('data') / steps
        self._since, self._steps = now, 0
        return spent

    def restart(self) -> None:
        """Starts the time of `seconds_per_step` anew, so that what has passed counts for no step."""
        self.seconds_per_step()

    def _log(self, number, metrics, names):
        values = {name: float(value) for name, value in metrics.items()}
        self.stop = self.stop or bool(values.pop('stop', 0))
        self._refuse(number, values, names)
        self._steps += 1
        self._bar.update()
        if number % self._every == 0:
            values = {f'train/{name}': value for name, value in values.items()}
            self._report.scalars(number, values | {'train/learning_rate': self._schedule(number - 1)})
            loss, accuracy = values['train/loss'], values['train/pixel_accuracy']
            note('step %d: loss %.6g, pixel accuracy %.4f', number, loss, accuracy)
            self._bar.set_postfix(loss=f'{loss:.3f}', accuracy=f'{accuracy:.3f}')

    def _refuse(self, number, values, names):
        if math.isfinite(values['loss']) and math.isfinite(values['gradient_norm']):
            return
        what = f'the loss is {values["loss"]}, the norm of the gradient {values["gradient_norm"]}'
        where = f'at step {number}, of the samples {", ".join(map(str, names))}'
        if values.get('skipped'):
            self.skipped += 1
            logger.warning('%s %s: step left out, the %dth', what, where, self.skipped)
            return
        newest = self._newest()
        raise FloatingPointError(
            f'{what} {where}: lower optim.learning_rate, look at these samples, or leave such steps out '
            'with --config.train.not_finite=skip; '
            + (f'the last good checkpoint is of step {newest}' if newest else 'there is no checkpoint yet')
        )


def write_json(path: Path, record: Mapping) -> None:
    """Replaces a file at once, so that a reader never sees half of it."""
    partial = path.with_suffix('.partial')
    partial.write_text(json.dumps(record, indent=2) + '\n')
    partial.replace(path)
