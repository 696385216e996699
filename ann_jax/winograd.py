"""Winograd's F(2x2, 3x3) (Lavin and Gray 2016): 3x3 convolutions of stride 1 by 4 products per result, not 9.

A map is cut into tiles of 2 x 2 results, each from 4 x 4 pixels `dilation` apart. The 16 factors of all tiles
are 16 matrices (tiles, C), those of a kernel are 16 matrices (C, D).
"""

import jax
import jax.numpy as jnp
import numpy as np

# Of four neighbours along an axis to the four factors, of three weights to the other four, and of their
# products to two results.
_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)

Winograd = tuple[tuple[jax.Array, ...], ...]  # 4 x 4 matrices (C, D)


def winograd_kernel(kernel: np.ndarray | jax.Array) -> Winograd:
    """Transforms a kernel (3, 3, C, D), so that `convolve` takes 4 products for each result in place of 9.

    The matrices are arrays of their own, since XLA would copy parts of a larger one.
    """
    columns = [_combine(_KERNEL, [kernel[i, j] for i in range(3)]) for j in range(3)]
    return tuple(tuple(_combine(_KERNEL, [column[a] for column in columns])) for a in range(4))


def winograd(x: jax.Array, kernel: Winograd, dilation: int = 1) -> jax.Array:
    """(B, H, W, C) and what `winograd_kernel` makes of (3, 3, C, D) -> (B, H, W, D), zeros around x."""
    return _results(_tiles_of_results(x, kernel, dilation, lambda f, k: f @ k), x.shape, dilation)


def winograd_input_gradient(gradient: jax.Array, kernel: Winograd, dilation: int = 1) -> jax.Array:
    """The gradient of x (B, H, W, C) from that of the result (B, H, W, D) and the transformed kernel.

    It is the convolution with the kernel reversed, which swaps the outer two of four factors, and transposed;
    the maps are transposed in its place, since they are smaller.
    """
    order = 3, 1, 2, 0
    reverse = [[kernel[i][j] for j in order] for i in order]
    parts = _tiles_of_results(gradient, reverse, dilation, lambda f, k: k @ jax.lax.optimization_barrier(f.T))
    parts = jax.tree.map(jnp.transpose, jax.lax.optimization_barrier(parts))
    return _results(parts, gradient.shape, dilation)


def winograd_kernel_gradient(x: jax.Array, gradient: jax.Array, dilation: int = 1) -> jax.Array:
    """The gradient of the kernel (3, 3, C, D) from x (B, H, W, C) and that of the result (B, H, W, D).

    The linear maps of `winograd` and `winograd_kernel`, transposed and in the opposite order.
    """
    x = _padded(x, dilation)
    sums = []
    for inputs, outputs in zip(_INPUT, _OUTPUT.T, strict=True):
        if sums:
            x, gradient, sums[-1] = jax.lax.optimization_barrier((x, gradient, sums[-1]))
        pairs = zip(_factors(x, inputs, dilation), _result_factors(gradient, outputs, dilation), strict=True)
        sums.append(_combine(_KERNEL.T, [f.T @ g for f, g in jax.lax.optimization_barrier(tuple(pairs))]))
    columns = [_combine(_KERNEL.T, [row[j] for row in sums]) for j in range(3)]
    return jnp.stack([jnp.stack([column[i] for column in columns]) for i in range(3)])


def tiles(shape: tuple[int, ...], dilation: int) -> tuple[int, int]:
    """Tiles of a map (B, H, W, C) along each axis, for each of the `dilation` pixels between neighbours."""
    return tuple(-(-n // (2 * dilation)) for n in shape[1:3])


def _tiles_of_results(x, kernel, d, product):
    """The results of all tiles, of their columns and rows of two: [column][row], the products' shape each."""
    x = _padded(x, d)
    sums = []
    for weights, row in zip(_INPUT, kernel, strict=True):
        if sums:  # a row after the other, since sixteen factors and products at once take much memory
            x, sums[-1] = jax.lax.optimization_barrier((x, sums[-1]))
        products = [product(f, k) for f, k in zip(_factors(x, weights, d), row, strict=True)]
        sums.append(_combine(_OUTPUT, products))
    return [_combine(_OUTPUT, [row[j] for row in sums]) for j in range(2)]


def _results(y, shape, d):
    """The map (B, H, W, D) of the `shape` of one with the same B, H and W, from its tiles."""
    (batch, height, width, _), (rows, columns) = shape, tiles(shape, d)
    part = lambda i, j: y[j][i].reshape(batch, rows, d, columns, d, -1)
    y = jnp.stack([jnp.stack([part(i, j) for j in range(2)], 4) for i in range(2)], 2)
    return y.reshape(batch, 2 * rows * d, 2 * columns * d, -1)[:, :height, :width]


def _padded(x, d):
    """A map with zeros around it, so that all tiles lie in it."""
    _, height, width, _ = x.shape
    rows, columns = tiles(x.shape, d)
    return jnp.pad(x, ((0, 0), (d, (2 * rows + 1) * d - height), (d, (2 * columns + 1) * d - width), (0, 0)))


def _factors(x, weights, d):
    """Four of the sixteen factors of all tiles of a padded map: (tiles, C) each."""
    batch, height, width, channels = x.shape
    rows, columns = height // (2 * d) - 1, width // (2 * d) - 1
    # Pixels `dilation` apart become neighbours, and the pixels between them further tiles.
    x = x.reshape(batch, 2 * rows + 2, d, 2 * columns + 2, d, channels)
    every_second = lambda y, i, n, axis: jax.lax.slice_in_dim(y, i, i + 2 * n - 1, 2, axis)
    part = _combine([weights], [every_second(x, i, rows, 1) for i in range(4)])[0]
    factors = _combine(_INPUT, [every_second(part, j, columns, 3) for j in range(4)])
    return [f.reshape(-1, channels) for f in factors]


def _result_factors(y, weights, d):
    """What the gradient of a result sends to four of the sixteen products of all tiles: (tiles, D) each."""
    batch, height, width, channels = y.shape
    rows, columns = tiles(y.shape, d)
    y = jnp.pad(y, ((0, 0), (0, 2 * rows * d - height), (0, 2 * columns * d - width), (0, 0)))
    y = y.reshape(batch, rows, 2, d, columns, 2, d, channels)
    part = _combine([weights], [y[:, :, i] for i in range(2)])[0]
    return [f.reshape(-1, channels) for f in _combine(_OUTPUT.T, [part[:, :, :, :, j] for j in range(2)])]


def _combine(matrix, parts):
    """The product of a small matrix of mostly 0 and 1 with a list of arrays."""
    return [sum(p if c == 1 else c * p for c, p in zip(row, parts, strict=True) if c) for row in matrix]
