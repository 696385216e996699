"""Dilated ResNet (He et al. 2016) with the stems, dilations and pooling of segmentation networks.

Child names follow torch's (`layer3.0.conv2` is `layer3_0/conv2`), so conversion follows a rule. The stride of
a bottleneck is in its 3x3 convolution, as in all released torch checkpoints.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from ann_jax.errors import ConfigError, unknown
from ann_jax.models.feature_map import FeatureMap
from ann_jax.models.layers import BatchNorm, Conv, average_pool, max_pool

# Depth -> (bottleneck blocks, blocks per stage). Depth 10 is for laptops and for receptive-field studies.
DEPTHS = {
    10: (False, (1, 1, 1, 1)),
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
}

# Output stride -> (stride, dilation) of each stage.
PLANS = {
    4: ((1, 1), (1, 2), (1, 4), (1, 8)),
    8: ((1, 1), (2, 1), (1, 2), (1, 4)),
    16: ((1, 1), (2, 1), (2, 1), (1, 2)),
    32: ((1, 1), (2, 1), (2, 1), (2, 1)),
}


class Stages(NamedTuple):
    """Feature maps, named as in the paper; ANN fuses Stage4 and Stage5."""

    stage2: FeatureMap
    stage3: FeatureMap
    stage4: FeatureMap
    stage5: FeatureMap


class Block(nn.Module):
    """Residual block: two 3x3 convolutions, or 1x1, 3x3 and 1x1 with four times the width at the end."""

    width: int
    bottleneck: bool
    stride: int = 1
    dilation: int = 1  # of the second 3x3 convolution, if there are two
    first_dilation: int = 1  # of the first 3x3 convolution, which has the stride
    avg_down: bool = False  # whether a shortcut of stride 2 averages, then projects
    dtype: DTypeLike = jnp.float32
    folded: bool = False

    def convolutions(self) -> list[tuple[int, int, int, int]]:
        """Features, kernel size, stride and dilation of each convolution of the residual."""
        if self.bottleneck:
            return [
                (self.width, 1, 1, 1),
                (self.width, 3, self.stride, self.first_dilation),
                (4 * self.width, 1, 1, 1),
            ]
        return [(self.width, 3, self.stride, self.first_dilation), (self.width, 3, 1, self.dilation)]

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> FeatureMap:
        """(B, H, W, C) -> (B, H / stride, W / stride, width or 4 * width)."""
        *first, last = (
            (
                Conv(features, kernel, stride, dilation, dtype=self.dtype, name=f'conv{i}'),
                BatchNorm(folded=self.folded, name=f'bn{i}'),
            )
            for i, (features, kernel, stride, dilation) in enumerate(self.convolutions(), 1)
        )
        y = x = FeatureMap.of(x)
        for conv, bn in first:
            y = bn(y, train, conv=conv, relu=True)
        (conv, bn), stride = last, self.stride
        if stride > 1 or x.channels != conv.features:
            if self.avg_down and stride == 2:
                x, stride = average_pool(x), 1
            shortcut = Conv(conv.features, stride=stride, dtype=self.dtype, name='downsample_0')
            x = BatchNorm(folded=self.folded, name='downsample_1')(x, train, conv=shortcut)
        return bn(y, train, conv=conv, shortcut=x, relu=True)


class Stem(nn.Module):
    """One 7x7 convolution of stride 2, or three 3x3 ones, the first with stride 2 (deep stem)."""

    widths: Sequence[int]
    dtype: DTypeLike = jnp.float32
    folded: bool = False

    @nn.compact
    def __call__(self, x: FeatureMap, train: bool) -> FeatureMap:
        """(B, H, W, 3) -> (B, H / 2, W / 2, widths[-1])."""
        kernel = 7 if len(self.widths) == 1 else 3
        for i, features in enumerate(self.widths, 1):
            conv = Conv(features, kernel, stride=2 if i == 1 else 1, dtype=self.dtype, name=f'conv{i}')
            x = BatchNorm(folded=self.folded, name=f'bn{i}')(x, train, conv=conv, relu=True)
        return x


class ResNet(nn.Module):
    """ResNet without its classifier.

    Attributes:
        depth: a key of `DEPTHS`.
        width: channels of the narrowest stage; 64 is the standard network.
        stem_widths: output channels of the stem's convolutions: one number for the plain 7x7 stem, three for
            the deep stem; (64, 64, 128) in the authors' network, (32, 32, 64) in mmseg's.
        output_stride: size of the input over that of Stage5: 4, 8, 16, or 32 for no dilation.
        multi_grid: factors on the dilations of the blocks of Stage5.
        contract_dilation: halve the stage's dilation in the convolution that lost its stride.
        ceil_pool: round sizes up in max pooling, as the authors do; torchvision and mmseg round down.
        avg_down: shortcuts of stride 2 are a 2x2 average and a 1x1 convolution of stride 1, as in ResNet-D
            (He et al. 2019), which PaddleSeg calls ResNet-vd.
        dilate_second_conv: in blocks of two 3x3 convolutions (depths 10, 18 and 34), dilate both, as the
            authors do; mmseg and sssegmentation dilate only the first.
        dtype: what convolutions compute in.
        remat: stages, 2 to 5 as the paper counts them, in which blocks keep only their inputs and recompute
            the rest for the gradient.
        folded: whether normalisation is merged into the convolutions, see `fold`.
    """

    depth: int = 101
    width: int = 64
    stem_widths: Sequence[int] = (64, 64, 128)
    output_stride: int = 8
    multi_grid: Sequence[int] = (1, 1, 1)
    contract_dilation: bool = True
    ceil_pool: bool = True
    avg_down: bool = False
    dilate_second_conv: bool = True
    dtype: DTypeLike = jnp.float32
    remat: Sequence[int] = ()
    folded: bool = False

    takes_canvas = True  # images may be smaller than their array

    def heights(self, height: int) -> list[int]:
        """Heights of the four stages for an image; widths follow the same rule."""
        height = (height - 1) // 2 + 1
        height = (height - 1 + int(self.ceil_pool)) // 2 + 1
        heights = []
        for stride, _ in PLANS[self.output_stride]:
            height = (height - 1) // stride + 1
            heights.append(height)
        return heights

    def canvas_height(self, height: int, shards: int) -> int:
        """Rows of the smallest canvas for an image that divides over `shards` devices at every stage."""
        return -(-self.heights(height)[-1] // shards) * shards * self.output_stride

    @nn.compact
    def __call__(self, image: FeatureMap, train: bool) -> Stages:
        """(B, H, W, 3) normalised image -> features of the four stages.

        Raises:
            ConfigError: unknown depth or output stride, or the number of stem widths is neither one nor
                three.
        """
        if self.depth not in DEPTHS:
            raise ConfigError(unknown('ResNet depth', self.depth, DEPTHS))
        if self.output_stride not in PLANS:
            raise ConfigError(unknown('output stride', self.output_stride, PLANS))
        if len(self.stem_widths) not in (1, 3):
            raise ConfigError(f'stem_widths must hold one or three numbers, not {tuple(self.stem_widths)}')
        image = FeatureMap.of(image)
        x = Stem(self.stem_widths, self.dtype, self.folded, name='stem')(image, train)
        x = max_pool(x, self.ceil_pool)
        stages = []
        for layer in (1, 2, 3, 4):
            again = layer + 1 in self.remat and not self.is_initializing()
            run = nn.remat(Block.__call__, static_argnums=(2,)) if again else Block.__call__
            for i, block in enumerate(_blocks(self, layer)):
                x = run(block.clone(parent=self, name=f'layer{layer}_{i}'), x, train)
            stages.append(x)
        return Stages(*stages)


def dilates_pairs(depth: int, output_stride: int, multi_grid: Sequence[int]) -> bool:
    """Whether `dilate_second_conv` matters: there are blocks of two 3x3 convolutions, and dilations."""
    bottleneck, _ = DEPTHS[depth]
    return not bottleneck and max(*(rate for _, rate in PLANS[output_stride]), *multi_grid) > 1


def _blocks(backbone, layer):
    """The unbound blocks of torch's layers 1 to 4; layer 4 is Stage5."""
    bottleneck, sizes = DEPTHS[backbone.depth]
    stride, rate = PLANS[backbone.output_stride][layer - 1]
    for i in range(sizes[layer - 1]):
        # If the grid is shorter than the stage, its last factor is repeated.
        grid = backbone.multi_grid[min(i, len(backbone.multi_grid) - 1)] if layer == 4 else 1
        dilation = rate * grid
        # The convolution that lost its stride reads pixels half as far apart as those after it.
        contract = i == 0 and backbone.contract_dilation and rate > 1
        yield Block(
            width=backbone.width * 2 ** (layer - 1),
            bottleneck=bottleneck,
            stride=stride if i == 0 else 1,
            dilation=dilation if backbone.dilate_second_conv else 1,
            first_dilation=dilation // 2 if contract else dilation,
            avg_down=backbone.avg_down,
            dtype=backbone.dtype,
            folded=backbone.folded,
            parent=None,
        )
