"""Bilinear resizing of (B, H, W, C) arrays without antialiasing, equal to torch's `interpolate`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Float32, Integer, Num

from ann_jax.kernels import Array, Dim
from ann_jax.kernels.forms import by_platform, with_static
from ann_jax.kernels.masking import Size, per_image, size_of
from ann_jax.parallel.mesh import row_shards

# Rows that a shard needs from each neighbour: sizes are rounded at each stage, but two maps of the same image
# differ by less than two rows of the input.
HALO = 2


def resize(
    x: Float[Array, 'B H W C'], size: Size, canvas: tuple[Dim, Dim], target: Size, align_corners: bool
) -> Float[jax.Array, 'B H_out W_out C']:
    """Resizes between two maps of the same images.

    Args:
        x: canvases; computed in float32.
        size: of the images on them.
        canvas: height and width of the result. If rows are split over devices, the heights of the canvas and
            of the images change by the same factor, up to rounding.
        target: sizes of the resized images; pixels outside them are undefined.
        align_corners: whether the corner pixels' centres, or their outer corners, are kept in place.

    Returns:
        The canvases in the dtype of x.
    """
    if row_shards(x) > 1:
        return _resize_over_shards(x, size, canvas, target, align_corners)
    if size is None and target is None:
        return resize_bilinear(x, canvas, align_corners)
    return resize_images(x, size, canvas, target, align_corners).astype(x.dtype)


def _linear_weights(n_in: int, n_out: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of both neighbours of each output sample, and the weight of the second."""
    target = np.arange(n_out, dtype=np.float32)
    # float32 on purpose: torch computes positions this way, and the last digits depend on it.
    if align_corners:
        source = target * np.float32((n_in - 1) / (n_out - 1) if n_out > 1 else 0)
    else:
        source = np.maximum((target + np.float32(0.5)) * np.float32(n_in / n_out) - np.float32(0.5), 0)
    low = np.minimum(source.astype(np.int32), n_in - 1)
    return low, np.minimum(low + 1, n_in - 1), (source - low).astype(np.float32)


def linear_matrix(n_in: int, n_out: int, align_corners: bool) -> Float32[np.ndarray, '{n_out} {n_in}']:
    """The matrix that resizes one axis as `resize_bilinear` does."""
    low, high, weight = _linear_weights(n_in, n_out, align_corners)
    matrix = np.zeros((n_out, n_in), np.float32)
    np.add.at(matrix, (np.arange(n_out), low), 1 - weight)
    np.add.at(matrix, (np.arange(n_out), high), weight)
    return matrix


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def resize_bilinear(
    x: Float[Array, 'B H W C'], size: tuple[int, int], align_corners: bool
) -> Float[jax.Array, 'B {size[0]} {size[1]} C']:
    """Resizes images that fill their array, as torch's `interpolate(mode='bilinear', align_corners=...)`.

    Args:
        x: images; computed in float32.
        size: height and width of the result.
        align_corners: whether the corner pixels' centres, or their outer corners, are kept in place.

    Returns:
        The images in the dtype of x.
    """
    static = size, align_corners
    x32 = jnp.asarray(x, jnp.float32)
    return by_platform(
        x32, tpu=with_static(_by_products, *static), default=with_static(_by_gathers, *static)
    ).astype(x.dtype)


def _by_gathers(size, align_corners, x):
    for axis in (1, 2):
        low, high, weight = _linear_weights(x.shape[axis], size[axis - 1], align_corners)
        weight = np.expand_dims(weight, [i for i in range(4) if i != axis])
        first = jnp.take(x, low, axis, indices_are_sorted=True, mode='clip')
        second = jnp.take(x, high, axis, indices_are_sorted=True, mode='clip')
        x = first + (second - first) * weight
    return x


def _by_products(size, align_corners, x):
    """With two products, as its gradient: a gather accesses many times the bytes of its result on TPUs."""
    rows, columns = (linear_matrix(x.shape[axis], size[axis - 1], align_corners) for axis in (1, 2))
    x = jnp.einsum('oh,bhwc->bowc', rows, x, precision='highest')
    return jnp.einsum('pw,bowc->bopc', columns, x, precision='highest')


def _resize_forward(x, size, align_corners):
    # An empty array carries the shape and dtype of x to the backward pass without keeping x alive.
    return resize_bilinear(x, size, align_corners), jnp.empty((*x.shape[1:3], 0), x.dtype)


def _resize_backward(size, align_corners, residual, gradient):
    # The gradient of a gather is a scatter, which is slow on every device; two matrix products give the same.
    height, width = residual.shape[:2]
    rows = linear_matrix(height, size[0], align_corners)
    columns = linear_matrix(width, size[1], align_corners)
    gradient = gradient.astype(jnp.float32)
    gradient = by_platform(rows, columns, gradient, gpu=_rows_first, default=_columns_first)
    return (gradient.astype(residual.dtype),)


resize_bilinear.defvjp(_resize_forward, _resize_backward)


def _columns_first(rows, columns, gradient):
    gradient = jnp.einsum('pw,bopc->bowc', columns, gradient, precision='highest')
    return jnp.einsum('oh,bowc->bhwc', rows, gradient, precision='highest')


def _rows_first(rows, columns, gradient):
    # As products of whole rows of pixels, for which the large map is not transposed.
    rows = jnp.broadcast_to(rows, (len(gradient), *rows.shape))
    gradient = jnp.einsum('boh,bopc->bhpc', rows, gradient, precision='highest')
    return jnp.einsum('pw,bhpc->bhwc', columns, gradient, precision='highest')


def resize_images(
    x: Num[Array, 'B H W C'],
    size: Size,
    canvas: tuple[Dim, Dim],
    target: Size,
    align_corners: bool,
    flip: bool = False,
) -> Float32[jax.Array, 'B H_out W_out C']:
    """Resizes images on canvases, each as torch's `interpolate` would on its own.

    Args:
        x: canvases; computed in float32.
        size: of the images on them.
        canvas: height and width of the result.
        target: sizes of the resized images on it; pixels outside repeat the border.
        align_corners: whether the corner pixels' centres, or their outer corners, are kept in place.
        flip: mirror the images left to right.
    """
    rows, columns = _matrices(x.shape, size, canvas, target, align_corners, flip)
    x = jnp.einsum('bow,bhwc->bhoc', columns, x.astype(jnp.float32), precision='highest')
    return jnp.einsum('boh,bhwc->bowc', rows, x, precision='highest')


def _matrices(shape, size, canvas, target, align_corners, flip=False):
    """The matrices that resize heights and widths: (B, n_out, n_in) each."""
    size, target = size_of(shape, size), size_of((shape[0], *canvas), target)
    matrices = []
    for axis in (0, 1):
        before, after = (per_image(each[axis], shape[0]) for each in (size, target))
        mirror = flip and axis == 1
        matrices.append(_linear_matrices(shape[axis + 1], canvas[axis], before, after, align_corners, mirror))
    return matrices


def _linear_matrices(
    n_in: Dim,
    n_out: Dim,
    length: Integer[jax.Array, ' B'],
    target: Integer[jax.Array, ' B'],
    align_corners: bool,
    flip: bool = False,
) -> Float32[jax.Array, 'B n_out n_in']:
    """Matrices that resize the first `length` positions to the first `target`."""
    length, target = (n.astype(jnp.float32)[:, None] for n in (length, target))
    i = jnp.arange(n_out, dtype=jnp.float32)
    i = target - 1 - i if flip else i
    if align_corners:
        source = i * ((length - 1) / jnp.maximum(target - 1, 1))
    else:
        source = (i + 0.5) * (length / target) - 0.5
    source = jnp.clip(source, 0, length - 1)
    # Each of the two neighbours weighs one minus its distance; nothing else is closer than one.
    return jnp.maximum(1 - jnp.abs(source[..., None] - jnp.arange(n_in, dtype=jnp.float32)), 0)


def _resize_over_shards(x, size, canvas, target, align_corners):
    """`resize_images` shard by shard, each from its own rows and those of its neighbours."""
    shards = row_shards(x)
    own = x.shape[1] // shards
    rows, columns = _matrices(x.shape, size, canvas, target, align_corners)
    rows = jnp.pad(rows, ((0, 0), (0, 0), (HALO, HALO)))

    def local(x, rows, columns):
        start = jax.lax.axis_index('space') * own
        rows = jax.lax.dynamic_slice_in_dim(rows, start, own + 2 * HALO, 2)
        y = _with_neighbours(x.astype(jnp.float32), shards)
        y = jnp.einsum('boh,bhwc->bowc', rows, y, precision='highest')
        return jnp.einsum('bow,bhwc->bhoc', columns, y, precision='highest').astype(x.dtype)

    split = P('data', 'space')
    return jax.shard_map(local, in_specs=(split, split, P('data')), out_specs=split)(x, rows, columns)


def _with_neighbours(x, shards):
    """(B, h + 2 * HALO, W, C): a shard's rows between those of its neighbours, zeros beyond the canvas."""
    own, parts = x.shape[1], [x]
    for hop in range(1, -(-HALO // own) + 1):  # with one row per shard, the rows needed are two hops away
        count = min(own, HALO - (hop - 1) * own)
        down = [(i, i + hop) for i in range(shards - hop)]
        above = jax.lax.ppermute(x[:, own - count :], 'space', down)
        below = jax.lax.ppermute(x[:, :count], 'space', [(j, i) for i, j in down])
        parts = [above, *parts, below]
    return jnp.concatenate(parts, 1)
