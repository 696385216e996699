"""Confusion matrix, scores and their table by definition."""

import numpy as np
import pytest

from ann_jax.errors import DataError
from ann_jax.evaluation.metrics import confusion_matrix, scores, table
from ann_jax.typing import IGNORE


@pytest.mark.parametrize('dtype', [np.uint8, np.int32])
@pytest.mark.parametrize('classes', [2, 19, 150])  # 150 * 150 does not fit the labels' uint8
def test_confusion_matrix_by_definition(classes, dtype):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, (2, 30, 41)).astype(dtype)
    labels[rng.random(labels.shape) < 0.3] = IGNORE
    predictions = rng.integers(0, classes, labels.shape).astype(np.int32)
    expected = np.zeros((classes, classes), int)
    for true, predicted in zip(labels.ravel(), predictions.ravel(), strict=True):
        if true != IGNORE:
            expected[true, predicted] += 1
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, classes), expected)


def test_confusion_matrix_of_ignored_pixels_only():
    labels = np.full((1, 4, 4), IGNORE, np.uint8)
    assert not np.asarray(confusion_matrix(labels, np.zeros((1, 4, 4), np.int32), 3)).any()


def test_scores_by_definition():
    rng = np.random.default_rng(1)
    true, predicted = rng.integers(0, 6, (2, 500))
    # 6 is neither true nor predicted, 7 is predicted but never true.
    predicted[:9] = 7
    confusion = np.zeros((8, 8), int)
    np.add.at(confusion, (true, predicted), 1)
    result = scores(confusion)
    iou = [
        ((true == k) & (predicted == k)).sum() / ((true == k) | (predicted == k)).sum() if k != 6 else np.nan
        for k in range(8)
    ]
    accuracy = [(predicted[true == k] == k).mean() for k in range(6)]
    np.testing.assert_allclose(result.iou, iou, rtol=1e-12)
    np.testing.assert_allclose(result.accuracy, [*accuracy, np.nan, np.nan], rtol=1e-12)
    # A class that is predicted but never true lowers the mean IoU and has no accuracy.
    assert result.iou[7] == 0
    assert result.miou == pytest.approx(np.sum(iou[:6]) / 7)
    assert result.mean_accuracy == pytest.approx(np.mean(accuracy))
    assert result.pixel_accuracy == pytest.approx((true == predicted).mean())


def test_scores_of_nothing_are_nan():
    result = scores(np.zeros((3, 3), np.int64))
    assert np.isnan([result.miou, result.mean_accuracy, result.pixel_accuracy, *result.iou]).all()


def test_scores_of_more_pixels_than_int32_counts():
    result = scores(np.array([[3_000_000_000, 1_000_000_000], [0, 4_000_000_000]]))
    np.testing.assert_allclose(result.iou, [0.75, 0.8])


def test_table():
    confusion = np.array([[6, 2, 0, 0], [0, 0, 0, 0], [0, 0, 8, 0], [0, 0, 0, 0]])
    assert table(['road', 'kerb', 'sky', 'moon'], scores(confusion)) == '\n'.join(
        [
            'class              IoU     acc',
            '------------------------------',
            'road             75.00   75.00',
            'kerb              0.00       -',
            'sky             100.00  100.00',
            'moon                 -       -',
            '------------------------------',
            'mean             58.33   87.50',
            'pixel accuracy           87.50',
        ]
    )


def test_table_needs_a_name_for_each_class():
    with pytest.raises(ValueError):
        table(['road'], scores(np.eye(2)))


@pytest.mark.parametrize(
    ('labels', 'predictions', 'message'),
    [
        ([[-1, 0]], [[0, 0]], 'the label -1'),
        ([[3, 0]], [[0, 0]], 'the label 3'),
        ([[0, 0]], [[0, 3]], 'predictions are .* from 0 to 3: give classes, 0 to 2'),
        ([[0, 0]], [[0, 255]], 'predictions are .* from 0 to 255'),
    ],
)
def test_what_would_be_counted_in_another_cell_is_refused(labels, predictions, message):
    """Label -1 and prediction K were counted in cells of other classes."""
    with pytest.raises(DataError, match=message):
        confusion_matrix(np.array(labels), np.array(predictions), 3)
