"""Convolution, batch normalisation, max pooling and dropout with torch's semantics in NHWC.

Parameters are float32; `dtype` is what convolutions compute in. Kernels are (height, width, in, out).
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from ann_jax import pooling
from ann_jax.convolution import convolve, sum_pixels
from ann_jax.rows import Rows

he_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class Conv(nn.Module):
    """Convolution with torch's symmetric padding: size is kept at stride 1, (n - 1) // stride + 1 else."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    bias: bool = False
    kernel_init: nn.initializers.Initializer = he_normal
    dtype: jnp.dtype = jnp.float32

    def __call__(self, x: jax.Array, rows: Rows | None = None) -> jax.Array:
        """(B, H, W, C) -> (B, H', W', features) in `dtype`; `rows` are given where they are split."""
        kernel, bias = self.weights(x.shape[-1])
        split = rows is not None
        return (
            convolve(x.astype(self.dtype), kernel, stride=self.stride, dilation=self.dilation, split=split)
            + bias
        )

    @nn.compact
    def weights(self, inputs: int) -> tuple[jax.Array, jax.Array | float]:
        """The kernel (k, k, inputs, features) and the bias (features,), or 0, in `dtype`."""
        k = self.kernel_size
        kernel = self.param('kernel', self.kernel_init, (k, k, inputs, self.features)).astype(self.dtype)
        if not self.bias:
            return kernel, 0.0
        return kernel, self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation with torch's running statistics (unbiased variance), all in float32.

    Under a jit whose batch is sharded over devices, the means below run over the global batch: that
    is the synchronised batch normalisation of the paper (Sec. 4.2).
    """

    momentum: float = 0.9  # share of the old statistics that is kept: 1 - torch's momentum
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, rows: Rows | None = None) -> jax.Array:
        """(B, H, W, C) -> the same shape and dtype; updates `batch_stats` when `train`.

        With `rows`, statistics are those of the rows of the image, and the result is zero below it.
        """
        features = (x.shape[-1],)
        scale = self.param('scale', nn.initializers.ones, features)
        bias = self.param('bias', nn.initializers.zeros, features)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, features)
        running_var = self.variable('batch_stats', 'var', jnp.ones, features)

        if train:
            y, mean, var = _normalize(x, scale, bias, self.epsilon, rows)
            if not self.is_initializing():
                count = _count(x, rows)
                unbiased = var * (count / max(count - 1, 1))
                m = self.momentum
                running_mean.value = m * running_mean.value + (1 - m) * mean
                running_var.value = m * running_var.value + (1 - m) * unbiased
            return y
        y = x.astype(jnp.float32) - running_mean.value
        y = y * (scale * jax.lax.rsqrt(running_var.value + self.epsilon)) + bias
        return (y if rows is None else rows.clean(y)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize(x, scale, bias, epsilon, rows):
    """Normalises by mean and (biased) variance of the batch, and returns these too, without gradients."""
    return _normalize_forward(x, scale, bias, epsilon, rows)[0]


def _normalize_forward(x, scale, bias, epsilon, rows):
    count, y = _count(x, rows), x.astype(jnp.float32)
    mean = _sum(y, rows) / count
    # Two passes: E[x^2] - E[x]^2 loses too many digits where the mean is large.
    var = _sum(jnp.square(y - mean), rows) / count
    inverse = jax.lax.rsqrt(var + epsilon)
    y = (y - mean) * (scale * inverse) + bias
    y = (y if rows is None else rows.clean(y)).astype(x.dtype)
    return (y, mean, var), (x, scale, mean, inverse)


def _normalize_backward(epsilon, rows, residual, gradients):
    x, scale, mean, inverse = residual
    gradient = gradients[0].astype(jnp.float32)
    gradient = gradient if rows is None else rows.clean(gradient)
    normal = (x.astype(jnp.float32) - mean) * inverse
    bias, weight = _sum(gradient, rows), _sum(gradient * normal, rows)
    gradient = (gradient - (bias + normal * weight) / _count(x, rows)) * (scale * inverse)
    gradient = gradient if rows is None else rows.clean(gradient)
    return gradient.astype(x.dtype), weight, bias


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _count(x, rows):
    """Pixels of the images of a batch."""
    return x.shape[0] * (x.shape[1] if rows is None else rows.height) * x.shape[2]


def _sum(x, rows):
    """(B, H, W, C) -> (C,) sums over the images."""
    if rows is not None:
        return rows.clean(x).sum((0, 1, 2))
    return sum_pixels(x)


class ConvBN(nn.Module):
    """Convolution, batch normalisation and, unless `relu` is off, ReLU."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    bias: bool = False
    relu: bool = True
    momentum: float = 0.9
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, rows: Rows | None = None) -> jax.Array:
        """(B, H, W, C) -> (B, H', W', features) in `dtype`; `rows` are those of the result."""
        x = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            self.dilation,
            self.bias,
            dtype=self.dtype,
            name='conv',
        )(x, rows)
        x = BatchNorm(self.momentum, name='bn')(x, train, rows)
        return nn.relu(x) if self.relu else x


class Dropout2d(nn.Module):
    """Drops whole channels of an image, as torch's Dropout2d; draws from the 'dropout' stream."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(B, H, W, C) -> the same shape and dtype."""
        return nn.Dropout(self.rate, broadcast_dims=(1, 2))(x, deterministic=not train)


def max_pool(x: jax.Array, ceil: bool, rows: Rows | None = None) -> jax.Array:
    """3x3 max pooling of stride 2 and padding 1; output sizes round down, or up with `ceil`.

    (B, H, W, C) -> (B, H', W', C). With `rows`, the canvas has half as many rows; zeros below the image do no
    harm behind a ReLU.
    """
    if rows is None:
        return pooling.max_pool(x, ceil)
    # One more column of padding adds a window when the size is even, and none when it is odd.
    return nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1 + int(ceil))])
