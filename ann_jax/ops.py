"""Pooling, sampling of anchors and resizing on (B, H, W, C) arrays, equal to torch's operators.

Sizes are static, so every index and weight is a NumPy constant of the compiled program. Pooling is
a pair of small matrix products: bins of torch's adaptive pooling overlap when the input does not
divide, which rules out a reshape, and matrix products are what accelerators do best.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ann_jax.errors import ConfigError, unknown

SAMPLINGS = ('average', 'max', 'random', 'all')


def _bins(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    """First and one-past-last input index of each adaptive pooling bin, as torch rounds them."""
    index = np.arange(n_out)
    return index * n_in // n_out, -(-(index + 1) * n_in // n_out)


def _average_matrix(n_in: int, n_out: int) -> np.ndarray:
    """(n_out, n_in) float32 matrix that averages over each adaptive pooling bin."""
    start, stop = _bins(n_in, n_out)
    j = np.arange(n_in)
    inside = (j >= start[:, None]) & (j < stop[:, None])
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


def _average_anchors(x: jax.Array, sizes: Sequence[int]) -> jax.Array:
    height, width = x.shape[1:3]
    # One product pools the height for all levels together; each level then pools its width. Every image has a
    # product of its own: for a common one, maps would be transposed.
    rows = np.concatenate([_average_matrix(height, n) for n in sizes])
    rows = jnp.broadcast_to(rows, (x.shape[0], *rows.shape))
    pooled = jnp.einsum('bnh,bhwc->bnwc', rows, x.astype(jnp.float32), precision='highest')
    levels = []
    for n, first in zip(sizes, np.cumsum([0, *sizes[:-1]]), strict=True):
        columns = _average_matrix(width, n)
        level = jnp.einsum('mw,bnwc->bnmc', columns, pooled[:, first : first + n], precision='highest')
        levels.append(level.reshape(x.shape[0], n * n, -1))
    return jnp.concatenate(levels, 1).astype(x.dtype)


def _max_anchors(x: jax.Array, sizes: Sequence[int]) -> jax.Array:
    def pool(x, n, axis):
        start, stop = _bins(x.shape[axis], n)
        bins = [jax.lax.slice_in_dim(x, a, b, axis=axis).max(axis) for a, b in zip(start, stop, strict=True)]
        return jnp.stack(bins, axis)

    levels = [pool(pool(x, n, 1), n, 2).reshape(x.shape[0], n * n, -1) for n in sizes]
    return jnp.concatenate(levels, 1)


def _random_anchors(x: jax.Array, sizes: Sequence[int], rng: jax.Array) -> jax.Array:
    pixels = x.reshape(x.shape[0], -1, x.shape[-1])
    count = pixels.shape[1]
    keys = jax.random.split(rng, len(sizes))
    # A map with fewer pixels than anchors can only be drawn from with replacement.
    levels = [
        jax.random.choice(key, count, (n * n,), replace=n * n > count)
        for key, n in zip(keys, sizes, strict=True)
    ]
    return pixels[:, jnp.concatenate(levels)]


def sample_anchors(
    x: jax.Array, sampling: str, sizes: Sequence[int], rng: jax.Array | None = None
) -> jax.Array:
    """Samples S = sum(n * n for n in sizes) anchors from a feature map (paper: Eq. 8, Fig. 4, Table 7).

    Several sizes make the pyramid versions of the paper, one size the plain ones. Anchors are in
    row-major order within a level, levels in the order of `sizes`.

    Args:
        x: (B, H, W, C) features.
        sampling: 'average' or 'max' pool adaptively to n x n, equal to torch's adaptive pooling;
            'random' draws n * n pixels, the same for every image of the batch and every call with
            the same `rng`; 'all' keeps every pixel and ignores `sizes` (the standard non-local block).
        sizes: output sizes n of the pooling levels.
        rng: PRNG key, needed by 'random' only.

    Returns:
        (B, S, C) anchors in the dtype of x; S = H * W for 'all'.

    Raises:
        ConfigError: unknown `sampling`.
    """
    match sampling:
        case 'average':
            return _average_anchors(x, sizes)
        case 'max':
            return _max_anchors(x, sizes)
        case 'random':
            return _random_anchors(x, sizes, rng)
        case 'all':
            return x.reshape(x.shape[0], -1, x.shape[-1])
    raise ConfigError(unknown('sampling', sampling, SAMPLINGS))


def _linear_weights(n_in: int, n_out: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the two neighbours of each output sample, and the weight of the second."""
    target = np.arange(n_out, dtype=np.float32)
    # float32 arithmetic on purpose: torch computes positions so, and the last digits depend on it.
    if align_corners:
        source = target * np.float32((n_in - 1) / (n_out - 1) if n_out > 1 else 0)
    else:
        source = np.maximum((target + np.float32(0.5)) * np.float32(n_in / n_out) - np.float32(0.5), 0)
    low = np.minimum(source.astype(np.int32), n_in - 1)
    return low, np.minimum(low + 1, n_in - 1), (source - low).astype(np.float32)


def linear_matrix(n_in: int, n_out: int, align_corners: bool) -> np.ndarray:
    """(n_out, n_in) float32 matrix that resizes one axis as `resize_bilinear` does."""
    low, high, weight = _linear_weights(n_in, n_out, align_corners)
    matrix = np.zeros((n_out, n_in), np.float32)
    np.add.at(matrix, (np.arange(n_out), low), 1 - weight)
    np.add.at(matrix, (np.arange(n_out), high), weight)
    return matrix


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def resize_bilinear(x: jax.Array, size: tuple[int, int], align_corners: bool) -> jax.Array:
    """Resizes without antialiasing, as torch's `interpolate(mode='bilinear', align_corners=...)`.

    Args:
        x: (B, H, W, C) array; computed in float32.
        size: height and width of the result.
        align_corners: whether the corner pixels' centres, or their outer corners, are kept in place.

    Returns:
        (B, *size, C) array in the dtype of x.
    """
    out = x.astype(jnp.float32)
    for axis in (1, 2):
        low, high, weight = _linear_weights(x.shape[axis], size[axis - 1], align_corners)
        weight = np.expand_dims(weight, [i for i in range(4) if i != axis])
        first = jnp.take(out, low, axis, indices_are_sorted=True, mode='clip')
        second = jnp.take(out, high, axis, indices_are_sorted=True, mode='clip')
        out = first + (second - first) * weight
    return out.astype(x.dtype)


def _resize_forward(x, size, align_corners):
    # An empty array carries the shape and dtype of x to the backward pass without keeping x alive.
    return resize_bilinear(x, size, align_corners), jnp.empty((*x.shape[1:3], 0), x.dtype)


def _resize_backward(size, align_corners, residual, gradient):
    # The gradient of a gather is a scatter, slow on every device; two matrix products are the same map.
    height, width = residual.shape[:2]
    rows = linear_matrix(height, size[0], align_corners)
    columns = linear_matrix(width, size[1], align_corners)
    gradient = gradient.astype(jnp.float32)
    gradient = jnp.einsum('pw,bopc->bowc', columns, gradient, precision='highest')
    gradient = jnp.einsum('oh,bowc->bhwc', rows, gradient, precision='highest')
    return (gradient.astype(residual.dtype),)


resize_bilinear.defvjp(_resize_forward, _resize_backward)


def average_rows(n_in: int, n_out: int, size: jax.Array) -> jax.Array:
    """(B, n_out, n_in) matrices that pool the first `size` (B,) positions adaptively, as torch would."""
    i, j, size = jnp.arange(n_out)[:, None], jnp.arange(n_in), size[:, None, None]
    start, stop = i * size // n_out, -(-(i + 1) * size // n_out)
    return jnp.where((j >= start) & (j < stop), 1 / (stop - start).astype(jnp.float32), 0)


def linear_rows(
    n_in: int, n_out: int, size: jax.Array, target: jax.Array, align_corners: bool, flip: bool = False
) -> jax.Array:
    """(B, n_out, n_in) matrices that resize the first `size` (B,) positions to the first `target` (B,)."""
    size, target = (n.astype(jnp.float32)[:, None] for n in (size, target))
    i = jnp.arange(n_out, dtype=jnp.float32)
    i = target - 1 - i if flip else i
    if align_corners:
        source = i * ((size - 1) / jnp.maximum(target - 1, 1))
    else:
        source = (i + 0.5) * (size / target) - 0.5
    source = jnp.clip(source, 0, size - 1)
    # The two neighbours weigh one less their distance; nothing else is that near.
    return jnp.maximum(1 - jnp.abs(source[..., None] - jnp.arange(n_in, dtype=jnp.float32)), 0)


def resize_images(
    x: jax.Array,
    size: jax.Array,
    canvas: tuple[int, int],
    target: jax.Array,
    align_corners: bool,
    flip: bool = False,
) -> jax.Array:
    """Bilinear resizing of images on canvases, each as torch's `interpolate` would resize it alone.

    Args:
        x: (B, H, W, C) canvases; computed in float32.
        size: (B, 2) sizes of the images on them.
        canvas: height and width of the result.
        target: (B, 2) sizes of the resized images on it; what lies outside repeats the border.
        align_corners: whether the corner pixels' centres, or their outer corners, are kept in place.
        flip: mirror the images left to right.

    Returns:
        (B, *canvas, C) float32.
    """
    rows = linear_rows(x.shape[1], canvas[0], size[:, 0], target[:, 0], align_corners)
    columns = linear_rows(x.shape[2], canvas[1], size[:, 1], target[:, 1], align_corners, flip)
    x = jnp.einsum('bow,bhwc->bhoc', columns, x.astype(jnp.float32), precision='highest')
    return jnp.einsum('boh,bhwc->bowc', rows, x, precision='highest')
