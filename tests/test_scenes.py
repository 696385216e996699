"""The scenes are what they promise: reproducible, and ambiguous but for a cue far away."""

import pickle

import jax
import numpy as np
import pytest

from ann_jax.data.scene_objects import CRANE, LOWERED, MOVING, PEDESTRIAN, RAISED, STOPPED, WORKER
from ann_jax.data.scenes import CLASSES, COLORS, SPLITS, SceneSource, render
from ann_jax.errors import DataError
from ann_jax.inference.protocols import Canvas, whole_image
from ann_jax.models.ann import ANN
from ann_jax.models.fold import fold
from ann_jax.models.initializers import initial_variables
from ann_jax.models.resnet import ResNet
from ann_jax.parallel.mesh import make_mesh
from ann_jax.typing import IGNORE
from ann_jax.weights.inputs import normalizer

CARS, PEOPLE = (STOPPED, MOVING), (PEDESTRIAN, WORKER)
SIZES = [(64, 128), (96, 192), (131, 257), (256, 512), (96, 400), (200, 160)]


def source_of(split, count, seed=0):
    return SceneSource(split=split, count=count, height=64, width=128, seed=seed)


@pytest.fixture(scope='module')
def scenes():
    """400 scenes: images and labels stacked, and a list of infos."""
    images, labels, infos = zip(*(render((0, 0, index), 128, 256) for index in range(400)), strict=True)
    return np.stack(images), np.stack(labels), infos


def outside(mask, box):
    top, left, bottom, right = box
    mask = mask.copy()
    mask[top:bottom, left:right] = False
    return mask


def test_source_is_deterministic_picklable_and_indexable_at_random():
    source = SceneSource(split='val', count=5, height=64, width=128, seed=3)
    other = pickle.loads(pickle.dumps(source))
    samples = [source[index] for index in range(5)]
    for index in (3, 0, 4):
        again = other[np.int64(index)]
        assert again['name'] == samples[index]['name']
        np.testing.assert_array_equal(again['image'], samples[index]['image'])
        np.testing.assert_array_equal(again['label'], samples[index]['label'])
    assert len(source) == 5 and len({sample['name'] for sample in samples}) == 5
    with pytest.raises(IndexError):
        source[5]


def test_source_describes_its_classes():
    dataset = source_of('train', 1).dataset
    assert (dataset.name, dataset.classes, dataset.colors) == ('scenes', CLASSES, COLORS)
    assert len(CLASSES) == len(set(CLASSES)) == len(set(COLORS))
    assert CLASSES[STOPPED] == 'stopped car' and CLASSES[WORKER] == 'worker' and CLASSES[CRANE] == 'crane'


def test_splits_seeds_and_indices_share_no_scene():
    sources = [source_of(split, 4, seed) for split in SPLITS for seed in (0, 1)]
    images = {sample['image'].tobytes() for source in sources for sample in source}
    assert len(images) == 4 * len(sources)


@pytest.mark.parametrize('size', SIZES)
def test_any_size(size):
    image, label, _ = render((0, 0, 7), *size)
    assert image.shape == (*size, 3) and label.shape == size
    assert image.dtype == label.dtype == np.uint8 and image.flags.c_contiguous
    assert set(np.unique(label)) <= {*range(len(CLASSES)), IGNORE}


def test_bad_arguments_are_named():
    with pytest.raises(DataError, match='64x128'):
        SceneSource(split='val', count=1, height=63, width=128, seed=0)
    with pytest.raises(DataError, match='train, val, test'):
        source_of('valid', 1)


@pytest.mark.parametrize('size', SIZES)
def test_cues_are_more_than_half_a_width_away(size):
    width = size[1]
    for index in range(60):
        _, label, info = render((1, 0, index), *size)
        objects = np.flatnonzero(np.isin(label, CARS + PEOPLE).any(0))
        barriers = np.flatnonzero(np.isin(label, (LOWERED, RAISED)).any(0))
        cues = [
            barriers[0],
            barriers[-1],
            info.structure_box[1] + 2,
            info.structure_box[3] - 2,
        ]  # boxes are rounded out
        gap = min(abs(int(a) - int(b)) for a in cues for b in (objects[0], objects[-1]))
        assert gap - 2 > width / 2, index  # 2: the unlabelled borders of both


def test_the_barrier_changes_its_own_pixels_and_the_names_of_cars_only():
    for index in range(30):
        lowered_image, lowered_label, info = render((2, 0, index), 128, 256, lowered=True)
        raised_image, raised_label, _ = render((2, 0, index), 128, 256, lowered=False)
        changed = (lowered_image != raised_image).any(2)
        assert changed.sum() > 30 and not outside(changed, info.barrier_box).any()
        renamed = np.where(lowered_label == STOPPED, MOVING, lowered_label)
        assert not outside(renamed != raised_label, info.barrier_box).any()
        assert (lowered_label == STOPPED).sum() > 100 and not (lowered_label == MOVING).any()


def test_the_structure_changes_its_own_pixels_and_the_names_of_people_only():
    for index in range(30):
        crane_image, crane_label, info = render((3, 0, index), 128, 256, crane=True)
        hoist_image, hoist_label, _ = render((3, 0, index), 128, 256, crane=False)
        changed = (crane_image != hoist_image).any(2)
        assert changed.sum() > 100 and not outside(changed, info.structure_box).any()
        renamed = np.where(crane_label == WORKER, PEDESTRIAN, crane_label)
        assert not outside(renamed != hoist_label, info.structure_box).any()
        assert (crane_label == WORKER).sum() > 100 and not (crane_label == PEDESTRIAN).any()


def test_coins_are_fair_and_independent_of_the_rest(scenes):
    images, labels, infos = scenes
    rest = [images.mean((1, 2, 3)), images[..., 0].mean((1, 2)) - images[..., 2].mean((1, 2))]
    rest += [np.isin(labels, pair).sum((1, 2)) for pair in (CARS, PEOPLE)]
    rest += [[info.structure_box[1] for info in infos], [info.barrier_box[0] for info in infos]]
    coins = np.array([[info.lowered, info.crane] for info in infos]).T
    assert np.all(np.abs(coins.mean(1) - 0.5) < 0.1)
    for values in (coins[1], *rest):
        assert abs(np.corrcoef(coins[0], values)[0, 1]) < 0.15
    for values in rest:
        assert abs(np.corrcoef(coins[1], values)[0, 1]) < 0.15


@pytest.mark.parametrize('pair', [CARS, PEOPLE])
def test_colours_do_not_tell_a_pair_apart(scenes, pair):
    images, labels, _ = scenes
    means = [
        [image[label == cls].mean(0) for image, label in zip(images, labels, strict=True) if cls in label]
        for cls in pair
    ]
    first, second = (np.array(group) for group in means)
    error = np.sqrt(first.var(0) / len(first) + second.var(0) / len(second))
    assert np.all(np.abs(first.mean(0) - second.mean(0)) < 3 * error)


def test_labels_are_worth_learning(scenes):
    _, labels, _ = scenes
    share = np.bincount(labels.ravel(), minlength=256) / labels.size
    assert 0.005 < share[IGNORE] < 0.1
    assert set(range(len(CLASSES))) <= set(np.unique(labels[:64]))
    for pair in (CARS, PEOPLE):
        assert share[list(pair)].sum() >= 2 * 0.015 and share[list(pair)].min() > 0.012
        assert np.isin(labels, pair).sum((1, 2)).min() > 100


@pytest.mark.parametrize(('variant', 'depends'), [('baseline', False), ('apnb', True), ('afnb', True)])
def test_only_attention_carries_the_cue_to_the_objects(variant, depends):
    """The logits of cars, with random weights: the convolutions' receptive field ends before the barrier."""
    backbone = ResNet(10, 8, (8,))
    model = ANN(4, backbone, variant=variant, key_channels=8, head_channels=16, aux_channels=8)
    variables = initial_variables(model, 0)
    # W_o starts at zero and would hide the attention.
    out = lambda path, x: x + 0.1 if 'out' in jax.tree_util.keystr(path) else x
    variables = jax.tree_util.tree_map_with_path(out, variables)
    normalize, mesh = normalizer(mean=(120,) * 3, std=(60,) * 3, bgr=False), make_mesh(jax.devices()[:1])
    protocol, params = whole_image(model.clone(folded=True), normalize, mesh), fold(model, variables)
    logits = lambda image: np.asarray(
        protocol(params, Canvas(image[None], np.array([image.shape[:2]]))).array
    )[0]
    for index in range(4):
        images, labels, _ = zip(
            *(render((7, index), 96, 208, lowered=lowered) for lowered in (True, False)), strict=True
        )
        cars = np.isin(labels[0], CARS)
        one, other = (logits(image)[cars] for image in images)
        assert (np.abs(one - other).max() > 1e-4) == depends
        if not depends:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ('version', 'classes', 'counts', 'color'),
    [
        (1, 'traffic light, structure', (378, 1309, 239, 319, 2187, 696, 1559, 5333), (115.7, 128.3, 127.1)),
        (2, 'barrier, structure', (1009, 1316, 1728, 669, 1481, 359, 1552, 5238), (102.8, 119.6, 125.1)),
    ],
)
def test_early_versions_are_drawn_as_their_commits_drew_them(version, classes, counts, color):
    """Pixels of class 8 and more and of IGNORE, and the mean colour, as f5baaa6 and 798c65b gave them."""
    source = SceneSource(split='train', count=4, height=96, width=192, seed=5, version=version)
    assert ', '.join(source.dataset.classes[8:10]) == classes and len(source.dataset.colors) == 15
    samples = [source[index] for index in range(4)]
    found = np.bincount(np.stack([sample['label'] for sample in samples]).ravel(), minlength=256)
    assert (*found[8:15], found[IGNORE]) == counts
    np.testing.assert_allclose(np.mean([s['image'] for s in samples], (0, 1, 2)), color, atol=0.1)
