"""What pixels attend to: weights and boxes by their definition in torch, for every kind of block."""

import base64
import dataclasses
import io
import json
import pickle
import re

import jax
import numpy as np
import pytest
from PIL import Image
from reference import assert_close, nchw, normal, quick, random_variables, tame
from small import small_folder

import ann_jax
import ann_jax.modes.explain
from ann_jax import build, modes
from ann_jax.config import defaults
from ann_jax.data.scene_objects import CLASSES
from ann_jax.data.scenes import render
from ann_jax.errors import ConfigError, DataError
from ann_jax.inference import attention
from ann_jax.inference.attention import BlockAttention
from ann_jax.inference.segmenter import Segmenter
from ann_jax.kernels.anchors import anchor_windows, sample_anchors
from ann_jax.kernels.resizing import linear_matrix
from ann_jax.parallel.mesh import make_mesh
from ann_jax.tools import scene_attention

pytestmark = pytest.mark.usefixtures('compiled_fast')

SIZE = 41, 58  # neither a multiple of the stride, nor its map of the pyramid
CANVAS = 57, 75
BLOCKS = {
    'full': ['AFNB stage3', 'AFNB stage4', 'APNB'],
    'fnb_nb': ['FNB stage4', 'NB'],
}


def picture(size=SIZE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def network(folder, variant):
    """The network of a variant, with weights of its own."""
    weights = small_folder(folder)
    settings = {'variant': variant, 'sizes': (1, 2, 3), 'fuse_stages': (3, 4) if variant == 'full' else (4,)}
    weights = dataclasses.replace(weights, model=weights.model | settings)
    image = np.zeros((1, 33, 33, 3), np.float32)
    variables = tame(random_variables(weights.network(), 1, image))
    return dataclasses.replace(weights, variables=variables)


def maps_of(weights, image):
    """The inputs of the blocks of the network as trained, (1, C, h, w): Stage2 to Stage5, the bottleneck."""
    torch = pytest.importorskip('torch', reason='the definition is written in torch')
    model = weights.network()
    mean, std = (np.float32(weights.input[key]) / 255 for key in ('mean', 'std'))
    wanted = lambda module, method: module.name in ('backbone', 'bottleneck') and method == '__call__'

    def run(variables, pixels):
        _, found = model.apply(variables, pixels, capture_intermediates=wanted, mutable='intermediates')
        inside = found['intermediates']
        return [*inside['backbone']['__call__'][0], inside['bottleneck']['__call__'][0]]

    maps = quick(run)(weights.variables, (image[None] / np.float32(255) - mean) / std)
    return [torch.tensor(nchw(x.array)) for x in maps]


def by_definition(weights, maps, name):
    """Eq. 3 to 10, or 14 to 16, of the network as trained, on the image alone: (h w, S) weights."""
    import torch
    import torch.nn.functional as F

    model, variables = weights.network(), weights.variables
    if 'stage' in name:
        place, low, high = 'fusion', maps[int(name[-1]) - 2], maps[3]
        number = model.fuse_stages.index(int(name[-1]))
    else:
        place, number = 'context', 0
        low = high = maps[4]

    def projected(x, layer):
        leaf = lambda group, *path: torch.tensor(
            np.asarray(_leaf(variables[group][place][f'attention_{number}'][layer], path))
        )
        x = torch.einsum('bchw,cd->bdhw', x, leaf('params', 'conv', 'kernel')[0, 0])
        x = x + leaf('params', 'conv', 'bias')[:, None, None]
        norm = [leaf('batch_stats', 'bn', key) for key in ('mean', 'var')]
        norm += [leaf('params', 'bn', key) for key in ('scale', 'bias')]
        return F.relu(F.batch_norm(x, *norm, eps=1e-5))

    key = projected(low, 'key')
    query = key if place == 'context' else projected(high, 'query')
    if name.startswith(('NB', 'FNB')):
        keys = key.flatten(2)
    else:
        keys = torch.cat([F.adaptive_avg_pool2d(key, n).flatten(2) for n in model.sizes], 2)
    similarity = torch.einsum('bcn,bcs->bns', query.flatten(2), keys)
    return torch.softmax(similarity / query.shape[1] ** 0.5, -1)[0].numpy()


def _leaf(tree, path):
    for key in path:
        tree = tree[key]
    return tree


@pytest.mark.parametrize('variant', BLOCKS)
def test_weights_equal_their_definition(variant, tmp_path, monkeypatch):
    weights = network(tmp_path / 'weights', variant)
    segmenter = Segmenter(weights)
    segmenter._canvases.fit(*CANVAS)
    assert segmenter._canvases.fit(*SIZE) == CANVAS
    found, maps = segmenter.attention(picture()), maps_of(weights, picture())
    assert list(found) == BLOCKS[variant]
    for name, each in found.items():
        assert each.weights.dtype == np.float32 and each.size == SIZE
        np.testing.assert_allclose(each.weights.sum(-1), 1, rtol=1e-5)
        expected = by_definition(weights, maps, name)
        assert expected.std() > 1e-3  # not all the same
        assert_close(each.weights.reshape(expected.shape), expected)
        assert each.boxes.shape == (expected.shape[1], 4) and each.levels.shape == expected.shape[1:]

    cells, anchors = expected.shape
    monkeypatch.setattr(attention, 'MOST', cells * anchors - 1)
    with pytest.raises(DataError, match=r'has \d+ x \d+ weights for an image of 58x41, more than'):
        segmenter.attention(picture())


def test_a_baseline_attends_to_nothing():
    model = ann_jax.ANN(3, ann_jax.ResNet(depth=10, width=4), variant='baseline')
    assert attention.block_attention(model, lambda image: image, make_mesh())({}, None) == {}


@pytest.mark.parametrize('sampling', ['average', 'max', 'random', 'all'])
def test_windows_are_what_anchors_are_sampled_from(sampling):
    x, rng = normal(1, 7, 10, 2), jax.random.key(3)
    anchors = np.asarray(quick(lambda x: sample_anchors(x, sampling, (1, 3, 4), rng))(x))[0]
    windows, levels = anchor_windows(7, 10, sampling, (1, 3, 4), rng)
    pool = np.max if sampling == 'max' else np.mean
    expected = [pool(x[0, top:bottom, left:right], (0, 1)) for top, left, bottom, right in windows]
    np.testing.assert_allclose(anchors, expected, rtol=1e-5)
    assert levels.tolist() == ([0] * 70 if sampling == 'all' else [1] + [3] * 9 + [4] * 16)


@pytest.mark.parametrize('align_corners', [True, False])
def test_the_cell_of_a_pixel_weighs_most_in_its_logits(align_corners):
    for length, count in ((41, 6), (96, 13), (1, 1), (7, 1), (5, 5)):
        matrix = linear_matrix(count, length, align_corners)
        cells = attention._cells(length, count, align_corners)
        np.testing.assert_allclose(matrix[np.arange(length), cells], matrix.max(1), atol=1e-6)


def small_attention():
    """Of 2 x 2 cells to the anchors of two levels, for an image of 5 x 6; boxes overlap."""
    weights = np.random.default_rng(0).random((2, 2, 5), np.float32)
    weights /= weights.sum(-1, keepdims=True)
    boxes = np.array([[0, 0, 5, 6], [0, 0, 3, 4], [0, 3, 3, 6], [2, 0, 5, 4], [2, 3, 5, 6]], np.int32)
    cells = attention._cells(5, 2, False), attention._cells(6, 2, False)
    return BlockAttention(weights, boxes, np.array([1, 2, 2, 2, 2], np.int32), (5, 6), cells)


def test_where_a_pixel_looks():
    each = small_attention()
    np.testing.assert_array_equal(each.at(4, 0), each.weights[1, 0])
    np.testing.assert_array_equal(each.at([4, 0], [0, 5]), each.weights[[1, 0], [0, 1]])
    expected = np.zeros((5, 6))
    for weight, (top, left, bottom, right) in zip(each.at(4, 0), each.boxes, strict=True):
        expected[top:bottom, left:right] += weight / ((bottom - top) * (right - left))
    np.testing.assert_allclose(each.heat(4, 0), expected, rtol=1e-5)
    assert each.heat(4, 0).sum() == pytest.approx(1, rel=1e-5)
    assert each.shares(4, 0) == pytest.approx({1: each.at(4, 0)[0], 2: each.at(4, 0)[1:].sum()})
    assert repr(each) == 'BlockAttention(2 x 2 cells, 5 anchors)'
    for outside in ((5, 0), (0, -1)):
        with pytest.raises(DataError, match='the image has 5 rows and 6 columns'):
            each.at(*outside)


class Fake:
    """In place of the network of a result."""

    calls = 0

    def attention(self, image):
        self.calls += 1
        return {'APNB': small_attention()}


def test_attention_is_computed_when_it_is_asked_for():
    ids = np.zeros((5, 6), np.uint8)
    result = ann_jax.Result(None, ids, ('a',), ((0, 0, 0),), np.zeros((5, 6, 3), np.uint8), fake := Fake())
    assert fake.calls == 0
    lost = pickle.loads(pickle.dumps(result))
    with pytest.raises(ConfigError, match=r'call attention\(\) before'):
        lost.attention()
    assert result.attention()['APNB'] is result.attention()['APNB'] and fake.calls == 1
    assert pickle.loads(pickle.dumps(result)).attention()['APNB'].size == (5, 6)


def read_page(text):
    """The data of a page, as its script reads them."""
    data = json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    )
    decoded = lambda url: base64.b64decode(url.partition(',')[2])
    for view in data['views']:
        view['ids'] = np.asarray(Image.open(io.BytesIO(decoded(view['ids']))))
        for block in view['blocks']:
            weights = np.frombuffer(base64.b64decode(block['weights']), '<u2') / 65535
            block['weights'] = weights.reshape(-1, block['width'], len(block['boxes']))
    data['images'] = [np.asarray(Image.open(io.BytesIO(decoded(url)))) for url in data['images']]
    return data


def test_explain_writes_a_page_and_figures(folder, tmp_path, capsys, monkeypatch):
    image = picture()
    for place in ('photos/<a>.png', 'labels/<a>.png'):
        (tmp_path / place).parent.mkdir(exist_ok=True)
    Image.fromarray(image).save(tmp_path / 'photos/<a>.png')
    Image.fromarray(np.full(SIZE, 3, np.uint8)).save(tmp_path / 'labels/<a>.png')
    config = defaults()
    config.dataset.update(name='folder', classes=','.join(CLASSES))
    made = []  # the network that is loaded, whose programs are used again below
    make = modes.explain.Segmenter
    monkeypatch.setattr(
        modes.explain, 'Segmenter', lambda *args, **options: made.append(make(*args, **options)) or made[0]
    )
    config.explain.update(runs=str(folder), input=str(tmp_path / 'photos'), truth=str(tmp_path / 'labels'))
    page = modes.explain.explain(config, tmp_path / 'run')
    assert page == tmp_path / 'run/explain/explain.html' and str(page) in capsys.readouterr().out
    text = page.read_text(encoding='utf-8')
    assert not re.search('https?://|<link|src=', text) and '<a>' not in text
    data = read_page(text)
    np.testing.assert_array_equal(data['images'], [image])
    (view,) = data['views']
    result = made[0](image)
    assert view['title'] == '<a>.png' and view['classes'] == list(result.classes) and view['image'] == 0
    np.testing.assert_array_equal(view['ids'], result.ids)
    for block, (name, each) in zip(view['blocks'], result.attention().items(), strict=True):
        assert block['name'] == name and block['boxes'] == each.boxes.tolist()
        np.testing.assert_allclose(block['weights'], each.weights, atol=8e-6)
        np.testing.assert_array_equal(
            block['weights'][block['rows'][40], block['columns'][9]].argmax(), each.at(40, 9).argmax()
        )
    predictions = np.asarray(Image.open(page.with_name('predictions.png')))
    stages = np.asarray(Image.open(page.with_name('stages.png')))
    assert predictions.shape[1] == 3 * 320 + 2 * 4 and stages.shape[1] == 6 * 320 + 5 * 4
    expected = 0.6 * np.array(build.dataset(config).colors[3])
    assert np.abs(predictions[20:200, -320:] - expected).max() <= 0.4 * 255 + 1  # the image shows through


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({}, 'explain.input is missing'),
        ({'input': 'none/*.png'}, 'explain.input=none/.*: no such file'),
        ({'input': 'fold*'}, r'explain.input=fold\*: no such file'),  # a folder inside is not an image
        ({'input': '.', 'truth': 'nowhere'}, '21 images, and a page holds 20'),
        ({'input': '0.png', 'truth': 'nowhere'}, 'explain.truth=nowhere: no such folder'),
    ],
)
def test_what_cannot_be_explained_is_refused_before_a_network_is_opened(
    settings, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'folder').mkdir()
    for number in range(21):
        Image.fromarray(picture((2, 2))).save(f'{number}.png')
    config = defaults()
    config.explain.update(runs='no/such/run', **settings)
    with pytest.raises(ConfigError, match=message):
        modes.explain.explain(config, tmp_path / 'run')


class Watching:
    """In place of a network: every pixel looks at the barrier, wherever it stands."""

    classes = scene_attention.VERSIONS[3]

    def __init__(self, size):
        self.cells = np.zeros(size[0], int), np.zeros(size[1], int)

    def stream(self, images):
        yield from [self] * len(images)

    def attention(self):
        box = scene_attention.render.boxes.pop()
        boxes = np.array([box, (0, 0, 1, 1)], np.int32)
        weights = np.array([[[0.75, 0.25]]], np.float32)
        return {'APNB': BlockAttention(weights, boxes, np.ones(2, int), scene_attention.SIZE, self.cells)}


def test_the_share_of_attention_to_a_cue(monkeypatch, capsys):
    def drawn(*args, **options):
        scene = render(*args, **options)
        drawn.boxes.append(scene[2].barrier_box)
        return scene

    drawn.boxes = []
    monkeypatch.setattr(scene_attention, 'render', drawn)
    monkeypatch.setattr(scene_attention, 'load', lambda run: Watching(scene_attention.SIZE))
    scene_attention.main(['--run=runs/scenes', '--scenes=3'])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '| pixels | anchors on the | scenes | APNB | if all weighed the same |'
    for name in ('stopped car', 'moving car'):
        assert f'| {name} | barrier | 3 | 75.0 | 50.0 |' in lines
    assert '| road | barrier | 6 | 75.0 | 50.0 |' in lines


def test_attention_of_other_networks_is_not_measured(monkeypatch, capsys):
    other = Watching(scene_attention.SIZE)
    monkeypatch.setattr(scene_attention, 'load', lambda run: other)
    other.attention = dict
    with pytest.raises(SystemExit, match='error: runs/x has no attention'):
        scene_attention.main(['--run=runs/x', '--scenes=1'])
    other.classes = other.classes[::-1]
    with pytest.raises(SystemExit, match='error: runs/x is no run on the embedded scenes'):
        scene_attention.main(['--run=runs/x', '--scenes=1'])
    with pytest.raises(SystemExit):
        scene_attention.main(['--run=runs/x', '--scenes=0'])
    assert '0 must be a whole number of at least 1' in capsys.readouterr().err
