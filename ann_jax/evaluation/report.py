"""Writes scores and pictures of an evaluation into a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ann_jax.errors import DataError
from ann_jax.evaluation import metrics
from ann_jax.inference.pictures import Color, panel
from ann_jax.runs.record import Record


class Report:
    """Writes evaluations into the record of a run."""

    def __init__(
        self,
        record: Record,
        classes: Sequence[str],
        colors: Sequence[Color],
        protocol: Mapping[str, Any],
        name: str = '',
    ):
        """Prepares to write.

        Args:
            record: of the run.
            classes: of the dataset.
            colors: of the classes.
            protocol: how the scores are made, which is written beside them.
            name: of an evaluation other than those of the training, which is kept apart from these; or ''.
        """
        self._record, self._classes, self._colors = record, classes, colors
        self._protocol, self._name = protocol, name

    def picture(
        self, step: int, name: str, image: np.ndarray, truth: np.ndarray, prediction: np.ndarray
    ) -> None:
        """Writes one panel, replacing that of an earlier evaluation."""
        name = f'{self._name} {name}' if self._name else name
        self._record.picture(step, name, panel(image, truth, prediction, self._colors))

    def scores(
        self, step: int, split: str, confusion: np.ndarray, categories: Sequence[str] = ()
    ) -> metrics.Scores:
        """Writes the file of metrics and the curves, and returns the scores of a confusion matrix.

        `categories` is the group of each class, if the benchmark scores groups.

        Raises:
            DataError: no pixel has a label.
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
            'protocol': dict(self._protocol),
            **means,
            'iou': by_class(scores.iou),
            'accuracy': by_class(scores.accuracy),
        }
        if categories:
            record['categories'] = by_name(scores.categories.items())
        self._record.metrics(record, self._name)
        curves = f'{split} ({self._name})' if self._name else split
        self._record.scalars(step, {f'{curves}/{name}': value for name, value in means.items()})
        self._record.text(step, f'{curves}/scores', f'```\n{self.table(scores)}\n```')
        return scores

    def table(self, scores: metrics.Scores) -> str:
        """The scores as a table with class names."""
        return metrics.table(self._classes, scores)
