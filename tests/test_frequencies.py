"""Frequencies of classes, and the weights and repeats that follow, against their definitions."""

import logging
import math
import statistics

import numpy as np
import pytest
from test_history import change_facts, config_of, copy_of
from trees import open_source, write_tree

from ann_jax.data.frequencies import class_weights, count_classes, repeated
from ann_jax.data.layout import Dataset
from ann_jax.errors import ConfigError, DataError
from ann_jax.modes.class_counts import class_counts, set_class_weights
from ann_jax.modes.resume import keep_settings
from ann_jax.typing import IGNORE
from configs import scenes

NAMES = 'road', 'pole', 'sky'


class Labels:
    """Samples of chosen pixels per class, and as many ignored ones."""

    dataset = Dataset('labels', NAMES, ((0, 0, 0), (1, 1, 1), (2, 2, 2)))

    def __init__(self, counts):
        self.counts, self.read = counts, 0

    def __len__(self):
        return len(self.counts)

    def __getitem__(self, index):
        self.read += 1
        label = np.repeat([0, 1, 2, IGNORE], [*self.counts[index], 7]).astype(np.uint8)[None]
        return {'name': str(index), 'image': np.zeros((*label.shape, 3), np.uint8), 'label': label}


COUNTS = np.array([[60, 0, 40], [90, 10, 0], [30, 0, 20], [70, 5, 25]])


def test_counts(tmp_path):
    np.testing.assert_array_equal(count_classes(Labels(COUNTS)), COUNTS)
    written = write_tree('camvid', tmp_path)
    source = open_source('camvid', root=tmp_path, split='train')
    expected = [[(source[i]['label'] == k).sum() for k in range(11)] for i in range(len(source))]
    for path, _, _ in written['train']:
        path.write_bytes(b'')  # images are not read
    np.testing.assert_array_equal(count_classes(source), expected)
    written['train'][0][1].write_bytes(b'')
    with pytest.raises(DataError, match=written['train'][0][1].name):
        count_classes(source)
    assert count_classes(source, skip_bad=True)[0].sum() == 0


def test_weights_by_their_definitions():
    pixels, total = COUNTS.sum(0).tolist(), int(COUNTS.sum())
    # Eigen and Fergus: the pixels of a class over those of the images that contain it.
    within = [COUNTS[COUNTS[:, k] > 0].sum() for k in range(3)]
    frequency = [n / m for n, m in zip(pixels, within, strict=True)]
    median = [statistics.median(frequency) / f for f in frequency]
    inverse = [total / (3 * n) for n in pixels]
    b = 1 - 3 / total
    effective = [(1 - b) / (1 - math.pow(b, n)) for n in pixels]
    effective = [3 * weight / sum(effective) for weight in effective]
    for balance, expected in (('median', median), ('inverse', inverse), ('effective', effective)):
        np.testing.assert_allclose(class_weights(COUNTS, balance, NAMES), expected, rtol=1e-5)
    with pytest.raises(ConfigError, match='loss.balance=inverse: no training label has the classes pole, so'):
        class_weights(COUNTS * [1, 0, 1], 'inverse', NAMES)
    with pytest.raises(ConfigError, match='loss.class_weights='):
        class_weights(COUNTS + [10**9, 0, 0], 'inverse', NAMES)


def test_rare_images_are_repeated_as_in_lvis():
    rng = np.random.default_rng(0)
    counts = (rng.random((400, 4)) < [1, 0.5, 0.04, 0.01]) * 9
    share = [(counts[:, k] > 0).mean() for k in range(4)]
    factors = [max(max(1, math.sqrt(0.3 / share[k])) for k in range(4) if row[k]) for row in counts]
    times = np.array([np.bincount(repeated(counts, 0.3, seed), minlength=400) for seed in range(60)])
    assert (times >= np.floor(factors)).all() and (times <= np.ceil(factors)).all()
    assert np.abs(times.sum(1) - sum(factors)).max() <= 1
    np.testing.assert_allclose(times.mean(0), factors, atol=0.3)  # standard error at most 0.065
    np.testing.assert_array_equal(repeated(counts, 0.0, 0), np.arange(400))
    np.testing.assert_array_equal(repeated(counts * 0, 0.3, 0), np.arange(400))


def test_a_run_counts_once_and_keeps_its_weights(tmp_path, caplog):
    source, config = Labels(COUNTS), scenes.get_config('runlocal')
    assert class_counts(config, source, tmp_path) is None and not source.read
    config.loss.balance = 'median'
    with caplog.at_level(logging.INFO):
        counts = class_counts(config, source, tmp_path)
        set_class_weights(config, counts, source)
    weights = class_weights(COUNTS, 'median', NAMES)
    assert config.loss.class_weights == weights and source.read == 4
    assert 'counted the pixels of the classes in 4 labels' in caplog.text
    assert f'by loss.balance=median: road {weights[0]:g}, pole' in caplog.text
    # Labels may be mended until the first checkpoint. From then on nothing is read again, but for other data.
    config.loss.class_weights = ()
    mended = COUNTS[::-1]
    np.testing.assert_array_equal(class_counts(config, Labels(mended), tmp_path), mended)
    (tmp_path / 'checkpoints' / '2').mkdir(parents=True)
    np.testing.assert_array_equal(class_counts(config, source, tmp_path), mended)
    assert source.read == 4
    class_counts(config, Labels(COUNTS[:2]), tmp_path)
    assert 'is not of these 2 images' in caplog.text
    # A resumed run takes its weights from the checkpoint.
    run = copy_of('29e8a0d', tmp_path)
    change_facts(run, lambda facts: facts['config']['loss'].update(balance='median', class_weights=[1, 2.5]))
    config = config_of('29e8a0d', **{'loss.balance': 'median', 'loss.class_weights': ()})
    keep_settings(config, run)
    assert config.loss.class_weights == (1, 2.5) and class_counts(config, source, run) is None
    with pytest.raises(ConfigError, match='loss.balance=median counts class weights.*leave one of the two'):
        keep_settings(config, tmp_path / 'new')
