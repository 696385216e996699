"""Confusion matrix and scores: IoU per class and category, mIoU, pixel accuracy and mean accuracy."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32, Integer, Num

from ann_jax.data.layout import check_pixels, known
from ann_jax.errors import DataError
from ann_jax.kernels import Array
from ann_jax.typing import IGNORE


class Scores(NamedTuple):
    """Fractions from 0 to 1.

    NaN and left out of the means: the IoU of a class that is absent from both truth and prediction, and the
    accuracy of one that is absent from the truth.
    """

    iou: Float[np.ndarray, ' K']
    accuracy: Float[np.ndarray, ' K']  # fraction of the true pixels of a class that were found
    miou: float
    mean_accuracy: float
    pixel_accuracy: float
    categories: Mapping[str, float] = {}  # IoU of groups of classes, if the benchmark scores them
    category_miou: float = float('nan')


def confusion_matrix(
    labels: Integer[Array, '*pixels'], predictions: Integer[Array, '*pixels'], num_classes: int
) -> Int32[jax.Array, 'K K']:
    """Counts pixels by true and predicted class; ignored pixels are left out.

    Args:
        labels: below `num_classes`, or IGNORE.
        predictions: below `num_classes`.
        num_classes: K.

    Returns:
        Counts; rows are true classes. Sum over batches in int64 on the host.

    Raises:
        DataError: labels and predictions differ in shape, or are no integers; or, if they are not traced, a
            label or a prediction is no class.
    """
    check_pixels(labels, predictions.shape, num_classes)
    if (values := known(predictions)) is not None and values.size:
        low, high = values.min(), values.max()
        if values.dtype.kind not in 'iu' or low < 0 or high >= num_classes:
            raise DataError(
                f'predictions are {values.dtype} from {low} to {high}: give classes, 0 to {num_classes - 1}'
            )
    valid = labels != IGNORE
    cell = jnp.where(valid, labels.astype(jnp.int32) * num_classes + predictions, num_classes**2)
    counts = jnp.zeros(num_classes**2 + 1, jnp.int32).at[cell.ravel()].add(1)
    return counts[:-1].reshape(num_classes, num_classes)


def count_pixels(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """`confusion_matrix` of one image on the host: (H, W) uint8 each -> (K, K) int64."""
    cell = labels.astype(np.int32) * num_classes + predictions
    cell[labels == IGNORE] = num_classes**2
    counts = np.bincount(cell.ravel(), minlength=num_classes**2 + 1)
    return counts[:-1].reshape(num_classes, num_classes)


def scores(confusion: Num[Array, 'K K'], categories: Sequence[str] = ()) -> Scores:
    """Computes scores from a confusion matrix.

    Args:
        confusion: rows are true classes.
        categories: the group of each of the K classes, or () for no groups. As in cityscapesScripts, a pixel
            is a hit for its group if any class of the group is predicted.
    """
    confusion = np.asarray(confusion, np.float64)
    hits, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid='ignore', divide='ignore'):
        iou = hits / (true + predicted - hits)
        accuracy = hits / true
        pixel_accuracy = hits.sum() / confusion.sum()
    groups = list(dict.fromkeys(categories))
    member = np.array([[category == group for category in categories] for group in groups], np.float64)
    by_group = scores(member @ confusion @ member.T).iou if groups else np.zeros(0)
    return Scores(
        iou,
        accuracy,
        _mean(iou),
        _mean(accuracy),
        float(pixel_accuracy),
        dict(zip(groups, by_group.tolist(), strict=True)),
        _mean(by_group),
    )


def _mean(values: Float[np.ndarray, ' K']) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float('nan')


def table(classes: Sequence[str], result: Scores) -> str:
    """A text table: IoU and accuracy of each class in percent, the means, and IoU of each category."""
    width = max(map(len, (*classes, *result.categories, 'pixel accuracy')))
    percent = lambda x: '     -' if np.isnan(x) else f'{100 * x:6.2f}'
    lines = [f'{"class":<{width}}     IoU     acc', '-' * (width + 16)]
    lines += [
        f'{name:<{width}}  {percent(iou)}  {percent(accuracy)}'
        for name, iou, accuracy in zip(classes, result.iou, result.accuracy, strict=True)
    ]
    lines += [
        '-' * (width + 16),
        f'{"mean":<{width}}  {percent(result.miou)}  {percent(result.mean_accuracy)}',
        f'{"pixel accuracy":<{width}}          {percent(result.pixel_accuracy)}',
    ]
    if result.categories:
        lines += ['', f'{"category":<{width}}     IoU', '-' * (width + 8)]
        lines += [f'{name:<{width}}  {percent(iou)}' for name, iou in result.categories.items()]
        lines += ['-' * (width + 8), f'{"mean":<{width}}  {percent(result.category_miou)}']
    return '\n'.join(lines)
