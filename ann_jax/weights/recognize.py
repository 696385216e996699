"""Recognises the network of a torch state dict: its layout, architecture and normalisation."""

import math
import re
from typing import Any, NamedTuple

import numpy as np

from ann_jax.errors import DataError
from ann_jax.models.ann import VARIANTS
from ann_jax.models.blocks import AFNB, APNB
from ann_jax.models.resnet import DEPTHS
from ann_jax.weights.inputs import AUTHORS_BGR, IMAGENET_RGB, PADDLE_RGB, Normalization
from ann_jax.weights.layouts import HEAD_MARKS, STEMS, UNDILATED, Layout, State


class Recognized(NamedTuple):
    """What a state dict says about its network.

    Attributes:
        layout: how its tensors are named.
        model: settings of `config.model` that it determines; for a backbone alone, only the backbone's.
        input: normalisation that the weights of this layout were trained with.
        num_classes: outputs of the classifier; None for a backbone.
    """

    layout: Layout
    model: dict[str, Any]
    input: Normalization
    num_classes: int | None


def recognize(state: State) -> Recognized:
    """Recognises layout and architecture by keys and shapes.

    Args:
        state: torch keys, without `module.`, and tensors in torch's layout (OIHW).

    Raises:
        DataError: the network is not known.
    """
    _refuse_variants(state)
    layout = _layout(state)

    def shape(*path):
        array = state.get(layout.key(path))
        if array is None:
            return None
        if path[-1] == 'kernel' and (array.ndim != 4 or not array.size):
            raise DataError(f'{layout.key(path)} has the shape {array.shape}, which no convolution has')
        return array.shape

    def features(*path):
        return (shape(*path) or (0,))[0]

    body = ('params', 'backbone')
    # A missing tensor shall be named, not taken for another depth.
    there = lambda block: any(shape(*body, block, f'conv{i}', 'kernel') is not None for i in (1, 2, 3))
    blocks = tuple(sum(there(f'layer{layer}_{i}') for i in range(64)) for layer in (1, 2, 3, 4))
    bottleneck = any(shape(*body, f'layer1_{i}', 'conv3', 'kernel') for i in range(3))
    depths = [depth for depth, plan in DEPTHS.items() if plan == (bottleneck, blocks)]
    if not depths:
        kind = 'bottleneck' if bottleneck else 'basic'
        raise DataError(
            f'no supported ResNet has {blocks} {kind} blocks; supported depths: {", ".join(map(str, DEPTHS))}'
        )
    stem = [features(*body, 'stem', f'conv{i}', 'kernel') for i in (1, 2, 3)]
    authors = layout.heads == 'authors' or (not layout.heads and layout.stem in ('prefixed', 'numbered'))
    model = {
        'depth': depths[0],
        'width': max(features(*body, 'layer1_0', f'conv{i}', 'kernel') for i in (1, 2)) or 1,
        'stem_widths': tuple(filter(None, stem)),
        'ceil_pool': authors,
        'avg_down': layout.avg_down,
    }
    normalization = {'authors': AUTHORS_BGR, 'paddleseg': PADDLE_RGB}.get(layout.heads, IMAGENET_RGB)
    if not layout.heads:
        return Recognized(layout, model, AUTHORS_BGR if authors else IMAGENET_RGB, None)

    fusion = shape('params', 'fusion', 'attention_0', 'value', 'kernel') is not None
    context = shape('params', 'context', 'attention_0', 'value', 'kernel') is not None
    parts = (AFNB if fusion else None, APNB if context else None)
    narrow = model['width'] * (4 if bottleneck else 1)  # channels of Stage2; each stage doubles them
    stages: list[int] = []
    while low := shape('params', 'fusion', f'attention_{len(stages)}', 'value', 'kernel'):
        stages.append(2 + round(math.log2(low[1] / narrow)))
    attention = 'fusion' if fusion else 'context'
    model |= {
        'output_stride': 8,
        'multi_grid': (1, 1, 1),
        'dilate_second_conv': bottleneck or layout.heads not in UNDILATED,
        'contract_dilation': layout.heads != 'paddleseg',
        'variant': next(name for name, pair in VARIANTS.items() if pair == parts),
        'fuse_stages': tuple(stages) or (4,),
        'sampling': 'average',
        'sizes': (1, 3, 6, 8),
        'share': 'query_key',
        'out_norm': False,
        'key_channels': features('params', attention, 'attention_0', 'key', 'conv', 'kernel') or 256,
        'head_channels': features('params', 'bottleneck', 'conv', 'kernel'),
        'aux_channels': features('params', 'aux_bottleneck', 'conv', 'kernel'),
        'decoder': 'none',
        'decoder_channels': 256,
        'conv_bias': shape('params', 'bottleneck', 'conv', 'bias') is not None,
        'align_corners': authors,
    }
    return Recognized(layout, model, normalization, features('params', 'classifier', 'kernel'))


# Networks that hold a ResNet's tensors and more: how a key of theirs looks.
_VARIANTS = {
    r'layer1\.\d+\.(se|se_module|se_layer|eca|cbam|attn|se_block)\.': 'has channel attention, as seresnet',
    r'layer1\.\d+\.conv2\.(conv|fc|bn|attn)': 'splits attention, as resnest and sknet',
    r'layer1\.\d+\.(convs|bns)\.\d': 'is a res2net',
    r'(^|\.)attnpool\.': 'pools by attention, as the ResNets of CLIP',
    r'(^|\.)maxpool\.\d': 'pools by a convolution, as resnetrs',
    r'layer\d\.\d+\.(conv2_offset|conv2\.conv_offset|conv2\.offset)': 'has deformable convolutions',
    r'layer\d\.\d+\.bn1\.(IN|BN)\.': 'is an ibn-net',
    r'layer1\.\d+\.(aa|conv_blur)\.': 'is anti-aliased, as resnetaa and resnetblur',
}


def _refuse_variants(state):
    """Refuses relatives of ResNet in one line, which would otherwise differ in most tensors."""
    what = next(
        (text for mark, text in _VARIANTS.items() if any(re.search(mark, key) for key in state)), None
    )
    shapes = {
        re.sub(r'.*layer1\.0\.', '', key): np.shape(value)
        for key, value in state.items()
        if re.search(r'(^|\.)layer1\.0\.', key)
    }
    first, second, third = (shapes.get(f'conv{i}.weight', ()) for i in (1, 2, 3))
    if not what and second and len(second) == 4 and second[1] != second[0]:
        what = 'has grouped convolutions, as resnext and regnet'
    elif not what and third and first and first[0] and third[0] != 4 * first[0]:
        what = f'widens its blocks by {third[0] / first[0]:g} instead of 4, as wide_resnet'
    elif not what and 'bn1.weight' in shapes and 'bn1.running_mean' not in shapes:
        what = 'normalises without running statistics, as resnet50_gn'
    if what:
        raise DataError(f'is not a ResNet as built here, but another network: it {what}. {ONLY_RESNETS}')


ONLY_RESNETS = 'Supported are ResNet-18 to 152 and ResNet-D (resnet50, resnet101d, ...)'


def _layout(state):
    def any_below(*roots):
        return any(key.startswith(roots) for key in state)

    heads = next((heads for heads, roots in HEAD_MARKS.items() if any_below(*roots)), '')
    prefix = next((root for root in ('backbone.', 'backbone_net.') if any_below(root)), '')
    for stem, (_, mark) in STEMS.items():
        if prefix + mark in state:
            averages = stem == 'paddleseg' or f'{prefix}layer2.0.downsample.2.weight' in state
            return Layout(heads, stem, prefix, averages)
    keys = ', '.join(list(state)[:4]) or 'none'
    raise DataError(
        f'not a known network: no stem of a ResNet among {len(state)} tensors (first: {keys}); supported are '
        'ResNets of torchvision, timm, mmseg and the authors, and whole ANNs of mmseg, the authors, '
        'PaddleSeg and sssegmentation'
    )
