"""What training changes from step to step: arrays only, and their first values."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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


def initial_variables(model: nn.Module, seed: int) -> dict[str, Any]:
    """Draws the distributions that the modules declare, with NumPy.

    `model.init` gives the like, but compiles a generator for every layer: 20 s for ResNet-101 on two
    cores, this 1 s. It also gives the same numbers on every backend and in every process.

    Returns:
        Variables as NumPy arrays.
    """
    shapes = jax.eval_shape(lambda: _init(model, seed))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        *_, layer, name = (key.key for key in path)
        if name == 'kernel' and layer != 'out':
            height, width, _, features = leaf.shape
            std = 0.01 if layer.endswith('classifier') else math.sqrt(2 / (height * width * features))
            return std * rng.standard_normal(leaf.shape, np.float32)
        return np.full(leaf.shape, 1 if name in ('scale', 'var') else 0, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def create_state(variables: Mapping[str, Any], tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step, on the host or the default device."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables['params'],
        batch_stats=variables['batch_stats'],
        opt_state=tx.init(variables['params']),
    )


def abstract_state(
    model: nn.Module, tx: optax.GradientTransformation, sharding: jax.sharding.Sharding
) -> TrainState:
    """Shapes, dtypes and sharding of a state, as restoring a checkpoint needs them."""
    state = jax.eval_shape(lambda: create_state(_init(model, 0), tx))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def _init(model, seed):
    # Parameters do not depend on the size of the image.
    return model.init(jax.random.key(seed), jnp.zeros((1, 33, 33, 3)))


def count_parameters(params: Any) -> int:
    """Numbers in a tree of arrays."""
    return sum(x.size for x in jax.tree.leaves(params))
