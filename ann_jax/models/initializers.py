"""Initial values of parameters, drawn with NumPy where the initializer allows it.

`model.init` compiles a generator for every layer, which takes 20 s for ResNet-101 on two cores; this takes 1
s. NumPy also gives the same numbers on every backend and in every process.
"""

import functools
import math
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util


@dataclass(frozen=True)
class Initializer:
    """A Flax initializer that NumPy can also draw."""

    function: Callable  # Flax's: (key, shape, dtype) -> array
    draw: Callable  # (generator, shape) -> NumPy array

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        """Draws with jax; inside `initial_variables`, only records that this initializer was called."""
        if (declared := _declared.get()) is None:
            return self.function(key, shape, dtype)
        array = np.broadcast_to(np.zeros((), dtype), shape)
        declared[id(array)] = self, array
        return array  # type: ignore[return-value]  # Flax accepts NumPy arrays too


# Inside `initial_variables`: id of a placeholder -> its initializer, and the placeholder.
_declared: ContextVar[dict[int, tuple[Initializer, np.ndarray]] | None] = ContextVar('declared', default=None)


def normal(std: float) -> Initializer:
    """A normal distribution about 0."""
    return Initializer(
        nn.initializers.normal(std), lambda rng, shape: std * rng.standard_normal(shape, np.float32)
    )


def constant(value: float) -> Initializer:
    """A constant."""
    return Initializer(nn.initializers.constant(value), lambda rng, shape: np.full(shape, value, np.float32))


def _draw_he(rng, shape):
    height, width, _, features = shape
    return math.sqrt(2 / (height * width * features)) * rng.standard_normal(shape, np.float32)


he_normal = Initializer(nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'), _draw_he)
zeros, ones = constant(0.0), constant(1.0)


def shape_variables(model: nn.Module) -> Any:
    """The variables of a network as `jax.ShapeDtypeStruct`s; they do not depend on the image size.

    Networks that are equal are traced once: that takes seconds for a deep one, and every evaluation asks.
    """
    try:
        hash(model)
    except TypeError:  # a backbone of other people may have a list among its attributes
        return _shapes.__wrapped__(model)
    return jax.tree.map(lambda leaf: leaf, _shapes(model))  # the caller may change its tree


@functools.lru_cache(maxsize=16)
def _shapes(model):
    return jax.eval_shape(lambda: _init(model, jax.random.key(0)))


def initial_variables(model: nn.Module, seed: int) -> dict[str, Any]:
    """Draws the parameters as the modules declare them.

    An `Initializer` is drawn with NumPy. Any other initializer, as in a third-party backbone, draws its
    parameters itself.

    Returns:
        Variables as NumPy arrays.
    """
    found: dict[tuple, Any] = {}
    declared: dict[int, tuple[Initializer, np.ndarray]] = {}

    def trace():
        variables = _init(model, jax.random.key(seed))
        found.update(traverse_util.flatten_dict(variables))
        return variables

    token = _declared.set(declared)
    try:
        jax.eval_shape(trace)
    finally:
        _declared.reset(token)
    others = [path for path, leaf in found.items() if id(leaf) not in declared]
    drawn = _draw_by_flax(model, seed, others) if others else {}
    rng = np.random.default_rng(seed)
    once: dict[int, np.ndarray] = {}  # a leaf may occur twice
    for path in sorted(found.keys() - drawn.keys()):
        initializer, leaf = declared[id(found[path])]
        if id(leaf) not in once:
            once[id(leaf)] = initializer.draw(rng, leaf.shape).astype(leaf.dtype)
        drawn[path] = once[id(leaf)]
    return traverse_util.unflatten_dict(drawn)


def _draw_by_flax(model, seed, paths):
    """Variables from their modules' own initializers; the other ones are never compiled."""

    def draw():
        flat = traverse_util.flatten_dict(_init(model, jax.random.key(seed)))
        return {path: flat[path] for path in paths}

    return jax.device_get(jax.jit(draw)())


def _init(model, key):
    return model.init(key, jnp.zeros((1, 33, 33, getattr(model, 'in_channels', 3))))
