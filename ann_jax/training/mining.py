"""Below which probability OHEM keeps pixels."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Float, Float32, Int, Integer

from ann_jax.kernels import Array
from ann_jax.training.rows import per_row, row_sum


def kth_smallest(values: Float32[Array, 'R *pixels'], k: Integer[Array, ' R']) -> Float32[jax.Array, ' R']:
    """The k-th smallest value of each row, counted from 0, without sorting.

    Non-negative floats are ordered like their bits, so 31 counts find the bits of the answer exactly by
    bisection; sorting a 769 x 769 map costs many times more.

    Args:
        values: non-negative, without NaN.
        k: at least 0, below the number of values in a row.
    """
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)

    def halve(i, found):
        # Sets the bit if at most k values are below the result.
        candidate = found | (1 << (30 - i))
        below = row_sum(bits < per_row(candidate, bits))
        return jnp.where(below <= k, candidate, found)

    found = jax.lax.fori_loop(0, 31, halve, jnp.zeros(values.shape[:1], jnp.int32))
    return jax.lax.bitcast_convert_type(found, jnp.float32)


def hard_limit(
    p: Float32[Array, 'R *pixels'], threshold: Float[ArrayLike, ''], min_kept: Int[ArrayLike, '']
) -> Float32[jax.Array, ' R']:
    """Probabilities below which OHEM keeps pixels of each row: `threshold`, or more to keep enough.

    Args:
        p: `true_probability`: 2 where the label is IGNORE, above every probability.
        threshold, min_kept: see `pixel_losses.ohem_cross_entropy`.
    """
    last = jnp.maximum(row_sum(p <= 1) - 1, 0)
    return jnp.maximum(kth_smallest(p, jnp.minimum(min_kept, last)), threshold)
