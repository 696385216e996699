"""The examples: the notebook runs from top to bottom, and the demo's functions work without Gradio."""

import json
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

import ann_jax
from ann_jax import build
from ann_jax.data.scene_objects import CLASSES, COLORS
from ann_jax.inference.attention import BlockAttention
from ann_jax.parallel.mesh import make_mesh

pytestmark = pytest.mark.usefixtures('compiled_fast')

EXAMPLES = Path(__file__).parent.parent / 'examples'
SIZE = 6, 8


class Network:
    """Of one cell per pixel; every pixel looks at the right half."""

    def attention(self, image):
        weights = np.zeros((*SIZE, 2), np.float32)
        weights[..., 1] = 1
        boxes = np.array([[0, 0, 6, 4], [0, 4, 6, 8]], np.int32)
        cells = np.arange(SIZE[0]), np.arange(SIZE[1])
        return {'APNB': BlockAttention(weights, boxes, np.array([1, 2], np.int32), SIZE, cells)}


def run(path, **names):
    """What a script defines."""
    scope = {'__name__': path.stem, **names}
    exec(compile(path.read_text(encoding='utf-8'), path.name, 'exec'), scope)
    return scope


def test_the_demo_draws_without_gradio():
    demo = run(EXAMPLES / 'demo.py')
    ids = np.zeros(SIZE, np.uint8)
    ids[:, :2] = 3
    image = np.full((*SIZE, 3), 200, np.uint8)
    result = ann_jax.Result(None, ids, CLASSES, COLORS, image, Network())
    drawn, shares = demo['overlay'](result)
    np.testing.assert_array_equal(drawn, result.overlay())
    assert shares == {CLASSES[0]: 0.75, CLASSES[3]: 0.25}
    picture, levels = demo['looks'](result, 'APNB', 3, 1)
    assert levels == {'1 x 1': 0, '2 x 2': 1}
    np.testing.assert_array_equal(picture[3, 1], 255)  # the pixel
    np.testing.assert_array_equal(picture[0, 4:], [(64, 224, 255)] * 4)  # the box of the anchor it looks at
    assert (
        picture[2, 6, 0] > picture[2, 6, 2] and len(set(picture[2, 2])) == 1
    )  # bright there, grey elsewhere
    large, times = demo['enlarged'](picture)
    assert times == 80 and large.shape == (480, 640, 3)
    np.testing.assert_array_equal(large[::80, ::80], picture)


@pytest.mark.slow  # .ci/run names it
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / 'tour.ipynb').read_text(encoding='utf-8'))
    assert notebook['nbformat'] == 4
    source = '\n\n'.join(''.join(c['source']) for c in notebook['cells'] if c['cell_type'] == 'code')
    assert not any(c.get('outputs') for c in notebook['cells'])
    assert 'STEPS = 1200\n' in source
    source = source.replace('STEPS = 1200\n', 'STEPS = 1\n')

    def train_small(config, workdir):
        config.model.update(width=4, stem_widths=(4,), key_channels=4, head_channels=8, aux_channels=4)
        config.dataset.scenes.update(train_count=4, eval_count=4)
        config.train.batch_size = 2
        train(config, workdir)

    train, one_device = ann_jax.train, make_mesh(jax.devices()[:1])
    monkeypatch.setattr(build, 'mesh', lambda config, devices=None: one_device)
    monkeypatch.setattr(ann_jax, 'train', train_small, raising=False)
    scope = {}
    exec(compile(source, 'tour.ipynb', 'exec'), scope)
    assert isinstance(scope['enlarge'](scope['result'].overlay()), Image.Image)
    assert 'APNB: ' in capsys.readouterr().out and scope['heat'].shape == (96, 208, 1)


def test_a_formula_draws_endless_labelled_images():
    scope = run(EXAMPLES / 'formula.py')
    source, again = scope['Contours'](90, 120, seed=3), scope['Contours'](90, 120, seed=3)
    seen = set()
    for index in (0, 1, 7, len(source) - 1):
        sample, same = source[index], again[index]
        for key in ('image', 'label'):
            np.testing.assert_array_equal(sample[key], same[key])
        assert sample['image'].shape == (90, 120, 3) and sample['label'].shape == (90, 120)
        seen |= set(sample['label'].ravel().tolist())
    assert len(source) > 10**6 and len(seen) > 10 and max(seen) < source.dataset.num_classes
    source.height = source.width = 200
    seen = set()
    for seed in range(300):  # a whole, smooth contour has the corners that its class says
        image, label = np.zeros((200, 200, 3), np.float32), np.zeros((200, 200), np.uint8)
        source._contour(np.random.default_rng(seed), image, label)
        border = np.concatenate([label[[0, -1]].ravel(), label[:, [0, -1]].ravel()])
        corners, _, rough = source.dataset.classes[label.max()].partition(' corners, ')
        if rough == '0.0' and (label > 0).sum() > 1000 and not border.any() and int(corners) < 7:
            (outline,), _ = cv2.findContours(label, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            found = cv2.approxPolyDP(outline, 0.03 * cv2.arcLength(outline, True), True)
            assert len(found) == int(corners)
            seen.add(corners)
    assert len(seen) > 1
