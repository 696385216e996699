"""Sums over the pixels of each row: an image, or a whole batch as one."""

import jax.numpy as jnp
from jaxtyping import Num, Shaped

from ann_jax.kernels import Array


def row_sum(x: Shaped[Array, 'R *pixels']) -> Num[Array, ' R']:
    """The sum of each row. Its axes are not merged, since devices may split one of them."""
    return x.sum(tuple(range(1, x.ndim)))


def per_row(x: Shaped[Array, ' R'], like: Shaped[Array, 'R *pixels']) -> Shaped[Array, 'R *#pixels']:
    """(R,) -> (R, 1, ...), to broadcast with `like`."""
    return x.reshape(-1, *[1] * (like.ndim - 1))


def divide(total, count):
    """total / count; 0, with a gradient of 0, where the count is 0."""
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)
