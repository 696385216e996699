"""Convolution, batch normalisation, pooling and dropout with torch's semantics in NHWC.

Layers take and return a `FeatureMap`; an array counts as one that the images fill. Parameters are float32;
convolutions compute in `dtype`. Kernels are (height, width, in, out). With `folded`, batch normalisation is
merged into the preceding kernel (see `fold`), and only its bias is left.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from ann_jax.errors import ConfigError
from ann_jax.kernels import pooling
from ann_jax.kernels.convolution import convolve
from ann_jax.kernels.expansion import normalize_product
from ann_jax.kernels.forms import computed_once
from ann_jax.kernels.masking import count_pixels
from ann_jax.kernels.normalization import normalize
from ann_jax.models.feature_map import FeatureMap
from ann_jax.models.initializers import he_normal, ones, zeros
from ann_jax.ranges import check

EPSILON = 1e-5  # of every batch normalisation, as in torch


class Conv(nn.Module):
    """Convolution with torch's symmetric padding: keeps the size at stride 1, else (n - 1) // stride + 1."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    bias: bool = False
    kernel_init: nn.initializers.Initializer = he_normal
    dtype: DTypeLike = jnp.float32

    def __call__(self, x: FeatureMap) -> FeatureMap:
        """(B, H, W, C) -> (B, H', W', features) in `dtype`.

        Raises:
            ConfigError: the kernel size is even.
        """
        if self.kernel_size % 2 == 0:
            raise ConfigError(f'kernel_size={self.kernel_size}: symmetric padding takes an odd one')
        x = FeatureMap.of(x)
        kernel, bias = self.weights(x.channels)
        # A 1x1 convolution does not read neighbouring pixels.
        array = (x.array if self.kernel_size == 1 else x.clean()).astype(self.dtype)
        y = convolve(array, kernel, stride=self.stride, dilation=self.dilation) + bias
        return x.strided(y, self.stride)

    def widens(self, x: FeatureMap) -> bool:
        """Whether `normalize_product` takes it: 1x1, in bfloat16, without bias, to no fewer channels."""
        plain = self.kernel_size == 1 and self.stride == 1 and not self.bias
        return plain and self.dtype == jnp.bfloat16 and x.channels <= self.features

    @nn.compact
    def weights(self, inputs: int) -> tuple[jax.Array, jax.Array | float]:
        """The kernel (k, k, inputs, features) and the bias (features,), or 0, in `dtype`."""
        k = self.kernel_size
        kernel = self.param('kernel', self.kernel_init, (k, k, inputs, self.features)).astype(self.dtype)
        if not self.bias:
            return kernel, 0.0
        return kernel, self.param('bias', zeros, (self.features,)).astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation with torch's running statistics (unbiased variance), all in float32.

    In a jitted function on a batch that is sharded over devices, the statistics are those of the global
    batch, which is the paper's synchronised batch normalisation (Sec. 4.2).
    """

    momentum: float = 0.9  # weight of the old statistics: 1 - torch's momentum
    folded: bool = False

    @nn.compact
    def __call__(
        self,
        x: FeatureMap,
        train: bool,
        *,
        conv: Conv | None = None,
        shortcut: FeatureMap | None = None,
        relu: bool = False,
    ) -> FeatureMap:
        """(B, H, W, C) -> the same shape and dtype, or those of `conv`; updates `batch_stats` when `train`.

        What comes before and after it in a network can be given as well, to be computed together.

        Args:
            x: features.
            train: whether to normalise by the statistics of the batch.
            conv: a convolution that comes first.
            shortcut: what a residual block adds.
            relu: whether a ReLU comes last.

        Raises:
            ConfigError: the network is `folded` but its variables are not; or a batch has a single pixel, as
                in torch: it is its own mean, and the result would be the bias alone, whatever the image.
        """
        x = FeatureMap.of(x)
        together = conv is not None and train and not self.folded and conv.widens(x)
        if conv is not None and not together:
            x = conv(x)
        features = (conv.features if conv is not None else x.channels,)
        if self.folded:
            if self.has_variable('params', 'scale'):
                raise ConfigError(f'{"/".join(self.path)} is not folded: call fold(model, variables)')
            y = x.array + self.param('bias', zeros, features).astype(x.array.dtype)
            return x.with_array(_finish(y, shortcut, relu))
        scale = self.param('scale', ones, features)
        bias = self.param('bias', zeros, features)
        running_mean = self.variable('batch_stats', 'mean', zeros, None, features)
        running_var = self.variable('batch_stats', 'var', ones, None, features)
        if not train:
            y = x.array.astype(jnp.float32) - running_mean.value
            y = y * (scale * jax.lax.rsqrt(running_var.value + EPSILON)) + bias
            return x.with_array(_finish(y.astype(x.array.dtype), shortcut, relu))
        pixels = count_pixels(x.array.shape, x.size)
        if isinstance(pixels, int) and pixels == 1 and not self.is_initializing():
            where = '/'.join(self.path) or 'BatchNorm'
            raise ConfigError(
                f'{where}: a batch of a single pixel has no variance: train on larger images '
                '(augment.crop), on more at a time (train.batch_size, or less train.accumulate), or keep the '
                'statistics (train.frozen_norm)'
            )
        if conv is not None and together:
            kernel, _ = conv.weights(x.channels)
            array, added = x.array.astype(conv.dtype), None if shortcut is None else shortcut.array
            y, mean, var = normalize_product(array, kernel[0, 0], scale, bias, EPSILON, x.size, added, relu)
        else:
            about, ends = running_mean.value, relu and shortcut is None
            y, mean, var = normalize(x.array, scale, bias, EPSILON, x.size, about, ends)
            y = _finish(y, shortcut, relu and not ends)
        if not self.is_initializing():
            pixels = jnp.asarray(pixels, jnp.float32)
            unbiased = var * (pixels / jnp.maximum(pixels - 1, 1))
            m = self.momentum
            running_mean.value = m * running_mean.value + (1 - m) * mean
            running_var.value = m * running_var.value + (1 - m) * unbiased
        return x.with_array(y)


def _finish(y, shortcut, relu):
    """What a residual block does with a normalised map."""
    y = y if shortcut is None else shortcut.array + y
    y = nn.relu(y) if relu else y
    return y if shortcut is None else computed_once(y)


class ConvBN(nn.Module):
    """Convolution, batch normalisation and, unless `relu` is off, ReLU."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    bias: bool = False
    relu: bool = True
    momentum: float = 0.9
    dtype: DTypeLike = jnp.float32
    folded: bool = False

    def setup(self):
        """Names the children like torch's modules."""
        self.conv = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            self.dilation,
            self.bias and not self.folded,
            dtype=self.dtype,
        )
        self.bn = BatchNorm(self.momentum, folded=self.folded)

    def __call__(self, x: FeatureMap, train: bool) -> FeatureMap:
        """(B, H, W, C) -> (B, H', W', features) in `dtype`."""
        return self.bn(x, train, conv=self.conv, relu=self.relu)

    def finish(self, x: FeatureMap, train: bool) -> FeatureMap:
        """Applies what follows the convolution."""
        return self.bn(x, train, relu=self.relu)


def relu(x: FeatureMap) -> FeatureMap:
    """max(x, 0)."""
    return x.with_array(nn.relu(x.array))


class Dropout2d(nn.Module):
    """Drops whole channels of an image like torch's Dropout2d; draws from the 'dropout' stream."""

    rate: float

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> FeatureMap:
        """(B, H, W, C) -> the same shape and dtype.

        Raises:
            ConfigError: the rate is out of its range, in which flax would scale by a wrong factor.
        """
        check('model.dropout', self.rate)
        x = FeatureMap.of(x)
        return x.with_array(nn.Dropout(self.rate, broadcast_dims=(1, 2))(x.array, deterministic=not train))


def max_pool(x: FeatureMap, ceil: bool) -> FeatureMap:
    """3x3 max pooling of stride 2 and padding 1, after a ReLU; sizes are rounded down, or up with `ceil`.

    (B, H, W, C) -> (B, H', W', C). Zeros outside the images do no harm: no maximum is below zero.
    """
    x = FeatureMap.of(x)
    size = x.size and tuple((length - 1 + int(ceil)) // 2 + 1 for length in x.size)
    return FeatureMap.of(pooling.max_pool(x.clean(), ceil), size)


def average_pool(x: FeatureMap) -> FeatureMap:
    """2x2 average pooling of stride 2, over the pixels of an image alone; sizes round up.

    (B, H, W, C) -> (B, H', W', C).
    """
    x = FeatureMap.of(x)
    return x.strided(pooling.average_pool(x.clean(), x.size), 2)
