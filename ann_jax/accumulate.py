"""Gradient accumulation: a step over a large batch, part by part, in the memory of one part.

The parts are calls of one compiled program. A loop inside it would be a scan over convolutions, which is slow
on CPUs; an unrolled one would take the compiler as many times as long.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ann_jax.losses import Whole
from ann_jax.sharding import replicated
from ann_jax.state import TrainState
from ann_jax.train_step import METRICS, Gains, StepParts


def make_accumulated_step(
    parts: StepParts,
    whole_batch: Callable[..., Whole],
    mine: bool,
    mesh: Mesh,
    compiler_options: Mapping[str, Any] | None = None,
) -> Callable[[TrainState, Sequence[Mapping[str, jax.Array]]], tuple[TrainState, dict[str, Any]]]:
    """Builds and jits a step over the parts of a batch; it donates the state.

    Loss, gradients and metrics are those of the whole batch, but that batch normalisation takes its
    statistics over a part, and dropout is drawn for each. The running statistics are the means of what each
    part alone would have left.

    Args:
        parts: of the step.
        whole_batch: maps the labels of the parts, and probabilities if `mine`, to a `Whole`.
        mine: whether OHEM looks for hard pixels in the whole batch: it takes a forward pass over all parts
            before the first gradient.
        mesh: devices that the parts are split over.
        compiler_options: of the programs of a part.

    Returns:
        A function from a state and the parts, of one size, to the next state and scalar metrics.
    """
    whole_of = jax.jit(whole_batch, out_shardings=replicated(mesh))
    probabilities = jax.jit(parts.probabilities, compiler_options=compiler_options)

    def nothing(state):
        arrays = jax.tree.map(jnp.zeros_like, (state.params, state.batch_stats))
        return Gains(*arrays, dict.fromkeys(METRICS, jnp.zeros(())))

    def add(total, state, batch, part, whole):
        return jax.tree.map(jnp.add, total, parts.gains(state, batch, part, whole))

    def update(state, total, count):
        mean = jax.tree.map(lambda x: x / count, total.batch_stats)
        return parts.update(state, total._replace(batch_stats=mean))

    add = jax.jit(add, donate_argnums=0, out_shardings=replicated(mesh), compiler_options=compiler_options)
    update = jax.jit(update, donate_argnums=0, out_shardings=replicated(mesh))
    zeros = jax.jit(nothing, out_shardings=replicated(mesh))

    def step(state, batches):
        labels = [batch['label'] for batch in batches]
        p = [probabilities(state, batch, part) for part, batch in enumerate(batches)] if mine else None
        whole = whole_of(labels, p)
        total = zeros(state)
        for part, batch in enumerate(batches):
            total = add(total, state, batch, part, whole)
        return update(state, total, len(batches))

    return step
