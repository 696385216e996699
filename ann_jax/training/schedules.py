"""Learning-rate schedules, step -> learning rate, as torch and optax define them.

A Python step gives a Python number, without a device; NumPy arrays and traced steps work too.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ann_jax.errors import ConfigError

SCHEDULES = ('poly', 'cosine', 'one_cycle', 'constant')
# Of torch's OneCycleLR: the share of the steps in which the rate rises, how many times the first rate is
# below the highest, and the last below the first.
_RISE, _BELOW_HIGHEST, _BELOW_FIRST = 0.3, 25, 1e4


def poly_schedule(base: float, max_steps: int, power: float = 0.9) -> optax.Schedule:
    """base * (1 - step / max_steps) ** power, as in the released code; the paper misplaces the power.

    It stays 0 after `max_steps`, as torch's PolynomialLR.

    Raises:
        ConfigError: `max_steps` is not above 0, so that the rate would rise.
    """
    if max_steps <= 0:
        raise ConfigError(f'max_steps={max_steps}: must be above 0, the steps of the run')

    def rate(step):
        left = 1 - step / max_steps
        return base * _choose(left > 0, left, 0.0) ** power

    return rate


def cosine_schedule(base: float, max_steps: int) -> optax.Schedule:
    """Half a cosine from `base` to 0, torch's CosineAnnealingLR."""
    return lambda step: _between(base, 0.0, step / max_steps)


def one_cycle_schedule(base: float, max_steps: int) -> optax.Schedule:
    """Up to `base` in 30 % of the steps and down to almost 0, each half a cosine: torch's OneCycleLR."""
    first = base / _BELOW_HIGHEST
    up = max(_RISE * max_steps - 1, 0)
    down = max(max_steps - 1 - up, 1)

    def rate(step):
        rising = _between(first, base, step / (up or 1))
        return _choose(step < up, rising, _between(base, first / _BELOW_FIRST, (step - up) / down))

    return rate


def make_schedule(
    name: str,
    base: float,
    max_steps: int,
    *,
    power: float = 0.9,
    warmup_steps: int = 0,
    warmup_factor: float = 0.0,
) -> optax.Schedule:
    """A schedule by its name, after a linear warm-up.

    The warm-up leads from `warmup_factor` times the schedule's first rate to that rate; the schedule itself
    runs over the steps that are left. torch's SequentialLR of LinearLR and the schedule does the same, and
    so does `optax.warmup_cosine_decay_schedule`, with `warmup_factor=0`.

    Args:
        name: one of `SCHEDULES`.
        base: the highest rate.
        max_steps: of the run, with those of the warm-up.
        power: of 'poly'.
        warmup_steps: 0 for no warm-up; from `max_steps` on, the run ends in it.
        warmup_factor: from 0 to 1.
    """
    steps = max(max_steps - warmup_steps, 1)
    after = {
        'poly': lambda: poly_schedule(base, steps, power),
        'cosine': lambda: cosine_schedule(base, steps),
        'one_cycle': lambda: one_cycle_schedule(base, steps),
        'constant': lambda: lambda step: base,
    }[name]()
    if not warmup_steps:
        return after
    first = after(0)

    def rate(step):
        warming = first * (warmup_factor + (1 - warmup_factor) * step / warmup_steps)
        late = step - warmup_steps
        return _choose(late < 0, warming, after(_choose(late < 0, 0, late)))

    return rate


def _between(first: float, last: float, progress: Any) -> Any:
    """From `first` to `last` along half a cosine, as `progress` goes from 0 to 1."""
    return last + (first - last) / 2 * (1 + _cosine(math.pi * progress))


def _cosine(x):
    if isinstance(x, jax.Array):
        return jnp.cos(x)
    return np.cos(x) if isinstance(x, np.ndarray) else math.cos(x)


def _choose(condition, yes, no):
    if isinstance(condition, jax.Array):
        return jnp.where(condition, yes, no)
    select: Callable = np.where if isinstance(condition, np.ndarray) else lambda c, a, b: a if c else b
    return select(condition, yes, no)
