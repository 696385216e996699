"""ANN of mmsegmentation 1.x, which benchmarks compare with if it is installed."""

import torch
from mmseg.models.backbones import ResNet
from mmseg.models.decode_heads import ANNHead, FCNHead
from torch import nn
from torch.nn import functional as F


class MMSegANN(nn.Module):
    """Backbone and heads of mmsegmentation's `ann_r*-d8` with the given widths, without dropout.

    All convolutions are initialised like torch's. mmsegmentation initialises W_o to zero, which would hide
    attention.
    """

    def __init__(self, depth, width, stem_widths, key_channels, head_channels, aux_channels, classes=19):
        super().__init__()
        norm = {'type': 'BN', 'requires_grad': True}
        self.backbone = ResNet(
            depth,
            stem_channels=stem_widths[-1],
            base_channels=width,
            deep_stem=len(stem_widths) == 3,
            strides=(1, 2, 1, 1),
            dilations=(1, 1, 2, 4),
            contract_dilation=True,
            norm_cfg=norm,
        )
        common = {'num_classes': classes, 'norm_cfg': norm, 'align_corners': False}
        self.decode_head = ANNHead(
            in_channels=[16 * width, 32 * width],
            in_index=[2, 3],
            channels=head_channels,
            project_channels=key_channels,
            **common,
        )
        self.auxiliary_head = FCNHead(
            in_channels=16 * width,
            in_index=2,
            channels=aux_channels,
            num_convs=1,
            concat_input=False,
            **common,
        )
        self.decode_head.dropout = self.auxiliary_head.dropout = nn.Identity()
        self.apply(lambda module: module.reset_parameters() if isinstance(module, nn.Conv2d) else None)

    def forward(self, image: torch.Tensor):
        """(B, 3, H, W) normalised image -> logits of its size, and in training the auxiliary ones."""
        stages = self.backbone(image)
        resize = lambda x: F.interpolate(x, image.shape[2:], mode='bilinear', align_corners=False)
        main = resize(self.decode_head(stages))
        return (main, resize(self.auxiliary_head(stages))) if self.training else main
