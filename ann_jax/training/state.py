"""The state of training: arrays only."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from ann_jax.models.initializers import shape_variables


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


def create_state(variables: Mapping[str, Any], tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step, on the host or the default device."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables['params'],
        batch_stats=variables.get('batch_stats', {}),
        opt_state=tx.init(variables['params']),
    )


def abstract_state(
    model: nn.Module, tx: optax.GradientTransformation, sharding: jax.sharding.Sharding
) -> TrainState:
    """Shapes, dtypes and sharding of a state, for restoring a checkpoint."""
    state = jax.eval_shape(lambda variables: create_state(variables, tx), shape_variables(model))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def count_parameters(params: Any) -> int:
    """Number of elements in a tree of arrays."""
    return sum(x.size for x in jax.tree.leaves(params))
