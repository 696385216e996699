"""The decoder of DeepLabv3+ (Chen et al. 2018), which adds a map of finer resolution back."""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from ann_jax.models.feature_map import FeatureMap
from ann_jax.models.layers import ConvBN

DECODERS = ('none', 'stage2')
LOW_CHANNELS = 48  # of the fine map, fewer than those of the coarse one, which must not be outweighed


class Decoder(nn.Module):
    """Two 3x3 convolutions of the coarse map, resized to the fine one, beside a projection of the fine one.

    Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", Sec. 3.1
    and 4.1; the convolutions are plain ones.

    Attributes:
        features: channels of the 3x3 convolutions.
        align_corners: how the coarse map is resized.
        conv_bias: whether convolutions have a bias before their normalisation.
        dtype: what it computes in; parameters are float32.
        folded: see `fold`.
    """

    features: int = 256
    align_corners: bool = True
    conv_bias: bool = True
    dtype: DTypeLike = jnp.float32
    folded: bool = False

    @nn.compact
    def __call__(self, low: FeatureMap, high: FeatureMap, train: bool) -> FeatureMap:
        """Fine (B, H, W, C_low) and coarse (B, h, w, C) -> (B, H, W, features)."""
        layer = functools.partial(ConvBN, bias=self.conv_bias, dtype=self.dtype, folded=self.folded)
        x = layer(LOW_CHANNELS, name='project')(low, train)
        if high.array.shape[1:3] != x.array.shape[1:3]:
            high = high.resized(x, self.align_corners)
        x = x.with_array(jnp.concatenate([high.array, x.array], -1))
        x = layer(self.features, kernel_size=3, name='refine_0')(x, train)
        return layer(self.features, kernel_size=3, name='refine_1')(x, train)
