"""How torch checkpoints name their tensors.

Our names follow torch's, so a layout is a list of rules that turn our names into its own. Both directions use
them: conversion looks up the key of every variable, export writes it. The known layouts are the backbones of
torchvision, timm (where the architecture matches), the authors, mmsegmentation and PaddleSeg, and the whole
networks of the last three and of sssegmentation. torch is not needed: `torch_files` reads the arrays.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

State = Mapping[str, np.ndarray]

# How checkpoints spell the stem: our names -> theirs, and the key that identifies the spelling.
STEMS = {
    'mmsegmentation': (
        {
            'conv1': 'stem.0',
            'bn1': 'stem.1',
            'conv2': 'stem.3',
            'bn2': 'stem.4',
            'conv3': 'stem.6',
            'bn3': 'stem.7',
        },
        'stem.0.weight',
    ),
    'timm': (
        {
            'conv1': 'conv1.0',
            'bn1': 'conv1.1',
            'conv2': 'conv1.3',
            'bn2': 'conv1.4',
            'conv3': 'conv1.6',
            'bn3': 'bn1',
        },
        'conv1.0.weight',
    ),
    'prefixed': (
        {f'{kind}{i}': f'prefix.{kind}{i}' for kind in ('conv', 'bn') for i in (1, 2, 3)},
        'prefix.conv1.weight',
    ),
    'numbered': ({f'{kind}{i}': f'{kind}{i}' for kind in ('conv', 'bn') for i in (1, 2, 3)}, 'conv3.weight'),
    'paddleseg': (
        {
            f'{kind}{i}': f'conv1_{i}.{name}'
            for kind, name in (('conv', '_conv'), ('bn', '_batch_norm'))
            for i in (1, 2, 3)
        },
        'conv1_1._conv.weight',
    ),
    'transformers': (
        {'conv1': 'embedder.embedder.convolution', 'bn1': 'embedder.embedder.normalization'},
        'embedder.embedder.convolution.weight',
    ),
    'plain': ({'conv1': 'conv1', 'bn1': 'bn1'}, 'conv1.weight'),
}
# The first convolution after a stem, where it is not called as torchvision's.
BLOCK_MARKS = {
    'paddleseg': 'bb_0_0.conv0._conv.weight',
    'transformers': 'encoder.stages.0.layers.0.layer.0.convolution.weight',
}
# How the keys of heads begin, by which they are known.
HEAD_MARKS = {
    'mmsegmentation': ('decode_head.',),
    'authors': ('cls.', 'context.'),
    'paddleseg': ('head.cls.', 'head.context.'),
    'sssegmentation': ('decoder.', 'afn_block.', 'apn_block.'),
}
# Each a pattern, and what replaces it.
_Rules = list[tuple[str, str | Callable[[re.Match], str]]]
_BLOCKS: _Rules = [(r'\blayer(\d)_(\d+)', r'layer\1.\2'), (r'\bdownsample_(\d)', r'downsample.\1')]
# An average, which has no tensors, comes first in their shortcuts.
_AVERAGING_BLOCKS: _Rules = [
    (r'\bdownsample_(\d)', lambda found: f'downsample.{int(found[1]) + 1}'),
    *_BLOCKS,
]
_PADDLE_BLOCKS: _Rules = [
    (r'\blayer(\d)_(\d+)', lambda found: f'bb_{int(found[1]) - 1}_{found[2]}'),
    (r'\bconv(\d)$', lambda found: f'conv{int(found[1]) - 1}._conv'),
    (r'\bbn(\d)$', lambda found: f'conv{int(found[1]) - 1}._batch_norm'),
    (r'\bdownsample_0$', 'short._conv'),
    (r'\bdownsample_1$', 'short._batch_norm'),
]
_TRANSFORMERS_BLOCKS: _Rules = [
    (r'\blayer(\d)_(\d+)', lambda found: f'encoder.stages.{int(found[1]) - 1}.layers.{found[2]}'),
    (r'\bconv(\d)$', lambda found: f'layer.{int(found[1]) - 1}.convolution'),
    (r'\bbn(\d)$', lambda found: f'layer.{int(found[1]) - 1}.normalization'),
    (r'\bdownsample_0$', 'shortcut.convolution'),
    (r'\bdownsample_1$', 'shortcut.normalization'),
]
_HEADS: dict[str, _Rules] = {
    'mmsegmentation': [
        (r'^(fusion|bottleneck|context)\b', r'decode_head.\1'),
        (r'^classifier\b', 'decode_head.conv_seg'),
        (r'^aux_classifier\b', 'auxiliary_head.conv_seg'),
        (r'^aux_bottleneck\b', 'auxiliary_head.convs.0'),
        (r'\b(fusion|context)\.project\b', r'\1.bottleneck'),
        (r'\battention_(\d)\.(key|query|value|out)\b', r'stages.\1.\2_project'),
    ],
    'authors': [
        (r'^classifier\b', 'cls'),
        (r'^aux_bottleneck\.conv\b', 'dsn.0'),
        (r'^aux_bottleneck\.bn\b', 'dsn.1.0'),
        (r'^aux_classifier\b', 'dsn.3'),
        (r'^context\b', 'context.2'),
        (r'^bottleneck\.conv\b', 'context.0'),
        (r'^bottleneck\.bn\b', 'context.1.0'),
        (r'\battention_(\d)\.(key|query)\.conv\b', r'stages.\1.f_\2.0'),
        (r'\battention_(\d)\.(key|query)\.bn\b', r'stages.\1.f_\2.1.0'),
        (r'\battention_(\d)\.value\b', r'stages.\1.f_value'),
        (r'\battention_(\d)\.out\b', r'stages.\1.W'),
        (r'\bproject\.conv\b', 'conv_bn_dropout.0'),
        # In the context block a ReLU follows, so this is a pair.
        (r'^context\.2\.project\.bn\b', 'context.2.conv_bn_dropout.1.0'),
        (r'\bproject\.bn\b', 'conv_bn_dropout.1'),
    ],
    'paddleseg': [
        (r'\bconv$', '_conv'),
        (r'\bbn$', '_batch_norm'),
        (r'^fusion\b', 'head.fusion'),
        (r'^bottleneck\b', 'head.context.0'),
        (r'^context\b', 'head.context.1'),
        (r'^classifier\b', 'head.cls'),
        (r'^aux_bottleneck\b', 'head.auxlayer.conv_bn_relu'),
        (r'^aux_classifier\b', 'head.auxlayer.conv'),
        (r'\battention_(\d)\.(key|query|value)\b', r'stages.\1.f_\2'),
        (r'\battention_(\d)\.out\b', r'stages.\1.W'),
        (r'\bproject\b', 'conv_bn'),
    ],
    'sssegmentation': [
        (r'\bconv$', '0'),
        (r'\bbn$', '1'),
        (r'^fusion\b', 'afn_block'),
        (r'^context\b', 'apn_block'),
        (r'^classifier\b', 'decoder.1'),
        (r'^aux_bottleneck\b', 'auxiliary_decoder'),
        (r'^aux_classifier\b', 'auxiliary_decoder.4'),
        (r'\bproject\b', 'bottleneck'),
        (r'\battention_(\d)\.(key|query|value|out)\b', r'stages.\1.\2_project'),
    ],
}
# Segmentors whose blocks of two 3x3 convolutions dilate the first alone.
UNDILATED = 'mmsegmentation', 'sssegmentation'
_LEAVES = {
    'kernel': 'weight',
    'scale': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}
_PADDLE_LEAVES = {**_LEAVES, 'mean': '_mean', 'var': '_variance'}

_NETWORKS = {
    'mmsegmentation': "mmsegmentation's ANNHead",
    'authors': "the authors' ANN",
    'paddleseg': "PaddleSeg's ANN",
    'sssegmentation': "sssegmentation's ANNNet",
}


@dataclass(frozen=True)
class Layout:
    """How a checkpoint names its tensors.

    Attributes:
        heads: whose segmentor it is, a key of `_NETWORKS`, or '' for a backbone alone.
        stem: a key of the known spellings of stems.
        prefix: before every key of the backbone.
        avg_down: whether shortcuts begin with an average, see `ResNet`, which moves their keys in torch.
    """

    heads: str
    stem: str
    prefix: str
    avg_down: bool = False

    def key(self, path: tuple[str, ...]) -> str:
        """The torch key of our variable, such as ('params', 'backbone', 'stem', 'conv1', 'kernel')."""
        _, *modules, leaf = path
        paddle = self.stem == 'paddleseg'
        if modules[0] == 'backbone':
            _, *modules = modules
            if modules[0] == 'stem':
                modules = [STEMS[self.stem][0].get(modules[1], f'stem.{modules[1]}')]
            plain = _AVERAGING_BLOCKS if self.avg_down else _BLOCKS
            rules = {'paddleseg': _PADDLE_BLOCKS, 'transformers': _TRANSFORMERS_BLOCKS}.get(self.stem, plain)
            prefix = self.prefix
        else:
            rules, prefix = _HEADS[self.heads], ''
        name = '.'.join(modules)
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        return f'{prefix}{name}.{(_PADDLE_LEAVES if paddle else _LEAVES)[leaf]}'

    def describe(self) -> str:
        """What it is, in words."""
        stem = {'plain': 'plain stem', 'transformers': "plain stem, transformers' spelling"}.get(
            self.stem, f'deep stem, {self.stem} spelling'
        )
        resnet = 'ResNet-D' if self.avg_down else 'ResNet'
        whole = _NETWORKS.get(self.heads)
        return f'{whole} on a {resnet} ({stem})' if whole else f'{resnet} without heads ({stem})'


# Layouts for export -> the spellings of a plain and of a deep stem.
EXPORTS = {
    'mmsegmentation': ('plain', 'mmsegmentation'),
    'authors': ('prefixed', 'prefixed'),
    'paddleseg': ('', 'paddleseg'),
    'sssegmentation': ('plain', 'mmsegmentation'),
}
