"""ANN: backbone, fusion, context and classifier (paper: Fig. 3), and every variant of Table 6."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from ann_jax.errors import ConfigError, unknown
from ann_jax.models.blocks import CommonFusion, NonLocalBlock
from ann_jax.models.layers import Conv, ConvBN, Dropout2d
from ann_jax.models.resnet import ResNet
from ann_jax.rows import Rows, is_split, split_rows

# Rows of Table 6 -> the `fusion` and `context` of the network.
VARIANTS = {
    'baseline': ('none', 'none'),
    'nb': ('none', 'nb'),
    'apnb': ('none', 'apnb'),
    'common': ('common', 'none'),
    'fnb': ('fnb', 'none'),
    'afnb': ('afnb', 'none'),
    'common_nb': ('common', 'nb'),
    'fnb_nb': ('fnb', 'nb'),
    'full': ('afnb', 'apnb'),
}


class Logits(NamedTuple):
    """Unnormalised class scores at the resolution of Stage5, float32 (B, h, w, classes).

    Where rows are split over devices, they lie on a canvas of more rows.
    """

    main: jax.Array
    auxiliary: jax.Array


class ANN(nn.Module):
    """Asymmetric Non-local Neural Network.

    Attributes:
        num_classes: output channels.
        backbone: an unbound `ResNet`.
        variant: a row of Table 6, a key of `VARIANTS`.
        fuse_stages: stages that the fusion reads (Table 9): (4,), (3, 4) or (2, 3, 4).
        sampling, sizes: of APNB and AFNB (Table 7), see `ops.sample_anchors`.
        share: projections that APNB and NB share, see `blocks.Attention`.
        out_norm: batch normalisation after W_o, see `blocks.Attention`.
        key_channels: C^ of the attention.
        head_channels: channels between fusion and classifier.
        aux_channels: channels of the auxiliary head on Stage4.
        dropout: rate of every Dropout2d.
        conv_bias: whether the head's convolutions before batch normalisation have a bias.
        dtype: what the head computes in; the classifiers always compute in float32.
    """

    num_classes: int
    backbone: ResNet
    variant: str = 'full'
    fuse_stages: Sequence[int] = (4,)
    sampling: str = 'average'
    sizes: Sequence[int] = (1, 3, 6, 8)
    share: str = 'query_key'
    out_norm: bool = False
    key_channels: int = 256
    head_channels: int = 512
    aux_channels: int = 512
    dropout: float = 0.05
    conv_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False, mesh: Mesh | None = None) -> Logits:
        """(B, H, W, 3) normalised image -> logits of the classifier and of the auxiliary head.

        The `space` axis of `mesh` splits the rows of each image over devices.

        Raises:
            ConfigError: unknown variant, sampling, share or fused stage.
        """
        if self.variant not in VARIANTS:
            raise ConfigError(unknown('variant', self.variant, VARIANTS))
        if not set(self.fuse_stages) <= {2, 3, 4}:
            raise ConfigError(f'fuse_stages must be among 2, 3 and 4, not {tuple(self.fuse_stages)}')
        fusion, context = VARIANTS[self.variant]
        rows, stage_rows = None, [None] * 4
        if is_split(mesh):
            rows, heights = Rows(mesh, image.shape[1]), self.backbone.heights(image.shape[1])
            stage_rows = [Rows(mesh, height) for height in heights]
            image = split_rows(image, self.backbone.canvas_height(rows.height, mesh.shape['space']), mesh)
        stages = self.backbone(image, train, rows)
        x, rows = stages.stage5, stage_rows[-1]

        lows, low_rows = ([each[stage - 2] for stage in self.fuse_stages] for each in (stages, stage_rows))
        if fusion == 'common':
            x = CommonFusion(self.conv_bias, self.dtype, name='fusion')(lows, x, train, low_rows, rows)
        elif fusion != 'none':
            block = self._block(x.shape[-1], fusion == 'fnb', relu=False, share='none', name='fusion')
            x = block(lows, x, train, low_rows, rows)

        x = self._conv_bn(self.head_channels, 'bottleneck')(x, train, rows)
        if context != 'none':
            block = self._block(
                self.head_channels, context == 'nb', relu=True, share=self.share, name='context'
            )
            x = block([x], x, train, [rows], rows)

        aux = self._conv_bn(self.aux_channels, 'aux_bottleneck')(stages.stage4, train, stage_rows[2])
        aux = Dropout2d(self.dropout)(aux, train)
        return Logits(
            main=self._classifier('classifier')(x, rows),
            auxiliary=self._classifier('aux_classifier')(aux, stage_rows[2]),
        )

    def _block(self, features, dense, *, relu, share, name):
        return NonLocalBlock(
            features,
            relu=relu,
            channels=self.key_channels,
            sampling='all' if dense else self.sampling,
            sizes=self.sizes,
            share=share,
            out_norm=self.out_norm,
            dropout=self.dropout,
            conv_bias=self.conv_bias,
            dtype=self.dtype,
            name=name,
        )

    def _conv_bn(self, features, name):
        return ConvBN(features, kernel_size=3, bias=self.conv_bias, dtype=self.dtype, name=name)

    def _classifier(self, name):
        # float32 whatever `dtype` is: the loss and the argmax compare logits that differ by little.
        init = nn.initializers.normal(0.01)
        return Conv(self.num_classes, bias=True, kernel_init=init, name=name)
