"""Which pixels lie near a boundary between classes."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Integer

from ann_jax.kernels import Array
from ann_jax.typing import IGNORE


def near_boundary(labels: Integer[Array, 'B H W'], width: int) -> Bool[jax.Array, 'B H W']:
    """Pixels with another class at most `width` rows and columns away; IGNORE is no class."""
    valid, labels = labels != IGNORE, labels.astype(jnp.int32)
    highest = _over_windows(jnp.where(valid, labels, -1), jax.lax.max, -1, width)
    lowest = _over_windows(jnp.where(valid, labels, IGNORE), jax.lax.min, IGNORE, width)
    return valid & (highest > lowest)


def boundary_weights(
    labels: Integer[Array, 'B H W'], weight: float, width: int
) -> Float32[jax.Array, 'B H W'] | None:
    """Weights of the pixels: `weight` near a boundary, otherwise 1; None if all are 1."""
    if weight == 1:
        return None
    return jnp.where(near_boundary(labels, width), jnp.float32(weight), 1)


def _over_windows(x, operator, start, width):
    side = 2 * width + 1
    for window in ((1, side, 1), (1, 1, side)):  # one axis after the other: fewer comparisons
        x = jax.lax.reduce_window(x, np.int32(start), operator, window, (1, 1, 1), 'SAME')
    return x
