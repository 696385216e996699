"""Convolution of feature maps, and the forms of it that are fast on CPUs."""

import functools
import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ann_jax.winograd import (
    Winograd,
    tiles,
    winograd,
    winograd_input_gradient,
    winograd_kernel_gradient,
)

T = TypeVar('T')

WIDE = 64  # channels from which gradients of 3x3 convolutions are products of their own on CPUs
WIDEST = 512  # input channels from which they are Winograd's altogether: for fewer it takes long to compile


def convolve(
    x: jax.Array, kernel: jax.Array | Winograd, *, stride: int = 1, dilation: int = 1, split: bool = True
) -> jax.Array:
    """Convolution with torch's symmetric zero padding.

    A 1x1 convolution is computed as a matrix product, which XLA runs faster, above all its gradients.

    Args:
        x: (B, H, W, C) features.
        kernel: (k, k, C, D) of odd k; or, for Winograd's form at stride 1, what `winograd_kernel` makes of a
            3x3 kernel, or its 3 x 3 matrices.
        stride, dilation: of both axes.
        split: whether the rows of an image may lie on several devices.

    Returns:
        (B, H', W', D); sizes are kept at stride 1, and (n - 1) // stride + 1 else.
    """
    if isinstance(kernel, tuple):
        return winograd(x, kernel, dilation)
    k = kernel.shape[0]
    if k == 1:
        x = x[:, ::stride, ::stride]
        return x @ kernel[0, 0] if split else product(x, kernel[0, 0])
    wide = k == 3 and stride == 1 and min(kernel.shape[2:]) >= WIDE and x.dtype == jnp.float32
    if wide and on_cpu() and not split:
        return _wide(x, kernel, dilation)
    if stride == 1 and dilation > 1 and on_gpu() and not split:
        return _dilated(x, kernel, dilation)
    return direct(x, kernel, stride, dilation)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(..., C) @ (C, D) -> (..., D), with gradients that are fast on CPUs."""
    if not on_cpu():
        return x @ kernel
    # For the gradients of arrays of more than two axes XLA would transpose copies of them.
    return _product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _product(x, kernel):
    return x @ kernel


def _product_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _product_backward(residual, gradient):
    x, kernel = residual
    inputs, features = kernel.shape
    x, gradient = computed_once((x, gradient))  # else x might be transposed long before
    if len(x) * (inputs + features) <= 1.5 * kernel.size:  # maps to transpose, beside the kernel
        of_input = _times_transposed(gradient, kernel).T
    else:
        of_input = gradient @ kernel.T
    rows = computed_once(x.T) if inputs > features else x.T
    # Behind both, an optimizer updates the kernel in place; XLA would copy it first.
    return computed_once((of_input, rows @ gradient))


_product.defvjp(_product_forward, _product_backward)


def _times_transposed(x, kernel):
    """(N, D), (C, D) -> (C, N), which is x @ kernel.T, transposed.

    XLA's product with a transposed matrix may take twice as long as with one as it lies in memory. Here
    the maps are transposed, which pays where they are smaller than kernels.
    """
    return computed_once(kernel @ computed_once(x.T))


def direct(x: jax.Array, kernel: jax.Array, stride: int, dilation: int) -> jax.Array:
    """As `convolve`, by XLA's own convolution, whose gradients are convolutions too."""
    pad = dilation * (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dilated(x, kernel, dilation):
    """A dilated convolution of stride 1 whose kernel's gradient is that of a plain one.

    XLA hands the gradient of a dilated kernel to cuDNN as a convolution of C images by kernels as large as
    the map, with the batch as channels; that of a plain kernel is an operation of cuDNN's own.
    """
    return direct(x, kernel, 1, dilation)


def _dilated_forward(x, kernel, dilation):
    return direct(x, kernel, 1, dilation), (x, kernel)


def _dilated_backward(dilation, residual, gradient):
    x, kernel = residual
    of_input = jax.vjp(lambda x: direct(x, kernel, 1, dilation), x)[1](gradient)
    plain = lambda kernel: direct(space_to_batch(x, dilation), kernel, 1, 1)
    return *of_input, *jax.vjp(plain, kernel)[1](space_to_batch(gradient, dilation))


_dilated.defvjp(_dilated_forward, _dilated_backward)


def space_to_batch(x: jax.Array, d: int) -> jax.Array:
    """Pixels `d` apart become neighbours in d^2 images: (B, H, W, C) -> (B d^2, ceil(H / d), ceil(W / d), C).

    A convolution dilated by `d` is a plain one of them. Zeros follow where d does not divide a size.
    """
    batch, height, width, channels = x.shape
    rows, columns = -(-height // d), -(-width // d)
    x = jnp.pad(x, ((0, 0), (0, rows * d - height), (0, columns * d - width), (0, 0)))
    x = x.reshape(batch, rows, d, columns, d, channels).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(-1, rows, columns, channels)


def batch_to_space(y: jax.Array, d: int, height: int, width: int) -> jax.Array:
    """The reverse: (B d^2, ceil(H / d), ceil(W / d), C) -> (B, H, W, C)."""
    _, rows, columns, channels = y.shape
    y = y.reshape(-1, d, d, rows, columns, channels).transpose(0, 3, 1, 4, 2, 5)
    return y.reshape(-1, rows * d, columns * d, channels)[:, :height, :width]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _wide(x, kernel, dilation):
    """A 3x3 convolution of stride 1, as matrix products and with gradients that are where that is faster."""
    return _wide_forward(x, kernel, dilation)[0]


def _wide_forward(x, kernel, dilation):
    if kernel.shape[2] >= WIDEST and _tiles_fit(x, dilation):
        return winograd(x, kernel, dilation), (x, kernel)
    return direct(x, kernel, 1, dilation), (x, kernel)


def _wide_backward(dilation, residual, gradient):
    x, kernel = residual
    x, gradient = computed_once((x, gradient))  # else x would be kept padded from the forward pass on
    of_input, of_kernel = jax.vjp(lambda x, k: direct(x, k, 1, dilation), x, kernel)[1](gradient)
    if math.prod(gradient.shape[:3]) <= 2.5 * gradient.shape[-1]:  # larger maps take too much memory
        of_input = _input_gradient(gradient, kernel, dilation)
    if _tiles_fit(x, dilation):
        of_kernel = winograd_kernel_gradient(x, gradient, dilation)
        if kernel.shape[2] >= WIDEST:
            of_input = winograd_input_gradient(gradient, kernel, dilation)
    return computed_once((of_input, of_kernel))  # as in `_product_backward`


def _tiles_fit(x, dilation):
    """Whether tiles reach so little beyond the map that fewer products per result are fewer in all."""
    rows, columns = tiles(x.shape, dilation)
    return 4 * rows * columns < 1.8 * x.shape[1] * x.shape[2]


_wide.defvjp(_wide_forward, _wide_backward)


def _input_gradient(y, kernel, d):
    """The gradient of a 3x3 convolution's input, as one product with the kernel as it lies in memory.

    XLA's own convolves with a copy of the kernel, flipped and transposed, which may take half as long as the
    products do. Here the maps are transposed: (B, H, W, D), (3, 3, C, D) -> (B, H, W, C).
    """
    batch, height, width, features = y.shape
    parts = _times_transposed(y.reshape(-1, features), kernel.reshape(-1, features))
    parts = parts.reshape(3, 3, -1, batch, height, width)
    shift = lambda n: ((n - 1) * d, (1 - n) * d, 0)
    shifted = (
        jax.lax.pad(parts[i, j], 0.0, ((0, 0, 0), (0, 0, 0), shift(i), shift(j)))
        for i in range(3)
        for j in range(3)
    )
    return jax.lax.optimization_barrier(sum(shifted)).transpose(1, 2, 3, 0)


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


def global_norm(tree: Any) -> jax.Array:
    """The norm of the vector of all elements of all arrays: ()."""
    leaves = jax.tree.leaves(tree)
    vectors = [x for x in leaves if x.ndim == 1]
    if on_cpu() and vectors:  # to compile hundreds of short sums takes seconds
        leaves = [x for x in leaves if x.ndim != 1] + [computed_once(jnp.concatenate(vectors))]
    return jnp.sqrt(sum(map(sum_of_squares, leaves)))


def on_cpu() -> bool:
    """Whether programs run on CPUs, where other forms are fast than on accelerators."""
    return jax.default_backend() == 'cpu'


def on_gpu() -> bool:
    """Whether programs run on GPUs."""
    return jax.default_backend() == 'gpu'


def computed_once(x: T) -> T:
    """The same array or tree of arrays, put into memory on CPUs before any part of it is used.

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
