"""Convolution of feature maps, and the forms of it that are fast on CPUs."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Winograd's F(2x2, 3x3) (Lavin and Gray 2016): of four neighbours along an axis to the four factors, of three
# weights to the other four, and of their products to two results.
_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)


Winograd = tuple[tuple[jax.Array, ...], ...]  # 4 x 4 matrices (C, D)


def convolve(
    x: jax.Array, kernel: jax.Array | Winograd, *, stride: int = 1, dilation: int = 1, split: bool = True
) -> jax.Array:
    """Convolution with torch's symmetric zero padding.

    A 1x1 convolution is computed as a matrix product, which XLA runs faster, above all its gradients.

    Args:
        x: (B, H, W, C) features.
        kernel: (k, k, C, D) of odd k; or what `winograd_kernel` makes of it, for stride 1.
        stride, dilation: of both axes.
        split: whether the rows of an image may lie on several devices.

    Returns:
        (B, H', W', D); sizes are kept at stride 1, and (n - 1) // stride + 1 else.
    """
    if isinstance(kernel, tuple):
        return _winograd(x, kernel, dilation)
    k = kernel.shape[0]
    if k == 1:
        x = x[:, ::stride, ::stride]
        if split or not on_cpu():
            return x @ kernel[0, 0]
        # Of products of matrices XLA's gradients on CPUs are products too, with no copies to transpose maps.
        return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:3], -1)
    pad = dilation * (k - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


def winograd_kernel(kernel: np.ndarray) -> Winograd:
    """Transforms a kernel (3, 3, C, D), so that `convolve` takes 4 products for each result in place of 9.

    The matrices are arrays of their own, since XLA would copy parts of a larger one.
    """
    return tuple(map(tuple, np.einsum('ai,bj,ijcd->abcd', _KERNEL, _KERNEL, kernel)))


def _winograd(x, kernel, dilation):
    """Results in tiles of 2 x 2, each from 4 x 4 pixels, `dilation` apart; the rest is matrix products."""
    batch, height, width, channels = x.shape
    d, rows, columns = dilation, -(-height // (2 * dilation)), -(-width // (2 * dilation))
    x = jnp.pad(x, ((0, 0), (d, (2 * rows + 1) * d - height), (d, (2 * columns + 1) * d - width), (0, 0)))
    # Pixels `dilation` apart become neighbours, and the pixels between them further tiles.
    x = x.reshape(batch, 2 * rows + 2, d, 2 * columns + 2, d, channels)
    every_second = lambda y, i, n, axis: jax.lax.slice_in_dim(y, i, i + 2 * n - 1, 2, axis)
    sums = []
    for weights, row in zip(_INPUT, kernel, strict=True):
        if sums:  # a row after the other, since sixteen factors and products at once take much memory
            x, sums[-1] = jax.lax.optimization_barrier((x, sums[-1]))
        parts = _combine([weights], [every_second(x, i, rows, 1) for i in range(4)])[0]
        factors = _combine(_INPUT, [every_second(parts, j, columns, 3) for j in range(4)])
        products = [f.reshape(-1, channels) @ k for f, k in zip(factors, row, strict=True)]
        sums.append(_combine(_OUTPUT, products))
    y = [_combine(_OUTPUT, [row[j] for row in sums]) for j in range(2)]
    tiles = lambda i, j: y[j][i].reshape(batch, rows, d, columns, d, -1)
    y = jnp.stack([jnp.stack([tiles(i, j) for j in range(2)], 4) for i in range(2)], 2)
    return y.reshape(batch, 2 * rows * d, 2 * columns * d, -1)[:, :height, :width]


def _combine(matrix, parts):
    """The product of a small matrix of mostly 0 and 1 with a list of arrays."""
    return [sum(p if c == 1 else c * p for c, p in zip(row, parts, strict=True) if c) for row in matrix]


# Of a sum of more terms than these XLA's CPU backend makes a tree, for the sake of its digits, and puts all
# terms into memory first. Of fewer it computes the terms as it adds them up.
_TERMS = 32
_COLUMNS = 8  # of a row at a time: sums of few sums of few terms lose few digits


def sum_pixels(x: jax.Array) -> jax.Array:
    """(B, H, W, C) -> (C,)."""
    if not on_cpu():
        return x.sum((0, 1, 2))
    parts = (x[:, :, i : i + _COLUMNS].sum(2) for i in range(0, x.shape[2], _COLUMNS))
    return jax.lax.optimization_barrier(sum(parts)).sum((0, 1))


def sum_of_squares(x: jax.Array) -> jax.Array:
    """Of all elements: (...) -> ()."""
    x = jnp.square(x)
    while on_cpu() and (terms := math.gcd(x.size, _TERMS)) > 1:
        x = jax.lax.optimization_barrier(x.reshape(terms, -1).sum(0))
    return x.sum()


def on_cpu() -> bool:
    """Whether programs run on CPUs, where other forms are fast than on accelerators."""
    return jax.default_backend() == 'cpu'


def computed_once(x: jax.Array) -> jax.Array:
    """The same array, put into memory on CPUs.

    XLA would otherwise compute a sum of residuals again from those of all blocks before, in every block, and
    keep them all for it: in ResNet-101 a fifth of the time of inference and more than half of its memory.
    """
    return jax.lax.optimization_barrier(x) if on_cpu() else x


@functools.cache
def compiler_options() -> dict[str, Any] | None:
    """Options of `jax.jit` for programs of networks; None on other platforms than CPUs.

    On CPUs, XLA hands products and convolutions to YNNPACK, which takes up to half as long again for them as
    XLA's own; versions of XLA that do not know the option do without. It also takes barriers out, which
    `computed_once` and rematerialisation live on.
    """
    if not on_cpu():
        return None
    options = {'xla_cpu_experimental_ynn_fusion_type': ''}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        options = {}
    return options | {'xla_disable_hlo_passes': 'cse_barrier_expander'}
