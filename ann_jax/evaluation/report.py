"""Writes scores and pictures of an evaluation into a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ann_jax.errors import DataError
from ann_jax.evaluation import metrics
from ann_jax.evaluation.details import write_details
from ann_jax.evaluation.samples import Samples
from ann_jax.inference.lettering import Color
from ann_jax.inference.pictures import panel, scored, shown, small
from ann_jax.runs.record import Record

SIDE = 1024  # pixels of the longer side of an image in a panel


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
        miou = metrics.scores(metrics.count_pixels(truth, prediction, len(self._classes))).miou
        image, truth, prediction = (small(array, SIDE) for array in (shown(image), truth, prediction))
        picture = panel(image, truth, prediction, self._colors, self._classes, scored(name, miou))
        self._record.picture(step, f'{self._name} {name}' if self._name else name, picture)

    def scores(
        self,
        step: int,
        split: str,
        confusion: np.ndarray,
        categories: Sequence[str] = (),
        samples: Samples | None = None,
        seconds: float = 0.0,
    ) -> metrics.Scores:
        """Writes the file of metrics, the curves and, with samples, details for the page of the run.

        Args:
            step: of the weights.
            split: that was evaluated.
            confusion: (K, K), rows are true classes.
            categories: the group of each class, if the benchmark scores groups.
            samples: the images, of this process.
            seconds: that the evaluation took.

        Returns:
            The scores of the confusion matrix.

        Raises:
            DataError: no pixel has a label.
            SaveError: a file cannot be written.
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
        ious = by_class(scores.iou)
        record = {
            'step': step,
            'split': split,
            'protocol': dict(self._protocol),
            **means,
            'iou': ious,
            'accuracy': by_class(scores.accuracy),
        }
        if categories:
            record['categories'] = by_name(scores.categories.items())
        self._record.metrics(record, self._name)
        curves = f'{split} ({self._name})' if self._name else split
        points = means | {f'iou/{name}': x for name, x in ious.items() if x is not None}
        self._record.scalars(step, {f'{curves}/{name}': value for name, value in points.items()})
        self._record.text(step, f'{curves}/scores', f'```\n{self.table(scores)}\n```')
        folder = self._record.details(self._name)
        if samples is not None and folder is not None:
            write_details(folder, self._classes, self._colors, confusion, samples, seconds)
        return scores

    def table(self, scores: metrics.Scores) -> str:
        """The scores as a table with class names."""
        return metrics.table(self._classes, scores)
