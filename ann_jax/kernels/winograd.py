"""Winograd's F(2x2, 3x3) (Lavin and Gray 2016): 4 products per result of a 3x3 convolution of
stride 1, not 9.

A map is cut into tiles of 2 x 2 results, each from 4 x 4 pixels `dilation` apart. The 16 factors of all tiles
are 16 matrices (tiles, C); those of a kernel are 16 matrices (C, D). Tiles without a result in the map are
left out: along 17 pixels with dilation 4 there are 9, where whole groups of 8 would make 12.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ann_jax.kernels import Array

# Along an axis: from four neighbours to four factors, from three weights to the other four factors, and from
# their products to two results.
_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)


def winograd(
    x: Float[Array, 'B H W C'], kernel: Float[Array, '3 3 C D'], dilation: int = 1
) -> Float[jax.Array, 'B H W D']:
    """The convolution of x, with zeros around it.

    The kernel is transformed while it is used, one row of four matrices at a time.
    """
    return _results(_tiles_of_results(x, kernel, dilation, lambda f, k: f @ k), x.shape, dilation)


def winograd_input_gradient(
    gradient: Float[Array, 'B H W D'], kernel: Float[Array, '3 3 C D'], dilation: int = 1
) -> Float[jax.Array, 'B H W C']:
    """The gradient of x from that of the result and the kernel.

    This is a convolution with the flipped and transposed kernel; the maps are transposed instead, since they
    are smaller.
    """
    transposed = lambda f, k: k @ jax.lax.optimization_barrier(f.T)
    parts = _tiles_of_results(gradient, kernel, dilation, transposed, reverse=True)
    parts = jax.tree.map(jnp.transpose, jax.lax.optimization_barrier(parts))
    return _results(parts, gradient.shape, dilation)


def winograd_kernel_gradient(
    x: Float[Array, 'B H W C'], gradient: Float[Array, 'B H W D'], dilation: int = 1
) -> Float[jax.Array, '3 3 C D']:
    """The gradient of the kernel from x and that of the result.

    The linear maps of `winograd`, transposed and in reverse order.
    """
    number, x = tiles(x.shape, dilation), _padded(x, dilation)
    sums: list[list[jax.Array]] = []
    for inputs, outputs in zip(_INPUT, _OUTPUT.T, strict=True):
        if sums:
            x, gradient, sums[-1] = jax.lax.optimization_barrier((x, gradient, sums[-1]))
        factors = _factors(x, inputs, dilation, number), _result_factors(gradient, outputs, dilation)
        pairs = zip(*jax.lax.optimization_barrier(factors), strict=True)
        sums.append(_combine(_KERNEL.T, [f.T @ g for f, g in pairs]))
    columns = [_combine(_KERNEL.T, [row[j] for row in sums]) for j in range(3)]
    return jnp.stack([jnp.stack([column[i] for column in columns]) for i in range(3)])


def tiles(shape: tuple[int, ...], dilation: int) -> tuple[int, int]:
    """Tiles along both axes of a map (B, H, W, C): one per pixel in the first half of every 2 `dilation`."""
    rows, columns = (n // (2 * dilation) * dilation + min(n % (2 * dilation), dilation) for n in shape[1:3])
    return rows, columns


def _columns(kernel, i):
    """The three matrices from which row `i` of a kernel's sixteen factors is computed."""
    return [_combine(_KERNEL[i : i + 1], [kernel[row][j] for row in range(3)])[0] for j in range(3)]


def _tiles_of_results(x, kernel, d, product, reverse=False):
    """The 2 x 2 results of all tiles: [column][row], each of the products' shape."""
    number, x = tiles(x.shape, d), _padded(x, d)
    order = (3, 1, 2, 0) if reverse else (0, 1, 2, 3)  # a reversed kernel has the outer two of four swapped
    sums: list[list[jax.Array]] = []
    for i, weights in zip(order, _INPUT, strict=True):
        # Row by row, since sixteen factors and products at once take much memory; and the kernel's only once
        # the map's are there, since they would no longer be in the cache.
        x, kernel, *sums[-1:] = jax.lax.optimization_barrier((x, kernel, *sums[-1:]))
        # This much fits in the cache until it is used.
        row = _combine(_KERNEL, jax.lax.optimization_barrier(_columns(kernel, i)))
        factors = _factors(x, weights, d, number)
        sums.append(_combine(_OUTPUT, [product(f, row[j]) for f, j in zip(factors, order, strict=True)]))
    return [_combine(_OUTPUT, [row[j] for row in sums]) for j in range(2)]


def _results(y, shape, d):
    """Assembles the map (B, H, W, D) from its tiles; `shape` gives B, H and W."""
    batch, height, width, _ = shape
    rows, columns = tiles(shape, d)
    groups = -(-rows // d), -(-columns // d)

    def part(i, j):
        part = y[j][i].reshape(batch, rows, columns, -1)
        beyond = (0, groups[0] * d - rows), (0, groups[1] * d - columns)
        return jnp.pad(part, ((0, 0), *beyond, (0, 0))).reshape(batch, groups[0], d, groups[1], d, -1)

    y = jnp.stack([jnp.stack([part(i, j) for j in range(2)], 4) for i in range(2)], 2)
    return y.reshape(batch, 2 * groups[0] * d, 2 * groups[1] * d, -1)[:, :height, :width]


def _padded(x, d):
    """The map with zeros around it, so that it contains all tiles."""
    after = lambda n: d + -n % (2 * d)
    return jnp.pad(x, ((0, 0), (d, after(x.shape[1])), (d, after(x.shape[2])), (0, 0)))


def _factors(x, weights, d, number):
    """Four of the sixteen factors of all tiles of a padded map: (tiles, C) each."""
    part = _combine([weights], [_of_tiles(x, 1, i, d, number) for i in range(4)])[0]
    factors = _combine(_INPUT, [_of_tiles(part, 2, j, d, number) for j in range(4)])
    return [f.reshape(-1, x.shape[-1]) for f in factors]


def _result_factors(y, weights, d):
    """The gradient of four of the sixteen products of all tiles, from that of the result: (tiles, D) each."""
    number, after = tiles(y.shape, d), lambda n: (0, -n % (2 * d))
    y = jnp.pad(y, ((0, 0), after(y.shape[1]), after(y.shape[2]), (0, 0)))
    part = _combine([weights], [_of_tiles(y, 1, i, d, number) for i in range(2)])[0]
    factors = _combine(_OUTPUT.T, [_of_tiles(part, 2, j, d, number) for j in range(2)])
    return [f.reshape(-1, y.shape[-1]) for f in factors]


def _of_tiles(x, axis, i, d, number):
    """Pixel `i` of each tile along an axis: d of every 2 d pixels, from pixel i d on."""
    x = x.reshape(*x.shape[:axis], -1, d, *x.shape[axis + 1 :])
    x = jax.lax.slice_in_dim(x, i, None, 2, axis)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, number[axis - 1], 1, axis)


def _combine(matrix, parts):
    """Product of a small matrix, mostly 0 and 1, with a list of arrays."""
    return [sum(p if c == 1 else c * p for c, p in zip(row, parts, strict=True) if c) for row in matrix]
