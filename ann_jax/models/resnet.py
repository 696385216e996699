"""Dilated ResNet (He et al. 2016) with the stems, dilations and pooling that segmentation networks use.

Child names follow torch's (`layer3.0.conv2` is `layer3_0/conv2`), so that conversion is a rule.
The stride of a bottleneck sits in its 3x3 convolution, as in every released torch checkpoint.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ann_jax.convolution import computed_once
from ann_jax.errors import ConfigError, unknown
from ann_jax.models.layers import BatchNorm, Conv, max_pool
from ann_jax.rows import Rows

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
    8: ((1, 1), (2, 1), (1, 2), (1, 4)),
    16: ((1, 1), (2, 1), (2, 1), (1, 2)),
    32: ((1, 1), (2, 1), (2, 1), (2, 1)),
}


class Stages(NamedTuple):
    """Feature maps, named as in the paper: Stage4 and Stage5 are those that ANN fuses."""

    stage2: jax.Array
    stage3: jax.Array
    stage4: jax.Array
    stage5: jax.Array


class Block(nn.Module):
    """Residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times the width at the end."""

    width: int
    bottleneck: bool
    stride: int = 1
    dilation: int = 1  # of the 3x3 convolutions, but for the first of them
    first_dilation: int = 1  # of the first 3x3 convolution, the one that has the stride
    dtype: jnp.dtype = jnp.float32

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
    def __call__(self, x: jax.Array, train: bool, rows: Rows | None = None) -> jax.Array:
        """(B, H, W, C) -> (B, H / stride, W / stride, width or 4 * width)."""
        y, convolutions = x, self.convolutions()
        for i, (features, kernel, stride, dilation) in enumerate(convolutions, 1):
            y = Conv(features, kernel, stride, dilation, dtype=self.dtype, name=f'conv{i}')(y, rows)
            rows = rows and rows.strided(stride)
            y = BatchNorm(name=f'bn{i}')(y, train, rows)
            y = nn.relu(y) if i < len(convolutions) else y
        if x.shape != y.shape:
            x = Conv(y.shape[-1], stride=self.stride, dtype=self.dtype, name='downsample_0')(x, rows)
            x = BatchNorm(name='downsample_1')(x, train, rows)
        return computed_once(nn.relu(x + y))


class Stem(nn.Module):
    """One 7x7 convolution of stride 2, or three 3x3 ones, the first of stride 2 (the deep stem)."""

    widths: Sequence[int]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, rows: Rows | None = None) -> jax.Array:
        """(B, H, W, 3) -> (B, H / 2, W / 2, widths[-1])."""
        kernel = 7 if len(self.widths) == 1 else 3
        rows = rows and rows.strided(2)
        for i, features in enumerate(self.widths, 1):
            x = Conv(features, kernel, stride=2 if i == 1 else 1, dtype=self.dtype, name=f'conv{i}')(x, rows)
            x = nn.relu(BatchNorm(name=f'bn{i}')(x, train, rows))
        return x


class ResNet(nn.Module):
    """ResNet without its classifier.

    Attributes:
        depth: a key of `DEPTHS`.
        width: channels of the narrowest stage; 64 is the standard network.
        stem_widths: output channels of the stem's convolutions; one makes the plain 7x7 stem,
            three the deep stem: (64, 64, 128) in the authors' network, (32, 32, 64) in mmseg's.
        output_stride: input size over the size of Stage5: 8, 16, or 32 for no dilation.
        multi_grid: factors on the dilations of the blocks of Stage5.
        contract_dilation: give the convolution whose stride was removed half the stage's dilation.
        ceil_pool: round sizes up in the max pooling, as the authors do; torchvision and mmseg round down.
        dtype: what convolutions compute in.
        remat: stages, of 2 to 5 as the paper counts, whose blocks keep their inputs alone and compute the
            rest again for the gradient.
    """

    depth: int = 101
    width: int = 64
    stem_widths: Sequence[int] = (64, 64, 128)
    output_stride: int = 8
    multi_grid: Sequence[int] = (1, 1, 1)
    contract_dilation: bool = True
    ceil_pool: bool = True
    dtype: jnp.dtype = jnp.float32
    remat: Sequence[int] = ()

    def heights(self, height: int) -> list[int]:
        """Heights of the four stages of an image; widths follow the same rule."""
        height = (height - 1) // 2 + 1
        height = (height - 1 + int(self.ceil_pool)) // 2 + 1
        heights = []
        for stride, _ in PLANS[self.output_stride]:
            height = (height - 1) // stride + 1
            heights.append(height)
        return heights

    def canvas_height(self, height: int, parts: int) -> int:
        """Rows of the smallest canvas for an image that divides into `parts` at every stage."""
        return -(-self.heights(height)[-1] // parts) * parts * self.output_stride

    @nn.compact
    def __call__(self, image: jax.Array, train: bool, rows: Rows | None = None) -> Stages:
        """(B, H, W, 3) normalised image, or canvas with `rows` -> features of the four stages.

        Raises:
            ConfigError: unknown depth or output stride, or a stem of neither one nor three widths.
        """
        if self.depth not in DEPTHS:
            raise ConfigError(unknown('ResNet depth', self.depth, DEPTHS))
        if self.output_stride not in PLANS:
            raise ConfigError(unknown('output stride', self.output_stride, PLANS))
        if len(self.stem_widths) not in (1, 3):
            raise ConfigError(f'stem_widths must hold one or three numbers, not {tuple(self.stem_widths)}')
        x = Stem(self.stem_widths, self.dtype, name='stem')(image, train, rows)
        x = max_pool(x, self.ceil_pool, rows)
        rows = rows and replace(rows, height=self.heights(rows.height)[0])
        stages = []
        for layer in (1, 2, 3, 4):
            run = (
                nn.remat(Block.__call__, static_argnums=(2, 3)) if layer + 1 in self.remat else Block.__call__
            )
            for i, block in enumerate(blocks_of(self, layer)):
                x = run(block.clone(parent=self, name=f'layer{layer}_{i}'), x, train, rows)
                rows = rows and rows.strided(block.stride)
            stages.append(x)
        return Stages(*stages)


def blocks_of(backbone: ResNet, layer: int) -> list[Block]:
    """The blocks of torch's layer 1 to 4, unbound; layer 4 is Stage5."""
    bottleneck, sizes = DEPTHS[backbone.depth]
    stride, rate = PLANS[backbone.output_stride][layer - 1]
    blocks = []
    for i in range(sizes[layer - 1]):
        # A grid shorter than the stage repeats its last factor.
        grid = backbone.multi_grid[min(i, len(backbone.multi_grid) - 1)] if layer == 4 else 1
        dilation = rate * grid
        # The convolution that lost its stride sees pixels half as far apart as the ones after it.
        contract = i == 0 and backbone.contract_dilation and rate > 1
        block = Block(
            width=backbone.width * 2 ** (layer - 1),
            bottleneck=bottleneck,
            stride=stride if i == 0 else 1,
            dilation=dilation,
            first_dilation=dilation // 2 if contract else dilation,
            dtype=backbone.dtype,
            parent=None,
        )
        blocks.append(block)
    return blocks
