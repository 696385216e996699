"""The examples: the notebook runs from top to bottom, and the demo's functions work without Gradio."""

import json
from pathlib import Path

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
