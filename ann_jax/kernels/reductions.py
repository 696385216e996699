"""Sums of many terms; the forms for CPUs are accurate without materialising the terms.

They are not meant to be differentiated: they serve in gradients, and on them.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ann_jax.kernels import Array
from ann_jax.kernels.forms import by_platform
from ann_jax.parallel.mesh import row_shards

# For accuracy, XLA's CPU backend sums more terms than this as a tree, and materialises all of them first. Up
# to this number, it computes the terms as it adds them up.
TERMS = 32
COLUMNS = 8  # of a row at a time: short sums of short sums lose few digits


def sum_pixels(x: Float[Array, 'B H W C']) -> Float[jax.Array, ' C']:
    """The sum of all pixels of all images, in the dtype of x: cast bfloat16 to float32 first."""
    if row_shards(x) > 1:  # XLA sums over the shards
        return _plain_sum(x)
    return by_platform(x, cpu=_sum_by_columns, default=_plain_sum)


def _plain_sum(x):
    return x.sum((0, 1, 2))


def _sum_by_columns(x):
    parts = (x[:, :, i : i + COLUMNS].sum(2) for i in range(0, x.shape[2], COLUMNS))
    return jax.lax.optimization_barrier(sum(parts)).sum((0, 1))


def sum_of_squares(x: Float[Array, '...']) -> Float[jax.Array, '']:
    """The sum of the squares of all elements."""
    return by_platform(x, cpu=_squares_by_factors, default=_plain_squares)


def _plain_squares(x):
    return jnp.square(x).sum()


def _squares_by_factors(x):
    x = jnp.square(x)
    while (terms := math.gcd(x.size, TERMS)) > 1:
        x = jax.lax.optimization_barrier(x.reshape(terms, -1).sum(0))
    return x.sum()


def global_norm(tree: Any) -> Float[jax.Array, '']:
    """The norm of the vector of all elements of all arrays."""
    leaves = jax.tree.leaves(tree)
    vectors = [x for x in leaves if x.ndim == 1]
    squares = sum(sum_of_squares(x) for x in leaves if x.ndim != 1)
    if vectors:
        squares += by_platform(vectors, cpu=_squares_of_vectors, default=_plain_squares_of_vectors)
    return jnp.sqrt(squares)


def _plain_squares_of_vectors(vectors):
    return sum(map(_plain_squares, vectors))


def _squares_of_vectors(vectors):
    # Compiling hundreds of short sums would take seconds.
    return _squares_by_factors(jax.lax.optimization_barrier(jnp.concatenate(vectors)))
