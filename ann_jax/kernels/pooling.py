"""Pooling of stride 2: 3x3 maxima and 2x2 averages.

From slices of the map, which all exporters support; TPUs and rows over devices take XLA's windows for maxima.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from ann_jax.kernels import Array
from ann_jax.kernels.forms import by_platform, with_static
from ann_jax.kernels.masking import Size, size_of
from ann_jax.parallel.mesh import row_shards


def max_pool(x: Float[Array, 'B H W C'], ceil: bool) -> Float[jax.Array, 'B H_out W_out C']:
    """Max pooling with padding 1; output sizes are rounded down, or up with `ceil`.

    If several neighbours are the largest, the first gets the gradient, as in torch. XLA's own form makes
    index maps for this: four on CPUs, two on GPUs.

    Args:
        x: features; on canvases, non-negative in the images and zero outside them.
        ceil: as torch's `ceil_mode`.

    Returns:
        The pooled map. Rows that are split over devices stay split: H_out is H / 2.
    """
    if row_shards(x) > 1:
        # XLA exchanges the rows. One more column of padding adds a window if the size is even, and none if it
        # is odd.
        return nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1 + int(ceil))])
    return by_platform(
        x,
        tpu=with_static(_by_windows, ceil),
        default=with_static(_by_slices, x.shape[1:3], ceil),
    )


def _by_windows(ceil, x):
    """XLA's own form, which TPUs have operations for."""
    # One more column of padding adds a window if the size is even, and none if it is odd.
    return nn.max_pool(x, (3, 3), (2, 2), [(1, 1 + int(ceil))] * 2)


# CPUs and GPUs


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_slices(size, ceil, x):
    return functools.reduce(jnp.maximum, _neighbours(x, size, ceil))


def _forward(size, ceil, x):
    """And which pixel of each window is the largest: a byte."""
    neighbours = _neighbours(x, size, ceil)
    largest = jax.lax.optimization_barrier(functools.reduce(jnp.maximum, neighbours))
    first = jnp.full(largest.shape, 8, jnp.uint8)
    for i in reversed(range(8)):
        first = jnp.where(neighbours[i] == largest, jnp.uint8(i), first)
    return largest, jax.lax.optimization_barrier(first)


def _backward(size, ceil, first, gradient):
    del ceil
    batch, height, width, channels = first.shape
    of = lambda i, j: jnp.where(first == 3 * i + j, gradient, 0)
    # An even row is the middle one of a window, an odd row the last of a window and the first of the next.
    rows = lambda j: (of(1, j), of(2, j) + _next(of(0, j), 1))
    before, middle, after = map(rows, range(3))
    pixels = [(middle[i], after[i] + _next(before[i], 2)) for i in range(2)]  # [row][column], even and odd
    x = jnp.stack([jnp.stack(row, 3) for row in pixels], 2).reshape(batch, 2 * height, 2 * width, channels)
    return (x[:, : size[0], : size[1]],)


_by_slices.defvjp(_forward, _backward)


def _next(x, axis):
    """The element after each one along an axis; 0 after the last."""
    shift = [(0, 0, 0)] * 4
    shift[axis] = (-1, 1, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), shift)


def _neighbours(x, size, ceil):
    """The nine pixels of each window: (B, H', W', C) each, row by row."""
    height, width = ((n - 1 + int(ceil)) // 2 + 1 for n in size)
    # If sizes are odd or rounded down, this is one row and column more than the windows need.
    x = jnp.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)), constant_values=-jnp.inf)
    return [_every_second(_every_second(x, i, height, 1), j, width, 2) for i in range(3) for j in range(3)]


def _every_second(x, first, count, axis):
    return jax.lax.slice_in_dim(x, first, first + 2 * count - 1, 2, axis)


def average_pool(x: Float[Array, 'B H W C'], size: Size = None) -> Float[jax.Array, 'B H_out W_out C']:
    """2x2 average pooling; sizes round up, and a window at an odd edge averages only the pixels it covers.

    As torch's AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False). Sums are in float32.

    Args:
        x: zero outside of the images.
        size: of the images, if they do not fill x.

    Returns:
        Averages in the dtype of x. Rows that are split over devices stay split.
    """
    y, (height, width) = jnp.asarray(x, jnp.float32), ((n - 1) // 2 + 1 for n in x.shape[1:3])
    if row_shards(x) > 1:
        # XLA exchanges the rows, which are even in number here.
        y = nn.pool(y, 0.0, jax.lax.add, (2, 2), (2, 2), [(0, 0), (0, 2 * width - x.shape[2])])
    else:
        y = jnp.pad(y, ((0, 0), (0, 1), (0, 1), (0, 0)))  # taken where the size is odd
        y = _every_second(y, 0, height, 1) + _every_second(y, 1, height, 1)
        y = _every_second(y, 0, width, 2) + _every_second(y, 1, width, 2)
    for axis, length in enumerate(size_of(x.shape, size), 1):
        # An image has one or two pixels of its last window.
        index = jnp.arange(y.shape[axis]).reshape([-1 if i == axis else 1 for i in range(4)])
        length = length[:, None, None, None] if isinstance(length, jax.Array) else length
        y = y * jnp.where(2 * index + 1 == length, 1.0, 0.5)
    return y.astype(x.dtype)
