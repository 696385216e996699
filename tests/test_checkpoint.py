"""Best and newest checkpoints are both kept, whatever the order of scores; states come back as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ann_jax.checkpoint import Checkpoints
from ann_jax.models.ann import ANN
from ann_jax.models.resnet import ResNet
from ann_jax.optim import poly_schedule, sgd
from ann_jax.sharding import make_mesh, replicated
from ann_jax.state import TrainState, abstract_state, create_state, initial_variables


def tiny_state(step):
    return TrainState(
        step=jnp.asarray(step), params={'w': jnp.full(3, step)}, batch_stats={}, opt_state=(jnp.zeros(3),)
    )


@pytest.mark.parametrize(
    ('scores', 'kept'),
    [
        ((0.1, 0.5, 0.3, 0.2), {2, 3, 4}),
        ((0.4, 0.3, 0.2, 0.1), {1, 3, 4}),
        ((0.1, 0.2, 0.3, 0.4), {3, 4}),
    ],
)
def test_best_and_newest_are_kept(scores, kept, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, score in enumerate(scores, 1):
        checkpoints.save(tiny_state(step), {})
        checkpoints.score(step, score)
    assert (checkpoints.latest, checkpoints.best) == (4, 1 + int(np.argmax(scores)))
    checkpoints.close()
    assert {int(path.name) for path in tmp_path.iterdir() if path.is_dir()} == kept


def test_the_newest_without_a_score_does_not_hide_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(tiny_state(1), {})
    checkpoints.score(1, 0.7)
    for step in (2, 3, 4):
        checkpoints.save(tiny_state(step), {})
    assert (checkpoints.latest, checkpoints.best) == (4, 1)
    checkpoints.close()
    assert {int(path.name) for path in tmp_path.iterdir() if path.is_dir()} == {1, 3, 4}


def test_an_empty_folder_has_neither(tmp_path):
    checkpoints = Checkpoints(tmp_path / 'new')
    assert (checkpoints.latest, checkpoints.best) == (None, None)
    checkpoints.close()


def test_a_state_comes_back_on_another_number_of_devices(tmp_path):
    model = ANN(3, ResNet(10, 4, (4,)), key_channels=4, head_channels=8, aux_channels=4)
    tx = sgd(poly_schedule(0.1, 10))
    state = jax.device_put(
        create_state(initial_variables(model, 5), tx), replicated(make_mesh(jax.devices()[:1]))
    )
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, {'seed': 5})
    mesh = make_mesh()
    restored = checkpoints.restore(0, abstract_state(model, tx, replicated(mesh)))
    checkpoints.close()
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(a, b)
        assert b.sharding.is_equivalent_to(replicated(mesh), b.ndim)
