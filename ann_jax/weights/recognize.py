"""Recognises the network of a torch state dict: its layout, architecture and normalisation."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ann_jax.errors import DataError
from ann_jax.models.ann import VARIANTS
from ann_jax.models.blocks import AFNB, APNB
from ann_jax.models.resnet import DEPTHS
from ann_jax.weights.inputs import AUTHORS_BGR, IMAGENET_RGB, PADDLE_RGB, Normalization
from ann_jax.weights.layouts import STEMS, UNDILATED, Layout, State


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


def strip(state: Mapping[str, Any]) -> dict[str, Any]:
    """Removes the `module.` of torch's DataParallel from the keys."""
    return {re.sub(r'^(module\.)+', '', key): value for key, value in state.items()}


def recognize(state: State) -> Recognized:
    """Recognises layout and architecture by keys and shapes.

    Args:
        state: torch keys, without `module.`, and tensors in torch's layout (OIHW).

    Raises:
        DataError: the network is not known.
    """
    layout = _layout(state)

    def shape(*path):
        array = state.get(layout.key(path))
        return None if array is None else array.shape

    def features(*path):
        return (shape(*path) or (0,))[0]

    body = ('params', 'backbone')
    blocks = tuple(
        sum(shape(*body, f'layer{layer}_{i}', 'conv1', 'kernel') is not None for i in range(64))
        for layer in (1, 2, 3, 4)
    )
    bottleneck = shape(*body, 'layer1_0', 'conv3', 'kernel') is not None
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
        'width': features(*body, 'layer1_0', 'conv1', 'kernel'),
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
        'conv_bias': shape('params', 'bottleneck', 'conv', 'bias') is not None,
        'align_corners': authors,
    }
    return Recognized(layout, model, normalization, features('params', 'classifier', 'kernel'))


def _layout(state):
    def any_below(*roots):
        return any(key.startswith(roots) for key in state)

    marks = {
        'mmsegmentation': ('decode_head.',),
        'authors': ('cls.', 'context.'),
        'paddleseg': ('head.cls.', 'head.context.'),
        'sssegmentation': ('decoder.', 'afn_block.', 'apn_block.'),
    }
    heads = next((heads for heads, roots in marks.items() if any_below(*roots)), '')
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


def read_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Reads what mmsegmentation saves with the weights.

    Args:
        meta: the `meta` of its checkpoints: class names, and in most files the text of the config.

    Returns:
        Some of 'classes', 'colors', 'align_corners', 'sizes', 'mean', 'std', 'bgr'.
    """
    facts: dict[str, Any] = {}
    names = meta.get('dataset_meta')
    if not isinstance(names, Mapping):
        names = {'classes': meta.get('CLASSES'), 'palette': meta.get('PALETTE')}
    classes, palette = names.get('classes'), names.get('palette')
    if isinstance(classes, list | tuple) and classes and all(isinstance(name, str | int) for name in classes):
        facts['classes'] = [str(name) for name in classes]
    if isinstance(palette, list | tuple | np.ndarray) and len(palette):
        facts['colors'] = [[int(level) for level in color] for color in palette]
    text = next((text for name in ('cfg', 'config') if isinstance(text := meta.get(name), str)), '')
    numbers = r'\s*=\s*[\[(]([^\])]*)[\])]'
    if found := re.search(r'\balign_corners\s*=\s*(True|False)', text):
        facts['align_corners'] = found[1] == 'True'
    if found := re.search(r'\bkey_pool_scales' + numbers, text):
        facts['sizes'] = tuple(int(n) for n in found[1].split(',') if n.strip())
    for name in ('mean', 'std'):
        if found := re.search(rf'\b{name}' + numbers, text):
            facts[name] = tuple(float(n) for n in found[1].split(',') if n.strip())
    if found := re.search(r'\b(to_rgb|bgr_to_rgb)\s*=\s*(True|False)', text):
        facts['bgr'] = found[2] == 'False'
    return facts
