"""What a run leaves in its folder: config, scores, event files and pictures.

workdir/config.json     the resolved config
workdir/metrics.json    scores of the newest evaluation
workdir/tensorboard/    event files
workdir/pictures/       image, truth and prediction side by side
workdir/checkpoints/    see `checkpoint`
"""

import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm

from ann_jax import metrics, visualize
from ann_jax.errors import DataError


class Report:
    """Writes into one workdir."""

    def __init__(
        self, workdir: Path, classes: Sequence[str], colors: Sequence[visualize.Color], first_step: int = 0
    ):
        """Opens the files; curves that a broken-off run drew from `first_step` on are dropped."""
        self._workdir, self._classes, self._colors = workdir, classes, colors
        (workdir / 'pictures').mkdir(parents=True, exist_ok=True)
        self._events = SummaryWriter(str(workdir / 'tensorboard'), purge_step=first_step or None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds points to the curves of the event file."""
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def picture(
        self, step: int, name: str, image: np.ndarray, truth: np.ndarray, prediction: np.ndarray
    ) -> None:
        """Writes one panel, over the one of an earlier evaluation."""
        panel = visualize.panel(image, truth, prediction, self._colors)
        file = self._workdir / 'pictures' / f'{name.replace("/", "_")}.png'
        Image.fromarray(panel).save(file)
        self._events.add_image(f'pictures/{name}', panel, step, dataformats='HWC')

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
        write_json(self._workdir / 'metrics.json', record)
        self.scalars(step, {f'{split}/{name}': value for name, value in means.items()})
        return scores

    def table(self, scores: metrics.Scores) -> str:
        """The scores as a table with the names of the classes."""
        return metrics.table(self._classes, scores)

    def close(self) -> None:
        """Writes out what the event file still buffers."""
        self._events.close()


class TrainLog:
    """Curves and progress bar of training, read from the device a few steps late so that it never waits."""

    # Steps under way on the device while the host prepares the next batch: enough to keep the device
    # busy, few enough not to pile up batches.
    IN_FLIGHT = 2

    def __init__(self, report: Report, bar: tqdm, schedule: Callable[[int], float], every: int):
        """Takes the learning rate per step, and how many steps lie between points of a curve."""
        self._report, self._bar, self._schedule, self._every = report, bar, schedule, every
        self._pending: deque = deque()

    def add(self, number: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of a step, still on the device, and logs those of the step `IN_FLIGHT` before.

        Raises:
            FloatingPointError: the loss of that step is not finite.
        """
        self._pending.append((number, metrics))
        if len(self._pending) > self.IN_FLIGHT:
            self._log(*self._pending.popleft())

    def flush(self) -> None:
        """Logs what is pending.

        Raises:
            FloatingPointError: the loss of a step is not finite.
        """
        while self._pending:
            self._log(*self._pending.popleft())

    def _log(self, number, metrics):
        loss = float(metrics['loss'])
        if not math.isfinite(loss):
            raise FloatingPointError(
                f'the loss is {loss} at step {number}: lower optim.learning_rate, or look at the batch; '
                'the newest checkpoint is from before it'
            )
        self._bar.update()
        if number % self._every == 0:
            values = {f'train/{name}': float(value) for name, value in metrics.items()}
            self._report.scalars(number, values | {'train/learning_rate': self._schedule(number - 1)})
            self._bar.set_postfix(loss=f'{loss:.3f}', accuracy=f'{values["train/pixel_accuracy"]:.3f}')


def write_json(path: Path, record: Mapping) -> None:
    """Replaces a file at once, so that a reader never sees half of it."""
    partial = path.with_suffix('.partial')
    partial.write_text(json.dumps(record, indent=2) + '\n')
    partial.replace(path)
