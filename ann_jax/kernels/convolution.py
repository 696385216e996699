"""Convolution of feature maps, with forms that are fast on CPUs, GPUs and TPUs."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ann_jax.kernels import Array
from ann_jax.kernels.forms import by_platform, with_static
from ann_jax.kernels.products import product, times_transposed
from ann_jax.kernels.winograd import tiles, winograd, winograd_input_gradient, winograd_kernel_gradient
from ann_jax.parallel.mesh import row_shards

# Number of channels from which the CPU forms of 3x3 convolutions pay off.
WIDE = 64  # for gradients: the kernel's by Winograd, the input's as one product where the map is small
WIDER = 128  # for Winograd without gradients: with fewer, memory traffic costs more than it saves
WIDEST = 512  # input channels, for all three by Winograd: with fewer, compilation takes too long
# Number of channels up to which the TPU form of convolutions of stride 2 pays off: those of images.
NARROW = 16


def convolve(
    x: Float[Array, 'B H W C'], kernel: Float[Array, 'k k C D'], *, stride: int = 1, dilation: int = 1
) -> Float[jax.Array, 'B H_out W_out D']:
    """Convolution with torch's symmetric zero padding.

    A 1x1 convolution is computed as a matrix product, which is faster in XLA, especially its gradients.

    Args:
        x: features.
        kernel: k is odd.
        stride, dilation: same for both axes.

    Returns:
        A map of the size of x at stride 1; of (n - 1) // stride + 1 otherwise.
    """
    size = kernel.shape[0]
    if size == 1:
        # A plain slice where sizes are symbolic, for which indexing would gather.
        x = jax.lax.slice(jnp.asarray(x), (0, 0, 0, 0), x.shape, (1, stride, stride, 1)) if stride > 1 else x
        return product(x, kernel[0, 0])
    # XLA exchanges rows that are split over devices, but only for its own convolution.
    special = stride == 1 and (dilation > 1 or _is_wide(x, kernel)) and row_shards(x) == 1
    if special:
        return _special(x, kernel, dilation)
    if stride == 2 and dilation == 1 and x.shape[-1] <= NARROW and row_shards(x) == 1:
        return by_platform(x, kernel, tpu=_over_blocks, default=_of_stride_2)
    return direct(x, kernel, stride, dilation)


def direct(
    x: Float[Array, 'B H W C'], kernel: Float[Array, 'k k C D'], stride: int, dilation: int
) -> Float[jax.Array, 'B H_out W_out D']:
    """`convolve` by XLA's own convolution, whose gradients are convolutions too."""
    pad = dilation * (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(kernel),
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _special(x, kernel, dilation):
    """A convolution of stride 1 with special forms; this one is used if no gradient is needed."""
    return by_platform(
        x,
        kernel,
        cpu=with_static(_cpu_inference, dilation),
        default=with_static(_direct, dilation),
    )


def _forward(x, kernel, dilation):
    y = by_platform(
        x,
        kernel,
        cpu=with_static(_cpu_forward, dilation),
        default=with_static(_direct, dilation),
    )
    return y, (x, kernel)


def _backward(dilation, residual, gradient):
    return by_platform(
        *residual,
        gradient,
        cpu=with_static(_cpu_backward, dilation),
        gpu=with_static(_gpu_backward, dilation),
        default=with_static(_direct_backward, dilation),
    )


_special.defvjp(_forward, _backward)


def _direct(dilation, x, kernel):
    return direct(x, kernel, 1, dilation)


def _of_stride_2(x, kernel):
    return direct(x, kernel, 2, 1)


def _direct_backward(dilation, x, kernel, gradient):
    return jax.vjp(functools.partial(_direct, dilation), x, kernel)[1](gradient)


# GPUs


def _gpu_backward(dilation, x, kernel, gradient):
    """Computes the gradient of a dilated kernel as that of a plain one.

    XLA gives the gradient of a dilated kernel to cuDNN as a convolution of C images with kernels as large as
    the map and the batch as channels; for a plain kernel, cuDNN has an operation of its own.
    """
    if dilation == 1:
        return _direct_backward(dilation, x, kernel, gradient)
    of_input = jax.vjp(lambda x: direct(x, kernel, 1, dilation), x)[1](gradient)
    plain = lambda kernel: direct(space_to_batch(x, dilation), kernel, 1, 1)
    return *of_input, *jax.vjp(plain, kernel)[1](space_to_batch(gradient, dilation))


def space_to_batch(x: Float[Array, 'B H W C'], d: int) -> Float[jax.Array, 'B*{d}**2 h w C']:
    """Rearranges pixels `d` apart as neighbours in d^2 images of ceil(H / d) x ceil(W / d).

    A convolution dilated by `d` is a plain one of these. Sizes that d does not divide are padded with zeros.
    """
    batch, height, width, channels = x.shape
    rows, columns = -(-height // d), -(-width // d)
    x = jnp.pad(x, ((0, 0), (0, rows * d - height), (0, columns * d - width), (0, 0)))
    x = x.reshape(batch, rows, d, columns, d, channels).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(-1, rows, columns, channels)


def batch_to_space(
    y: Float[jax.Array, 'images h w C'], d: int, height: int, width: int
) -> Float[jax.Array, 'images//{d}**2 {height} {width} C']:
    """Inverse of `space_to_batch`, for a map of `height` x `width`."""
    _, rows, columns, channels = y.shape
    y = y.reshape(-1, d, d, rows, columns, channels).transpose(0, 3, 1, 4, 2, 5)
    return y.reshape(-1, rows * d, columns * d, channels)[:, :height, :width]


# TPUs


def _over_blocks(x, kernel):
    """A convolution of stride 2 as one of stride 1 over blocks of 2x2 pixels with all of their channels.

    TPUs pad channels to 128: those of an image take 43 times their bytes, those of blocks 11 times.
    """
    size, _, channels, features = kernel.shape
    half = size // 2
    before, after = (half + 1) // 2, half // 2  # blocks beside that of a window's middle
    blocks = before + 1 + after
    low = 2 * before - half  # taps of the first block that are before the window
    kernel = jnp.pad(kernel, [(low, 2 * blocks - size - low)] * 2 + [(0, 0)] * 2)
    kernel = kernel.reshape(blocks, 2, blocks, 2, channels, features).transpose(0, 2, 1, 3, 4, 5)
    rows, columns = ((n + 1) // 2 for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))  # taken where the size is odd
    every_second = lambda i, j: jax.lax.slice(
        x, (0, i, j, 0), (x.shape[0], i + 2 * rows - 1, j + 2 * columns - 1, channels), (1, 2, 2, 1)
    )
    return jax.lax.conv_general_dilated(
        jnp.concatenate([every_second(i, j) for i in range(2) for j in range(2)], -1),
        kernel.reshape(blocks, blocks, 4 * channels, features),
        window_strides=(1, 1),
        padding=[(before, after)] * 2,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


# CPUs


def _is_wide(x, kernel):
    """Whether this is a float32 3x3 convolution with special forms for CPUs."""
    return kernel.shape[0] == 3 and min(kernel.shape[2:]) >= WIDE and x.dtype == jnp.float32


def _tiles_fit(x, dilation):
    """Whether Winograd saves products in total, although its tiles reach beyond the map."""
    if not all(isinstance(n, int) for n in x.shape[1:3]):  # exported for any size
        return False
    rows, columns = tiles(x.shape, dilation)
    return 4 * rows * columns < 1.8 * x.shape[1] * x.shape[2]


def _cpu_inference(dilation, x, kernel):
    if _is_wide(x, kernel) and min(kernel.shape[2:]) >= WIDER and _tiles_fit(x, dilation):
        return winograd(x, kernel, dilation)
    return direct(x, kernel, 1, dilation)


def _cpu_forward(dilation, x, kernel):
    if _is_wide(x, kernel) and kernel.shape[2] >= WIDEST and _tiles_fit(x, dilation):
        return winograd(x, kernel, dilation)
    return direct(x, kernel, 1, dilation)


def _cpu_backward(dilation, x, kernel, gradient):
    if not _is_wide(x, kernel):
        return _direct_backward(dilation, x, kernel, gradient)
    # Behind a barrier; else x would be kept padded from the forward pass on.
    x, gradient = jax.lax.optimization_barrier((x, gradient))
    of_input, of_kernel = _direct_backward(dilation, x, kernel, gradient)  # XLA drops what is replaced
    tiled = _tiles_fit(x, dilation)
    if tiled:
        of_kernel = winograd_kernel_gradient(x, gradient, dilation)
    if tiled and kernel.shape[2] >= WIDEST:
        of_input = winograd_input_gradient(gradient, kernel, dilation)
    elif math.prod(gradient.shape[:3]) <= 2.5 * gradient.shape[-1]:  # larger maps take too much memory
        of_input = _input_gradient(gradient, kernel, dilation)
    # After both, an optimizer updates the kernel in place; otherwise XLA would copy it first.
    return jax.lax.optimization_barrier((of_input, of_kernel))


def _input_gradient(y, kernel, d):
    """The gradient of a 3x3 convolution's input, as one product with the kernel in its memory layout.

    XLA convolves with a flipped and transposed copy of the kernel, and making it may take half as long as the
    products. Here the maps are transposed instead: (B, H, W, D), (3, 3, C, D) -> (B, H, W, C).
    """
    batch, height, width, features = y.shape
    parts = times_transposed(y.reshape(-1, features), kernel.reshape(-1, features))
    parts = parts.reshape(3, 3, -1, batch, height, width)
    shift = lambda n: ((n - 1) * d, (1 - n) * d, 0)
    shifted = (
        jax.lax.pad(parts[i, j], 0.0, ((0, 0, 0), (0, 0, 0), shift(i), shift(j)))
        for i in range(3)
        for j in range(3)
    )
    return jax.lax.optimization_barrier(sum(shifted)).transpose(1, 2, 3, 0)
