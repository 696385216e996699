"""ANN in PyTorch, built from torch's own modules, as a reference for tests and benchmarks.

Its state dict has mmsegmentation's keys. It follows the definitions as a PyTorch user would write them. Needs
`pip install -e '.[convert]'`.
"""

import torch
from torch import nn
from torch.nn import functional as F

PLANS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution beside a shortcut."""

    def __init__(self, inputs, width, stride, dilation):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride > 1 or inputs != 4 * width:
            shortcut = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, x):
        """(B, C, H, W) -> (B, 4 * width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Backbone(nn.Module):
    """ResNet with output stride 8; three stem widths make a deep stem."""

    stem: nn.Sequential
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, depth, width, stem_widths, ceil_pool):
        super().__init__()
        if len(stem_widths) == 3:
            layers, inputs = [], 3
            for i, features in enumerate(stem_widths):
                conv = nn.Conv2d(inputs, features, 3, 2 if i == 0 else 1, 1, bias=False)
                layers += [conv, nn.BatchNorm2d(features), nn.ReLU()]
                inputs = features
            self.stem = nn.Sequential(*layers)
        else:
            self.conv1 = nn.Conv2d(3, stem_widths[0], 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(stem_widths[0])
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=ceil_pool)
        inputs = stem_widths[-1]
        for stage, blocks in enumerate(PLANS[depth]):
            stride, dilation = ((1, 1), (2, 1), (1, 2), (1, 4))[stage]
            layers = []
            for i in range(blocks):
                first = i == 0
                rate = dilation // 2 if first and dilation > 1 else dilation
                layers.append(Bottleneck(inputs, width * 2**stage, stride if first else 1, rate))
                inputs = 4 * width * 2**stage
            setattr(self, f'layer{stage + 1}', nn.Sequential(*layers))

    def forward(self, x):
        """(B, 3, H, W) -> Stage4 and Stage5."""
        x = self.stem(x) if hasattr(self, 'stem') else F.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(self.pool(x)))
        low = self.layer3(x)
        return low, self.layer4(low)


class ConvBN(nn.Module):
    """Convolution, batch normalisation and, unless `relu` is off, ReLU."""

    def __init__(self, inputs, features, kernel=1, relu=True, bias=False):
        super().__init__()
        self.conv = nn.Conv2d(inputs, features, kernel, padding=kernel // 2, bias=bias)
        self.bn, self.relu = nn.BatchNorm2d(features), relu

    def forward(self, x):
        """(B, C, H, W) -> (B, features, H, W)."""
        x = self.bn(self.conv(x))
        return F.relu(x) if self.relu else x


class Attention(nn.Module):
    """Attention of every pixel to pooled anchors; query and key share a projection for one input."""

    def __init__(self, low, high, channels, shared, sizes=(1, 3, 6, 8), bias=False):
        super().__init__()
        self.key_project = ConvBN(low, channels, bias=bias)
        self.query_project = self.key_project if shared else ConvBN(high, channels, bias=bias)
        self.value_project, self.out_project = nn.Conv2d(low, channels, 1), nn.Conv2d(channels, high, 1)
        self.sizes = sizes

    def forward(self, low, high):
        """(B, C_low, h, w), (B, C, H, W) -> (B, C, H, W)."""
        pool = lambda x: torch.cat([F.adaptive_avg_pool2d(x, size).flatten(2) for size in self.sizes], 2)
        query = self.query_project(high).flatten(2).transpose(1, 2)
        key, value = pool(self.key_project(low)), pool(self.value_project(low)).transpose(1, 2)
        weights = torch.softmax(query @ key * key.shape[1] ** -0.5, -1)
        attended = (weights @ value).transpose(1, 2)
        return self.out_project(attended.reshape(*attended.shape[:2], *high.shape[2:]))


class Block(nn.Module):
    """AFNB, or APNB for one input."""

    def __init__(self, low, high, channels, shared, bias):
        super().__init__()
        self.stages = nn.ModuleList([Attention(low, high, channels, shared, bias=bias)])
        self.bottleneck = ConvBN(2 * high, high, relu=shared, bias=bias)

    def forward(self, low, high):
        """(B, C_low, h, w), (B, C, H, W) -> (B, C, H, W)."""
        return self.bottleneck(torch.cat([self.stages[0](low, high), high], 1))


class DecodeHead(nn.Module):
    """Fusion, context and classifier."""

    def __init__(self, classes, stage5, channels, key_channels, bias):
        super().__init__()
        self.fusion = Block(stage5 // 2, stage5, key_channels, False, bias)
        self.bottleneck = ConvBN(stage5, channels, 3, bias=bias)
        self.context = Block(channels, channels, key_channels, True, bias)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, low, high):
        """Stage4, Stage5 -> logits."""
        x = self.bottleneck(self.fusion(low, high))
        return self.conv_seg(self.context(x, x))


class AuxiliaryHead(nn.Module):
    """The auxiliary classifier on Stage4."""

    def __init__(self, classes, stage4, channels, bias):
        super().__init__()
        self.convs = nn.Sequential(ConvBN(stage4, channels, 3, bias=bias))
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, low):
        """Stage4 -> logits."""
        return self.conv_seg(self.convs(low))


class TorchANN(nn.Module):
    """The whole network, without dropout.

    W_o has torch's default initialisation instead of zero, so that random weights exercise it.
    """

    def __init__(
        self,
        classes=19,
        depth=101,
        width=64,
        stem_widths=(64, 64, 128),
        ceil_pool=True,
        align_corners=True,
        key_channels=256,
        head_channels=512,
        aux_channels=512,
        conv_bias=True,
    ):
        super().__init__()
        self.align_corners = align_corners
        self.backbone = Backbone(depth, width, stem_widths, ceil_pool)
        self.decode_head = DecodeHead(classes, 32 * width, head_channels, key_channels, conv_bias)
        self.auxiliary_head = AuxiliaryHead(classes, 16 * width, aux_channels, conv_bias)

    def forward(self, image):
        """(B, 3, H, W) normalised image -> logits of its size, and in training the auxiliary ones."""
        low, high = self.backbone(image)
        resize = lambda x: F.interpolate(
            x, image.shape[2:], mode='bilinear', align_corners=self.align_corners
        )
        main = resize(self.decode_head(low, high))
        return (main, resize(self.auxiliary_head(low))) if self.training else main
