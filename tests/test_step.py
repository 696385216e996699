"""Steps that are not finite leave no trace but their number, if so configured; what a step copies."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ann_jax.kernels import forms
from ann_jax.models.ann import Logits
from ann_jax.models.layers import Conv
from ann_jax.parallel.mesh import make_mesh
from ann_jax.parallel.programs import jit
from ann_jax.runs.progress import TrainLog
from ann_jax.training.losses import Loss
from ann_jax.training.optimizers import sgd
from ann_jax.training.schedules import poly_schedule
from ann_jax.training.state import TrainState
from ann_jax.training.step import make_train_step

POISON = 9  # a label that makes the loss, or only its gradient, not finite


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, x, train, full_size=True):
        x = nn.BatchNorm(use_running_average=not train)(x)
        return Logits(nn.Dense(2)(x), nn.Dense(2)(x))


def run(labels, *, skip, where):
    """States and metrics of a step per label."""

    def loss(main, auxiliary, label):
        poisoned = (label == POISON).any()
        value = ((main - 1) ** 2).mean() + (auxiliary**2).mean()
        if where == 'loss':
            value *= jnp.where(poisoned, jnp.inf, 1.0)
        else:  # the root of 0 is finite, its slope is not
            value += jnp.sqrt(jnp.where(poisoned, 0.0, 1.0) * value**2 + 1e-6 * ~poisoned)
        return Loss(value, value, value, value)

    tx = sgd(poly_schedule(0.1, 10))
    variables = Tiny().init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)), train=False)
    state = TrainState(
        jnp.asarray(0), variables['params'], variables['batch_stats'], tx.init(variables['params'])
    )
    step = jax.jit(
        make_train_step(
            Tiny(), tx, loss=loss, normalize=lambda x: x / 255.0, seed=0,
            skip_not_finite=skip,
        )
    )  # fmt: skip
    results = []
    image = np.random.default_rng(0).integers(0, 255, (1, 2, 2, 3), np.uint8)
    for label in labels:
        state, metrics = step(state, {'image': image, 'label': np.full((1, 2, 2), label, np.uint8)})
        results.append((jax.device_get(state), jax.device_get(metrics)))
    return results


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize('where', ['loss', 'gradient'])
def test_a_step_that_is_not_finite_is_left_out(where):
    (before, _), (after, metrics), (last, _) = run([0, POISON, 0], skip=True, where=where)
    assert metrics['skipped'] and not np.isfinite([metrics['loss'], metrics['gradient_norm']]).all()
    assert after.step == 2
    assert_same(after.replace(step=before.step), before)
    assert np.isfinite(last.params['Dense_0']['kernel']).all()
    assert (last.params['Dense_0']['kernel'] != after.params['Dense_0']['kernel']).any()
    # Without the guard the weights are lost.
    (_, _), (bad, _) = run([0, POISON], skip=False, where=where)
    assert not np.isfinite(bad.params['Dense_0']['kernel']).all()


def test_the_guard_changes_nothing_else():
    (plain, _), (guarded, _) = (run([0, 0], skip=skip, where='loss')[-1] for skip in (False, True))
    # The compiler fuses the two programs differently.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), plain, guarded)


class Silent:
    """Stands in for the report and the bar."""

    def scalars(self, *_):
        pass

    def update(self):
        pass

    def set_postfix(self, **_):
        pass


def train_log(newest, cure=''):
    return TrainLog(Silent(), Silent(), poly_schedule(0.1, 10), 1, lambda: newest, cure)


def metrics(loss=1.0, **more):
    return {'loss': loss, 'gradient_norm': 1.0, 'pixel_accuracy': 0.5} | more


BATCH = {'name': np.array(['a', 'b']), 'problem': np.array(['', ''])}


def test_the_log_names_step_samples_and_newest_checkpoint():
    log = train_log(newest=4)
    for number, bad in ((5, {}), (6, {'gradient_norm': np.inf})):
        log.add(number, metrics(**bad), BATCH)
    with pytest.raises(
        FloatingPointError, match='gradient norm inf at step 6, of the samples a, b.*is at step 4'
    ):
        log.flush()


def test_the_log_counts_steps_left_out_and_samples_replaced(caplog, monkeypatch):
    log, rates = train_log(newest=None), []
    keep = lambda _, step, values: rates.append(values['train/learning_rate'])
    monkeypatch.setattr(Silent, 'scalars', keep)
    later = TrainLog(Silent(), Silent(), poly_schedule(0.1, 10), 1, behind=2)
    later.add(7, metrics(), BATCH)
    later.flush()
    assert rates.pop() == pytest.approx(poly_schedule(0.1, 10)(4))  # two steps were skipped before
    log.add(1, metrics(np.nan, skipped=True), BATCH | {'problem': np.array(['', 'c.png is truncated'])})
    log.add(2, metrics(skipped=False), BATCH)
    log.flush()
    assert (log.skipped, log.replaced) == (1, 1)
    # The optimizer's schedule stood still at step 1.
    assert rates == [pytest.approx(0.1), pytest.approx(0.1)]
    assert 'step 1: b in place of a bad sample: c.png is truncated' in caplog.text
    assert 'at step 1, of the samples a, b: step skipped (1 so far)' in caplog.text


@pytest.mark.parametrize(('waited', 'steps', 'told'), [(0.06, 20, 1), (0.06, 19, 0), (0.05, 20, 0)])
def test_steps_that_wait_for_data_are_told_once(waited, steps, told, caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr('ann_jax.runs.progress.time', SimpleNamespace(perf_counter=lambda: now[0]))
    log = train_log(newest=None, cure='buy a disk')
    for _ in range(2):
        for number in range(1, steps + 1):
            with log.clock('data'):
                now[0] += waited
            now[0] += 1 - waited
            log.add(number, metrics(), BATCH)
        log.flush()
        spent = log.seconds_per_step()
        assert spent == pytest.approx((1, waited))
    assert caplog.text.count('6 % of the time, steps wait for data: buy a disk') == told


class Deep(nn.Module):
    @nn.compact
    def __call__(self, x, train, full_size=True):
        for _ in range(4):
            x = nn.relu(Conv(64)(nn.relu(x)).array)
        return Logits(Conv(2)(x), Conv(2)(x))


def copied_parameters(platform='cpu'):
    """Kernels that a compiled step copies."""
    tx = sgd(poly_schedule(0.1, 10))
    image, label = jnp.zeros((1, 4, 4, 3), jnp.uint8), jnp.zeros((1, 4, 4), jnp.uint8)
    params = Deep().init(jax.random.key(0), image, train=False)['params']
    state = TrainState(jnp.asarray(0), params, {}, tx.init(params))

    def loss(main, auxiliary, label):
        value = (main**2).mean() + (auxiliary**2).mean()
        return Loss(value, value, value, value)

    normalize = lambda image: image / 255.0
    step = make_train_step(Deep(), tx, loss=loss, normalize=normalize, seed=0)
    picked = forms.with_forms_of(platform, step)
    program = jit(lambda state, batch: picked(state, batch), make_mesh(jax.devices()[:1]), donate_argnums=0)
    program = program.lower(state, {'image': image, 'label': label}).compile().as_text()
    return set(re.findall(r'copy\(%?state\S*params\S*(Conv_\d)\S*kernel', program))


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='a matter of compilers for CPUs')
def test_parameters_are_updated_in_place():
    assert not copied_parameters()
    assert copied_parameters('any')  # without the barriers of the form for CPUs
