"""Gradient accumulation: a step over a large batch, part by part, in the memory of one part.

Each part is a call of the same compiled program. A loop inside the program would be a scan over convolutions,
which is slow on CPUs; unrolled, it would multiply the compile time.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ann_jax.parallel.arrays import replicated
from ann_jax.parallel.programs import jit
from ann_jax.training.losses import BatchTotals
from ann_jax.training.state import TrainState
from ann_jax.training.step import METRICS, StepOutput, StepParts


def make_accumulated_step(
    parts: StepParts,
    batch_totals: Callable[..., BatchTotals],
    mine_over_batch: bool,
    mesh: Mesh,
    *,
    deterministic: bool = False,
) -> Callable[[TrainState, Sequence[Mapping[str, jax.Array]]], tuple[TrainState, dict[str, Any]]]:
    """Builds and jits a step over the parts of a batch; it donates the state.

    Loss, gradients and metrics are those of the whole batch, except that batch normalisation uses the
    statistics of each part, and dropout is drawn per part. The running statistics are averaged over the
    parts.

    Args:
        parts: the functions that make up a step.
        batch_totals: maps the labels of the parts, and probabilities if `mine_over_batch`, to `BatchTotals`.
        mine_over_batch: whether OHEM looks for hard pixels in the whole batch, which takes a forward pass
            over all parts before the first gradient.
        mesh: devices that the parts are split over.
        deterministic: see `make_step`.

    Returns:
        A function from a state and equally sized parts to the next state and scalar metrics.
    """
    compiled = functools.partial(jit, mesh=mesh, deterministic=deterministic)
    totals_of = compiled(batch_totals, out_shardings=replicated(mesh))
    probabilities = compiled(parts.probabilities)

    def nothing(state):
        variables = parts.trained(state.params), state.batch_stats
        gradients, batch_stats = jax.tree.map(jnp.zeros_like, variables)
        return StepOutput(gradients, batch_stats, dict.fromkeys(METRICS, jnp.zeros(())))

    def add(total, state, batch, part, totals):
        return jax.tree.map(jnp.add, total, parts.forward_backward(state, batch, part, totals))

    def update(state, total, count):
        mean = jax.tree.map(lambda x: x / count, total.batch_stats)
        return parts.update(state, total._replace(batch_stats=mean))

    add = compiled(add, donate_argnums=0, out_shardings=replicated(mesh))
    update = compiled(update, donate_argnums=0, out_shardings=replicated(mesh))
    zeros = compiled(nothing, out_shardings=replicated(mesh))

    def step(state, batches):
        labels = [batch['label'] for batch in batches]
        p = None
        if mine_over_batch:
            p = [probabilities(state, batch, part) for part, batch in enumerate(batches)]
        totals = totals_of(labels, p)
        total = zeros(state)
        for part, batch in enumerate(batches):
            total = add(total, state, batch, part, totals)
        return update(state, total, len(batches))

    return step
