"""What a run leaves in its folder: config, scores, event files and pictures.

workdir/config.json     the resolved config
workdir/metrics.json    scores of the newest evaluation
workdir/tensorboard/    event files
workdir/pictures/       image, truth and prediction side by side
workdir/checkpoints/    see `checkpoint`
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

from ann_jax import metrics, visualize


class Report:
    """Writes into one workdir."""

    def __init__(self, workdir: Path, classes: Sequence[str], colors: Sequence[visualize.Color]):
        self._workdir, self._classes, self._colors = workdir, classes, colors
        (workdir / 'pictures').mkdir(parents=True, exist_ok=True)
        self._events = SummaryWriter(str(workdir / 'tensorboard'))

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

    def scores(self, step: int, split: str, confusion: np.ndarray) -> metrics.Scores:
        """Writes metrics.json and the curves, and returns the scores of a confusion matrix."""
        scores = metrics.scores(confusion)
        means = {
            'miou': scores.miou,
            'pixel_accuracy': scores.pixel_accuracy,
            'mean_accuracy': scores.mean_accuracy,
        }
        # JSON has no NaN: a class that is absent from truth and prediction is null.
        by_class = lambda values: {
            name: None if np.isnan(x) else float(x) for name, x in zip(self._classes, values, strict=True)
        }
        record = {
            'step': step,
            'split': split,
            **means,
            'iou': by_class(scores.iou),
            'accuracy': by_class(scores.accuracy),
        }
        write_json(self._workdir / 'metrics.json', record)
        self.scalars(step, {f'{split}/{name}': value for name, value in means.items()})
        return scores

    def table(self, scores: metrics.Scores) -> str:
        """The scores as a table with the names of the classes."""
        return metrics.table(self._classes, scores)

    def close(self) -> None:
        """Writes out what the event file still buffers."""
        self._events.close()


def write_json(path: Path, record: Mapping) -> None:
    """Replaces a file at once, so that a reader never sees half of it."""
    partial = path.with_suffix('.partial')
    partial.write_text(json.dumps(record, indent=2) + '\n')
    partial.replace(path)
