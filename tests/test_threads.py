"""`jax.set_mesh` holds for one thread: compiled entry points enter their mesh wherever they are called."""

import functools
import threading

import jax
import numpy as np
import pytest
from reference import assert_close, quick
from small import small_folder
from test_plugins import Pyramid
from test_space import NORMALIZE, collectives, mesh_of, random_batch, weights

import ann_jax
from ann_jax.errors import ConfigError
from ann_jax.evaluation.evaluate import evaluate
from ann_jax.inference.protocols import make_protocol
from ann_jax.models.ann import ANN
from ann_jax.models.fold import fold
from ann_jax.parallel.arrays import put_batch, replicated, split_batch
from ann_jax.parallel.programs import jit
from ann_jax.training.accumulate import make_accumulated_step
from ann_jax.training.losses import batch_totals, segmentation_loss
from ann_jax.training.optimizers import sgd
from ann_jax.training.schedules import poly_schedule
from ann_jax.training.state import create_state
from ann_jax.training.step import make_step_parts

pytestmark = pytest.mark.usefixtures('compiled_fast')


def in_a_thread(function):
    """The result of a function that another thread calls."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    assert results, 'the thread failed'
    return results[0]


MESH = mesh_of(1, 4)
# Few layers, since each program is compiled for four devices and in two threads.
MODEL = ANN(5, Pyramid(2), 'apnb', key_channels=4, head_channels=4, aux_channels=4, sizes=(1, 2), dropout=0.0)
MINING = {'threshold': 0.7, 'min_kept': 100}


@functools.cache
def parts():
    def loss(main, auxiliary, labels, totals=None):
        return segmentation_loss(main, auxiliary, labels, totals=totals, **MINING)

    return make_step_parts(MODEL, sgd(poly_schedule(0.05, 10)), loss=loss, normalize=NORMALIZE, seed=3)


def state():
    return jax.device_put(create_state(weights(MODEL), sgd(poly_schedule(0.05, 10))), replicated(MESH))


def step():
    whole = lambda state, batch: parts().update(state, parts().forward_backward(state, batch))
    return jit(whole, MESH, in_shardings=(replicated(MESH), split_batch(MESH)))


def test_a_step_and_a_step_in_parts():
    batch = put_batch(random_batch(2, 65, 33), MESH)
    program = in_a_thread(lambda: step().lower(state(), batch).compile())
    assert set(collectives(program)) == {'all-reduce', 'collective-permute'}
    metrics = jax.device_get(step()(state(), batch)[1])
    jax.tree.map(assert_close, jax.device_get(program(state(), batch)[1]), metrics)

    def in_one_part():
        totals_of = lambda labels, p: batch_totals(labels, p, **MINING)
        return jax.device_get(make_accumulated_step(parts(), totals_of, False, MESH)(state(), [batch])[1])

    jax.tree.map(assert_close, in_a_thread(in_one_part), metrics)


@pytest.mark.parametrize(
    'settings', [{'crop': (33, 33), 'stride': (20, 20)}, {'scales': (0.5, 1.0), 'flip': True}]
)
def test_evaluation(settings):
    data = random_batch(2, 49, 33)
    data['size'] = np.array([(49, 33)] * 2, np.int32)
    variables = jax.device_put(fold(MODEL, weights(MODEL)), replicated(MESH))

    def run():
        protocol = make_protocol(MODEL.clone(folded=True), NORMALIZE, MESH, **settings)
        return evaluate(protocol, variables, [(data, ['a', 'b'])], num_classes=5, mesh=MESH)

    np.testing.assert_array_equal(in_a_thread(run), run())


def test_a_segmenter_made_here_and_used_there(tmp_path):
    small_folder(tmp_path / 'weights')
    image = random_batch(1, 70, 50)['image'][0]
    segmenter = ann_jax.load(tmp_path / 'weights', space=2)
    expected = ann_jax.load(tmp_path / 'weights')(image)
    np.testing.assert_array_equal(in_a_thread(lambda: segmenter(image)).ids, expected.ids)
    assert_close(in_a_thread(expected.probabilities), segmenter(image).probabilities())


def test_split_input_without_a_mesh_is_an_error():
    image = jax.device_put(NORMALIZE(random_batch(1, 65, 33)['image']), split_batch(MESH))
    apply = quick(lambda variables, image: MODEL.apply(variables, image).main)
    with pytest.raises(ConfigError, match='call it under jax.set_mesh'):
        apply(weights(MODEL), image)
    with jax.set_mesh(MESH):
        expected = apply(weights(MODEL), image)
    with pytest.raises(ConfigError, match='call it under jax.set_mesh'), jax.set_mesh(MESH):
        failures = []

        def call():
            try:
                apply(weights(MODEL), image)
            except ConfigError as error:
                failures.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        raise failures[0]
    assert expected.shape[1] == 9
