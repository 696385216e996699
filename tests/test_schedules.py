"""Learning-rate schedules against torch's and optax's."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import quick

from ann_jax.config import validate
from ann_jax.errors import ConfigError
from ann_jax.training.schedules import SCHEDULES, make_schedule, poly_schedule
from configs import scenes

STEPS, RATE = 23, 0.3


def torch_rates(create, warmup, factor):
    """Rates of all steps, after LinearLR."""
    torch = pytest.importorskip('torch')
    schedulers = torch.optim.lr_scheduler
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    after = create(schedulers, optimizer, STEPS - warmup)
    if warmup:
        # The schedule sets the rate that the warm-up leads to.
        before = schedulers.LinearLR(optimizer, factor, 1.0, warmup)
        after = schedulers.SequentialLR(optimizer, [before, after], [warmup])
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        after.step()
    return rates


OURS_OF_TORCH = {
    'poly': lambda schedulers, optimizer, steps: schedulers.PolynomialLR(optimizer, steps, 0.9),
    'cosine': lambda schedulers, optimizer, steps: schedulers.CosineAnnealingLR(optimizer, steps),
    'constant': lambda schedulers, optimizer, steps: schedulers.ConstantLR(optimizer, 1.0),
    'one_cycle': lambda schedulers, optimizer, steps: schedulers.OneCycleLR(
        optimizer, RATE, total_steps=steps, cycle_momentum=False
    ),
}


@pytest.mark.filterwarnings('ignore:.*lr_scheduler.step.*')
@pytest.mark.parametrize('name', SCHEDULES)
def test_schedules_equal_those_of_torch(name):
    expected = torch_rates(OURS_OF_TORCH[name], 0, 1.0)
    schedule = make_schedule(name, RATE, STEPS)
    ours = [schedule(step) for step in range(STEPS)]
    assert all(isinstance(rate, float) for rate in ours)
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


@pytest.mark.filterwarnings('ignore:.*lr_scheduler.step.*')
@pytest.mark.parametrize('name', ['poly', 'cosine', 'constant'])
def test_warming_up_equals_that_of_torch(name):
    expected = torch_rates(OURS_OF_TORCH[name], 7, 0.1)
    schedule = make_schedule(name, RATE, STEPS, warmup_steps=7, warmup_factor=0.1)
    np.testing.assert_allclose([schedule(step) for step in range(STEPS)], expected, rtol=1e-9)


def test_warming_up_from_zero_equals_that_of_optax():
    ours = make_schedule('cosine', RATE, STEPS, warmup_steps=7)
    theirs = optax.warmup_cosine_decay_schedule(0.0, RATE, 7, STEPS)
    steps = np.arange(STEPS)
    np.testing.assert_allclose(ours(steps), quick(theirs)(steps), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize('name', SCHEDULES)
def test_a_run_may_end_in_its_warm_up(name):
    schedule = make_schedule(name, RATE, 4, warmup_steps=8)
    first = make_schedule(name, RATE, 1)(0)
    assert [schedule(step) for step in range(4)] == pytest.approx([first * step / 8 for step in range(4)])


def test_one_cycle_is_warmed_up_to_its_first_rate():
    schedule = make_schedule('one_cycle', RATE, STEPS, warmup_steps=3)
    alone = make_schedule('one_cycle', RATE, STEPS - 3)
    assert [schedule(step) for step in range(3)] == pytest.approx([0, RATE / 75, 2 * RATE / 75])
    assert [schedule(step) for step in range(3, STEPS)] == [alone(step) for step in range(STEPS - 3)]


@pytest.mark.parametrize('name', SCHEDULES)
def test_traced_steps_give_the_same_rates(name):
    for settings in ({}, {'warmup_steps': 4, 'warmup_factor': 0.5}):
        schedule = make_schedule(name, RATE, STEPS, **settings)
        rate = lambda step, schedule=schedule: jnp.asarray(schedule(step), jnp.float32)
        traced = quick(rate)(jnp.arange(STEPS)) * jnp.ones(STEPS)
        np.testing.assert_allclose(
            traced, [schedule(int(step)) for step in range(STEPS)], rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize('steps', [1, 2, 3, 4])
def test_the_shortest_cycles_are_finite(steps):
    rates = [make_schedule('one_cycle', RATE, steps)(step) for step in range(steps)]
    assert np.isfinite(rates).all() and 0 < max(rates) <= RATE


def test_poly_schedule():
    schedule = poly_schedule(0.01, 60_000)
    steps = np.array([0, 1, 30_000, 59_999, 60_000])
    np.testing.assert_allclose(schedule(steps), 0.01 * (1 - steps / 60_000) ** 0.9, rtol=1e-5, atol=1e-9)
    assert [poly_schedule(0.01, 10)(step) for step in (10, 11, 99)] == [0, 0, 0]  # and no complex number
    for late in (np.array([11]), jnp.array([11])):
        np.testing.assert_array_equal(poly_schedule(0.01, 10)(late), [0])


def test_a_config_is_refused_before_it_runs():
    for key, value, message in (
        ('optim.name', 'adamv', "did you mean 'adam'"),
        ('optim.factors', 'stem', "optim.factors='stem': 'stem' must be NAME=FACTOR"),
        (
            'optim.schedule',
            'cosin',
            'optim.schedule=.cosin.: must be one of poly, cosine, one_cycle, constant',
        ),
    ):
        config = scenes.get_config('')
        config.update_from_flattened_dict({key: value})
        with pytest.raises(ConfigError, match=message):
            validate(config)
