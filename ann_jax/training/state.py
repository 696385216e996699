"""The state of training: arrays only."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from ann_jax.models.initializers import shape_variables
from ann_jax.training import groups


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

    @property
    def averaged(self) -> dict[str, Any]:
        """Variables to evaluate: the moving average if there is one, or else `variables`."""
        return self.variables


class AveragedState(TrainState):
    """A state with an exponential moving average of parameters and statistics.

    A class of its own, so that checkpoints without an average have no place for one.
    """

    ema: dict[str, Any]  # 'params' and 'batch_stats', and 'count', the number of steps averaged

    @property
    def averaged(self) -> dict[str, Any]:
        """The moving average."""
        return {key: self.ema[key] for key in ('params', 'batch_stats')}


def create_state(
    variables: Mapping[str, Any],
    tx: optax.GradientTransformation,
    *,
    factors: Mapping[str, float] | None = None,
    ema: bool = False,
) -> TrainState:
    """The state before the first step, on the host or the default device.

    Args:
        variables: of the network.
        tx: the optimizer, which gets a state for the parameters that are trained.
        factors: on the learning rate of parts, as for the step; those of factor 0 are frozen.
        ema: whether steps keep a moving average, an `AveragedState`.

    Raises:
        ConfigError: `factors` names no part, or freezes all.
    """
    fields = {
        'step': jnp.zeros((), jnp.int32),
        'params': variables['params'],
        'batch_stats': variables.get('batch_stats', {}),
        'opt_state': tx.init(groups.trained(variables['params'], factors or {})),
    }
    if not ema:
        return TrainState(**fields)
    # Arrays of its own: a step reuses the memory of its state.
    copied = jax.tree.map(lambda x: x.copy(), {key: fields[key] for key in ('params', 'batch_stats')})
    return AveragedState(**fields, ema=copied | {'count': jnp.zeros((), jnp.int32)})


def abstract_state(
    model: nn.Module, tx: optax.GradientTransformation, sharding: jax.sharding.Sharding, **settings: Any
) -> TrainState:
    """Shapes, dtypes and sharding of a state, for restoring a checkpoint; `settings` as `create_state`."""
    state = jax.eval_shape(lambda variables: create_state(variables, tx, **settings), shape_variables(model))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def count_parameters(params: Any) -> int:
    """Number of elements in a tree of arrays."""
    return sum(x.size for x in jax.tree.leaves(params))
