"""The anchors that attention looks at: pooled, random or all pixels (Eq. 8, Fig. 4, Table 7).

Average pooling is a pair of small matrix products: the bins of torch's adaptive pooling overlap if the input
does not divide, which rules out a reshape, and accelerators are best at matrix products. If images fill their
arrays, all indices and weights are constants of the program.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, Float32, Integer, PRNGKeyArray

from ann_jax.errors import ConfigError, unknown
from ann_jax.kernels import Array, Dim
from ann_jax.kernels.masking import Size, mask, per_image, size_of
from ann_jax.kernels.products import product
from ann_jax.parallel.mesh import row_shards

SAMPLINGS = ('average', 'max', 'random', 'all')


def sample_anchors(
    x: Float[Array, 'B H W C'],
    sampling: str = 'average',
    sizes: Sequence[int] = (1, 3, 6, 8),
    rng: PRNGKeyArray | None = None,
    size: Size = None,
) -> Float[jax.Array, 'B S C']:
    """Samples S = sum(n * n for n in sizes) anchors from a feature map (paper: Eq. 8, Fig. 4, Table 7).

    Several sizes give the paper's pyramid versions, one size the plain ones. Anchors are in row-major order
    within a level, and levels in the order of `sizes`.

    If rows are split over devices, average pooling exchanges only the anchors. The other kinds need pixels of
    the whole map, which XLA gathers.

    Args:
        x: features.
        sampling: 'average' or 'max' pool adaptively to n x n, equal to torch's adaptive pooling;
            'random' draws n * n pixels, the same ones for every image of the batch and every call with
            the same `rng`; 'all' keeps every pixel and ignores `sizes` (the standard non-local block).
        sizes: output sizes n of the pooling levels.
        rng: PRNG key, only needed by 'random'.
        size: size of the images if they do not fill x.

    Returns:
        Anchors in the dtype of x; S = H * W for 'all', see `seen_anchors`.

    Raises:
        ConfigError: unknown `sampling`, a size below 1 or none, no `rng` for 'random', or images of several
            sizes for a sampling that needs a single size.
    """
    if sampling not in SAMPLINGS:
        raise ConfigError(unknown('sampling', sampling, SAMPLINGS))
    if sampling != 'all' and (not len(sizes) or min(sizes) < 1):
        raise ConfigError(f'sizes={tuple(sizes)}: must be whole numbers from 1, one for each level')
    if sampling == 'random' and rng is None:
        raise ConfigError("sampling='random' draws pixels: give rng, such as jax.random.key(0)")
    if sampling == 'average':
        return _average_anchors(x, sizes, size)
    height, width = size_of(x.shape, size)
    if isinstance(height, int) and isinstance(width, int):
        x = x[:, :height, :width]
    elif sampling != 'all':
        raise ConfigError(f'{sampling} anchors need images that fill their arrays, see ANN.takes_canvas')
    match sampling:
        case 'max':
            return _max_anchors(x, sizes)
        case 'random':
            return _random_anchors(x, sizes, rng)
    return jnp.asarray(x).reshape(x.shape[0], -1, x.shape[-1])


def sample_projected(
    x: Float[Array, 'B H W C'],
    kernel: Float[Array, 'C D'],
    bias: Float[Array, ' D'] | float,
    sampling: str,
    sizes: Sequence[int],
    rng: PRNGKeyArray | None = None,
    size: Size = None,
) -> Float[jax.Array, 'B S D']:
    """Anchors of a 1x1 convolution of a map: `sample_anchors` of x @ kernel + bias.

    Args:
        x: features.
        kernel, bias: in the dtype of x.
        sampling, sizes, rng, size: see `sample_anchors`.
    """
    if sampling == 'average' and row_shards(x) == 1:
        # The projection of a mean is the mean of projections, and there are fewer means.
        return product(sample_anchors(x, sampling, sizes, rng, size), kernel) + bias
    # Devices that share the rows exchange anchors, which are smaller after the projection.
    return sample_anchors(product(x, kernel) + bias, sampling, sizes, rng, size)


def seen_anchors(x: Float[Array, 'B H W C'], sampling: str, size: Size) -> Bool[jax.Array, 'B S'] | None:
    """Which anchors are inside the images; None if all are."""
    if sampling != 'all' or size is None or all(isinstance(length, int) for length in size):
        return None
    inside = mask(x.shape, size)
    assert inside is not None  # arrays of lengths are never known to fill x
    return jnp.broadcast_to(inside, (*x.shape[:3], 1)).reshape(x.shape[0], -1)


def anchor_windows(
    height: int, width: int, sampling: str, sizes: Sequence[int], rng: PRNGKeyArray | None = None
) -> tuple[Integer[np.ndarray, 'S 4'], Integer[np.ndarray, ' S']]:
    """What each anchor of `sample_anchors` is sampled from, for one image, on the host.

    Args:
        height, width: of the image's part of the map.
        sampling, sizes, rng: see `sample_anchors`.

    Returns:
        Windows of the map as (top, left, bottom, right), ends exclusive, which overlap where a level does not
        divide the map; and the level of each, one of `sizes`, or 0 for 'all'.
    """
    if sampling in ('average', 'max'):
        levels = []
        for n in sizes:
            (top, bottom), (left, right) = _bins(height, n), _bins(width, n)
            sides = [np.repeat(top, n), np.tile(left, n), np.repeat(bottom, n), np.tile(right, n)]
            levels.append(np.stack(sides, 1))
        windows = np.concatenate(levels)
    else:
        pixels = np.arange(height * width)
        if sampling == 'random':
            pixels = np.asarray(_random_pixels(height * width, sizes, rng))
        corners = np.stack([pixels // width, pixels % width], 1)
        windows = np.concatenate([corners, corners + 1], 1)
    if sampling == 'all':
        return windows, np.zeros(len(windows), int)
    return windows, np.repeat(sizes, np.square(sizes))


def _bins(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    """First and one-past-last input index of each adaptive pooling bin, rounded as torch does."""
    index = np.arange(n_out)
    return index * n_in // n_out, -(-(index + 1) * n_in // n_out)


def _average_matrix(n_in: int, n_out: int) -> Float32[np.ndarray, '{n_out} {n_in}']:
    """The matrix that averages over each adaptive pooling bin."""
    start, stop = _bins(n_in, n_out)
    j = np.arange(n_in)
    inside = (j >= start[:, None]) & (j < stop[:, None])
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


def _average_matrices(
    n_in: Dim, n_out: int, length: Integer[Array, ' B']
) -> Float32[jax.Array, 'B n_out n_in']:
    """Matrices that pool the first `length` positions adaptively, as torch would."""
    i, j, length = jnp.arange(n_out)[:, None], jnp.arange(n_in), length[:, None, None]
    start, stop = i * length // n_out, -(-(i + 1) * length // n_out)
    return jnp.where((j >= start) & (j < stop), 1 / (stop - start).astype(jnp.float32), 0)


def _average_anchors(x, sizes, size):
    if row_shards(x) > 1:
        return _average_over_shards(x, sizes, size)
    batch, height, width = x.shape[:3]
    # One product pools the height for all levels at once; each level then pools the width. The products are
    # batched over the images: a single one would transpose the maps.
    columns: Sequence[jax.Array | np.ndarray]
    if size is None:
        shared = np.concatenate([_average_matrix(height, n) for n in sizes])
        rows = jnp.broadcast_to(shared, (batch, *shared.shape))
        columns, pool = [_average_matrix(width, n) for n in sizes], 'mw,bnwc->bnmc'
    else:
        heights, widths = (per_image(length, batch) for length in size)
        rows = jnp.concatenate([_average_matrices(height, n, heights) for n in sizes], 1)
        columns, pool = [_average_matrices(width, n, widths) for n in sizes], 'bmw,bnwc->bnmc'
    pooled = jnp.einsum('bnh,bhwc->bnwc', rows, x.astype(jnp.float32), precision='highest')
    levels = []
    for n, first, matrix in zip(sizes, np.cumsum([0, *sizes[:-1]]), columns, strict=True):
        level = jnp.einsum(pool, matrix, pooled[:, first : first + n], precision='highest')
        levels.append(level.reshape(batch, n * n, -1))
    return jnp.concatenate(levels, 1).astype(x.dtype)


def _average_over_shards(x, sizes, size):
    """Each shard pools its rows; the anchors, S x C, are then summed over the shards."""
    lengths = [per_image(length, x.shape[0]) for length in size_of(x.shape, size)]
    rows, columns = (
        [_average_matrices(n_in, n, length) for n in sizes]
        for n_in, length in zip(x.shape[1:3], lengths, strict=True)
    )

    def local(x, rows, columns):
        levels = []
        for row, column in zip(rows, columns, strict=True):
            level = jnp.einsum('bmw,bhwc->bhmc', column, x.astype(jnp.float32), precision='highest')
            level = jnp.einsum('bnh,bhmc->bnmc', row, level, precision='highest')
            levels.append(level.reshape(x.shape[0], -1, x.shape[-1]))
        return jax.lax.psum(jnp.concatenate(levels, 1), 'space').astype(x.dtype)

    specs = P('data', 'space'), P('data', None, 'space'), P('data')
    return jax.shard_map(local, in_specs=specs, out_specs=P('data'))(x, rows, columns)


def _max_anchors(x, sizes):
    def pool(x, n, axis):
        start, stop = _bins(x.shape[axis], n)
        bins = [jax.lax.slice_in_dim(x, a, b, axis=axis) for a, b in zip(start, stop, strict=True)]
        return jnp.stack([_largest(axis, each) for each in bins], axis)

    # Columns first: of equal pixels, that of the first row gets the gradient, as in torch.
    levels = [pool(pool(x, n, 2), n, 1).reshape(x.shape[0], n * n, -1) for n in sizes]
    return jnp.concatenate(levels, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _largest(axis, x):
    """The largest along an axis; the first of several gets the gradient.

    That of `max` looks for its result in x, and divides by how often it is there: NaN where a compiler
    computes x once more for this, and rounds it otherwise.
    """
    return x.max(axis)


def _largest_forward(axis, x):
    index = jnp.argmax(x, axis, keepdims=True)
    return x.max(axis), (index, jax.lax.iota(index.dtype, x.shape[axis]))


def _largest_backward(axis, residuals, gradient):
    index, numbers = residuals
    numbers = numbers.reshape([-1 if i == axis else 1 for i in range(index.ndim)])
    return (jnp.where(index == numbers, jnp.expand_dims(gradient, axis), 0),)


_largest.defvjp(_largest_forward, _largest_backward)


def _random_anchors(x, sizes, rng):
    pixels = jnp.asarray(x).reshape(x.shape[0], -1, x.shape[-1])
    return pixels[:, _random_pixels(pixels.shape[1], sizes, rng)]


def _random_pixels(count, sizes, rng):
    """Indices of n * n of `count` pixels for each level n, one after the other."""
    keys = jax.random.split(rng, len(sizes))
    # If a map has fewer pixels than anchors, they are drawn with replacement.
    levels = [
        jax.random.choice(key, count, (n * n,), replace=n * n > count)
        for key, n in zip(keys, sizes, strict=True)
    ]
    return jnp.concatenate(levels)
