"""Scores equal to those of cityscapesScripts on the same files."""

import numpy as np
import pytest
from PIL import Image
from trees import open_source, write_tree

from ann_jax.evaluation.metrics import confusion_matrix, scores, table

official = pytest.importorskip(
    'cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling', reason='pip install cityscapesScripts'
)


@pytest.mark.parametrize('values', [range(34), [0, 7, 8, 11, 26]])  # all classes; most of them absent
def test_cityscapes_scores_are_the_official_ones(values, tmp_path):
    rng = np.random.default_rng(0)
    write_tree('cityscapes', tmp_path / 'data', num_val=3, size=(40, 60))
    source = open_source('cityscapes', root=tmp_path / 'data', split='val')
    truths = sorted((tmp_path / 'data/gtFine/val').rglob('*_labelIds.png'))
    to_raw, predicted, confusion = source.dataset.class_to_raw, [], np.zeros((19, 19), np.int64)
    for index, path in enumerate(truths):
        raw = rng.choice(list(values), (40, 60)).astype(np.uint8)
        Image.fromarray(raw).save(path)
        truth = source[index]['label']
        guess = np.where(truth == 255, rng.integers(0, 3, truth.shape), truth)
        guess = np.where(rng.random(truth.shape) < 0.6, guess, rng.integers(0, 9, truth.shape)).astype(
            np.uint8
        )
        confusion += np.asarray(confusion_matrix(truth, guess, 19))
        predicted.append(tmp_path / f'{index}.png')
        Image.fromarray(to_raw[guess]).save(predicted[-1])

    args = official.CArgs()
    args.quiet, args.JSONOutput, args.colorized = True, False, False
    args.evalInstLevelScore, args.evalPixelAccuracy = False, False
    for name, value in vars(official.args).items():
        if not hasattr(args, name):
            setattr(args, name, value)
    expected = official.evaluateImgLists([str(p) for p in predicted], [str(p) for p in truths], args)
    result = scores(confusion, source.dataset.categories)
    ours = dict(zip(source.dataset.classes, result.iou, strict=True))
    for name, iou in ours.items():
        np.testing.assert_allclose(iou, expected['classScores'][name], rtol=1e-12, err_msg=name)
    for name, iou in result.categories.items():
        np.testing.assert_allclose(iou, expected['categoryScores'][name], rtol=1e-12, err_msg=name)
    assert len(result.categories) == 7
    np.testing.assert_allclose(result.miou, expected['averageScoreClasses'], rtol=1e-12)
    np.testing.assert_allclose(result.category_miou, expected['averageScoreCategories'], rtol=1e-12)
    assert 'category' in table(source.dataset.classes, result)
