"""A batch in parts: the step of the whole batch, in less memory."""

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn
from reference import FAST, random_variables

from ann_jax.errors import ConfigError
from ann_jax.models.ann import ANN, Logits
from ann_jax.models.resnet import ResNet
from ann_jax.parallel.arrays import put_batch, replicated
from ann_jax.parallel.mesh import make_mesh
from ann_jax.parallel.programs import compiler_options, jit
from ann_jax.training.accumulate import make_accumulated_step
from ann_jax.training.losses import segmentation_loss, totals_of
from ann_jax.training.optimizers import sgd
from ann_jax.training.schedules import poly_schedule
from ann_jax.training.state import create_state
from ann_jax.training.step import make_step_parts
from ann_jax.typing import IGNORE

pytestmark = pytest.mark.usefixtures('compiled_fast')
CLASSES = 3
OPTIONS = compiler_options(jax.devices()[0]) | FAST
WEIGHTS = (0.5, 1.0, 2.0)


class Pixelwise(nn.Module):
    """Two classifiers of pixels, normalised by running statistics alone."""

    @nn.compact
    def __call__(self, x, train, full_size=True):
        x = nn.BatchNorm(use_running_average=True)(x)
        return Logits(nn.Dense(CLASSES, name='main')(x), nn.Dense(CLASSES, name='auxiliary')(x))


def random_batch(count, height=9, width=11, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, (count, height, width)).astype(np.uint8)
    # Images and parts hold unequal numbers of pixels that count; one holds none.
    label[rng.random(label.shape) < np.linspace(0, 0.9, count)[:, None, None]] = IGNORE
    label[1] = IGNORE
    return {'image': rng.integers(0, 256, (*label.shape, 3)).astype(np.uint8), 'label': label}


def steps(model, variables, mesh, factors=None, **loss_settings):
    """The step of a whole batch and that of its parts, and a state to begin with."""
    loss = functools.partial(segmentation_loss, **loss_settings)
    tx = sgd(poly_schedule(0.05, 10))
    # The norm is that of the whole batch's gradient.
    settings = {'clip_norm': 0.1, 'ema_decay': 0.9, 'factors': factors}
    parts = make_step_parts(model, tx, loss=loss, normalize=lambda x: x / 100.0 - 1, seed=0, **settings)
    accumulated = make_accumulated_step(parts, *totals_of(loss), mesh)
    state = jax.device_put(create_state(variables, tx, factors=factors, ema=True), replicated(mesh))
    whole = jit(lambda state, batch: parts.update(state, parts.forward_backward(state, batch)), mesh)
    return whole, accumulated, state


def in_parts(batch, count, mesh):
    size = len(batch['label']) // count
    return [
        put_batch({key: batch[key][i * size : (i + 1) * size] for key in batch}, mesh) for i in range(count)
    ]


def test_totals_are_those_of_the_loss():
    labels = [random_batch(2, seed=seed)['label'] for seed in range(2)]
    plain = totals_of(segmentation_loss)[0](labels)
    weighted = totals_of(functools.partial(segmentation_loss, class_weights=WEIGHTS))[0](labels)
    counts = np.bincount(np.concatenate(labels).ravel(), minlength=256)[:CLASSES]
    assert int(plain.valid) == int(plain.weight) == counts.sum() and int(plain.images) == 4
    assert float(weighted.weight) == pytest.approx(counts @ WEIGHTS)
    for settings, mines in (
        ({}, False),
        ({'per_image': False}, True),
        ({'per_image': False, 'ohem': False}, False),
        ({'per_image': False, 'ohem': False, 'terms': (('dice', 1.0), ('ohem', 1.0))}, True),
        ({'per_image': False, 'terms': (('dice', 1.0),)}, False),
    ):
        assert totals_of(functools.partial(segmentation_loss, **settings))[1] == mines

    def own(main, auxiliary, labels, totals=None):
        return segmentation_loss(main, auxiliary, labels, per_image=False, totals=totals)

    totals = totals_of(own)[0](labels)
    with pytest.raises(ConfigError, match='only known for functools.partial'):
        own(np.zeros((2, 9, 11, CLASSES), np.float32), None, labels[0], totals)


def copy(state):
    return jax.tree.map(lambda x: x.copy(), state)  # the step donates it


def assert_same(one, other, bound=1e-5):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        atol = bound * max(np.abs(a).max(), 1e-2)
        np.testing.assert_allclose(b, a, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize('per_image', [True, False])
@pytest.mark.parametrize(('ohem', 'class_weights'), [(True, None), (True, WEIGHTS), (False, WEIGHTS)])
def test_parts_add_up_to_the_batch(per_image, ohem, class_weights):
    mesh, batch = make_mesh(jax.devices()[:1]), random_batch(8)
    whole, accumulated, state = steps(
        Pixelwise(),
        random_variables(Pixelwise(), 0, np.zeros((1, 4, 4, 3), np.float32), False),
        mesh,
        factors={'main/bias': 0},
        ohem=ohem,
        per_image=per_image,
        threshold=0.3,
        min_kept=40,
        class_weights=class_weights,
    )
    expected = jax.device_get(whole(state, put_batch(batch, mesh)))
    assert 0 < expected[1]['kept'] < 1 or not ohem
    for count in (2, 8):
        assert_same(expected, accumulated(copy(state), in_parts(batch, count, mesh)))


def test_a_loss_is_told_the_pixels_of_an_image():
    """Labels may have rows below it, where devices share its rows."""
    seen = []

    def loss(main, auxiliary, labels, pixels):
        seen.append(pixels)
        return main.sum()

    tx, batch = sgd(poly_schedule(0.05, 10)), random_batch(2)
    parts = make_step_parts(Pixelwise(), tx, loss=loss, normalize=lambda x: x / 100.0, seed=0)
    variables = random_variables(Pixelwise(), 0, np.zeros((1, 4, 4, 3), np.float32), False)
    jax.eval_shape(parts.forward_backward, create_state(variables, tx), batch)
    assert set(seen) == {9 * 11}


def test_parts_of_the_network_differ_in_batch_normalisation_alone():
    """Parts that are copies have the statistics of the whole; on two devices, each image over two."""
    mesh = make_mesh(jax.devices()[:4], data=2, space=2)
    model = ANN(
        CLASSES, ResNet(10, 4, (4,)), 'apnb', key_channels=4, head_channels=8, aux_channels=8, dropout=0.0
    )
    part = random_batch(4, 33, 25)
    part = {key: value[2:] for key, value in part.items()}
    batch = {key: np.concatenate([value, value]) for key, value in part.items()}
    settings = {'ohem': True, 'per_image': True, 'threshold': 0.7, 'min_kept': 100}
    variables = random_variables(model, 0, np.zeros((1, 33, 33, 3), np.float32))
    whole, accumulated, state = steps(model, variables, mesh, **settings)
    expected, metrics = jax.device_get(whole(state, put_batch(batch, mesh)))
    ours, our_metrics = jax.device_get(accumulated(copy(state), in_parts(batch, 2, mesh)))
    assert_same(metrics, our_metrics, 2e-5)
    means = lambda stats: [
        x for path, x in jax.tree_util.tree_leaves_with_path(stats) if 'mean' in str(path[-1])
    ]
    assert_same(means(expected.batch_stats), means(ours.batch_stats))
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected.opt_state))
    for a, b in zip(*map(jax.tree.leaves, (expected.opt_state, ours.opt_state)), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * largest)
    # Unlike parts have statistics of their own.
    other = random_batch(4, 33, 25, seed=1)
    one = whole(state, put_batch(other, mesh))[1]['loss']
    assert abs(float(one - accumulated(state, in_parts(other, 2, mesh))[1]['loss'])) > 1e-4


def gradients_program(model, images, size):
    """The compiled forward and backward pass over some images."""

    def loss(main, auxiliary, labels):
        return segmentation_loss(main, auxiliary, labels, min_kept=100)

    tx = sgd(poly_schedule(0.05, 10))
    parts = make_step_parts(model, tx, loss=loss, normalize=lambda x: x / 100.0, seed=0)
    state = create_state(random_variables(model, 0, np.zeros((1, 33, 33, 3), np.float32)), tx)
    batch = random_batch(4, *size)
    batch = {key: value[:images] for key, value in batch.items()}
    program = jax.jit(parts.forward_backward).lower(state, batch).compile(OPTIONS)
    return program, jax.device_get(program(state, batch))


def test_computing_stages_again_saves_memory_and_changes_nothing():
    def model(remat):
        backbone = ResNet(50, 4, (4,), remat=remat)
        return ANN(CLASSES, backbone, 'baseline', head_channels=8, aux_channels=8, dropout=0.0)

    program, output = gradients_program(model(()), 1, (97, 97))
    less, same = gradients_program(model((2, 3, 4, 5)), 1, (97, 97))
    assert jax.tree.structure(output) == jax.tree.structure(same)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(output.gradients))
    for a, b in zip(*map(jax.tree.leaves, (output, same)), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * largest)
    assert scratch(less) < 0.6 * scratch(program)


def test_a_part_takes_the_memory_of_a_part():
    model = ANN(CLASSES, ResNet(10, 4, (4,)), 'baseline', head_channels=8, aux_channels=8)
    whole, part = (gradients_program(model, images, (97, 97))[0] for images in (4, 1))
    assert scratch(part) < 0.3 * scratch(whole)


def scratch(program):
    return program.memory_analysis().temp_size_in_bytes
