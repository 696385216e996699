"""What training changes from step to step: arrays only."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct


class TrainState(struct.PyTreeNode):
    """Step counter, parameters, running statistics and optimizer state."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {'params': self.params, 'batch_stats': self.batch_stats}


def create_state(model: nn.Module, tx: optax.GradientTransformation, seed: int) -> TrainState:
    """A new state; to be jitted, or given to `jax.eval_shape` for its shapes.

    Random numbers come from `seed` alone, so every process creates the same state.
    """
    # Parameters do not depend on the image's size: the smallest one compiles fastest.
    variables = model.init(jax.random.key(seed), jnp.zeros((1, 33, 33, 3)))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables['params'],
        batch_stats=variables['batch_stats'],
        opt_state=tx.init(variables['params']),
    )


def count_parameters(params: Any) -> int:
    """Numbers in a tree of arrays."""
    return sum(x.size for x in jax.tree.leaves(params))
