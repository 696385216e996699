"""Torch state dicts as NumPy arrays <-> our variables.

Our names follow torch's, so a layout is a list of rules that turn our names into its own. Both directions use
them: conversion looks up the key of every variable, export writes it. The known layouts are the backbones of
torchvision, timm (where the architecture matches), the authors, mmsegmentation and PaddleSeg, and the whole
networks of the last three and of sssegmentation. torch is not needed: `torch_files` reads the arrays.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flax import traverse_util

from ann_jax.errors import DataError
from ann_jax.models.resnet import dilates_pairs

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
    'plain': ({'conv1': 'conv1', 'bn1': 'bn1'}, 'conv1.weight'),
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
# What a segmentor's code has, and no setting of it changes.
_NEEDED = {
    'authors': {'avg_down': False},
    'paddleseg': {'avg_down': True, 'contract_dilation': False, 'ceil_pool': False},
    'sssegmentation': {'avg_down': False, 'ceil_pool': False},
}
# Convolutions that have no bias in a layout. Zeros are the same: a normalisation follows.
_UNBIASED = {'sssegmentation': ('value', 'out')}
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
            rules = _PADDLE_BLOCKS if paddle else _AVERAGING_BLOCKS if self.avg_down else _BLOCKS
            prefix = self.prefix
        else:
            rules, prefix = _HEADS[self.heads], ''
        name = '.'.join(modules)
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        return f'{prefix}{name}.{(_PADDLE_LEAVES if paddle else _LEAVES)[leaf]}'

    def describe(self) -> str:
        """What it is, in words."""
        stem = 'plain stem' if self.stem == 'plain' else f'deep stem, {self.stem} spelling'
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


@dataclass
class Conversion:
    """What became of every tensor.

    Attributes:
        variables: ours, as NumPy float32; a backbone is under 'backbone', as in the whole network.
        used: torch key -> path of the variable.
        zeros: paths of biases that the layout does not have.
        ignored: torch key -> reason.
    """

    variables: dict[str, Any]
    used: dict[str, tuple[str, ...]] = field(default_factory=dict)
    zeros: list[tuple[str, ...]] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)


def from_torch(state: State, target: Mapping, layout: Layout, part: str = 'all') -> Conversion:
    """Converts a torch state dict to variables with the structure of `target`.

    Args:
        state: torch keys, without `module.`, and tensors in torch's layout (OIHW).
        target: variables of `ANN`, or their `jax.eval_shape`, or of a backbone, under 'backbone'.
        layout: of the state dict, see `recognize`.
        part: 'all', or 'backbone' to leave the heads out.

    Raises:
        DataError: a tensor has no place or is missing, a shape differs, or numbers are impossible for
            weights; the message lists all of them.
    """
    expected = traverse_util.flatten_dict(dict(target))
    result, found, problems = Conversion({}), {}, []
    for path, leaf in expected.items():
        name, key = '/'.join(path), layout.key(path)
        if key not in state and path[-1] == 'bias' and path[-2] in _UNBIASED.get(layout.heads, ()):
            result.zeros.append(path)
            found[path] = np.zeros(leaf.shape, np.float32)
            continue
        if key not in state:
            problems.append(f'{name} {leaf.shape}: no tensor {key}')
            continue
        array = np.asarray(state[key])
        result.used[key] = path
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        if array.shape != leaf.shape:
            problems.append(f'{name}: shape {leaf.shape}, but {key} gives {array.shape}')
        elif array.dtype.kind != 'f':
            problems.append(f'{key}: holds {array.dtype}, not floats: save it as float32')
        elif not np.isfinite(array).all():
            problems.append(f'{key}: holds numbers that are not finite; the file is damaged')
        elif path[-1] == 'var' and (array < 0).any():
            problems.append(f'{key}: holds negative variances; the file is damaged')
        else:
            found[path] = np.ascontiguousarray(array, np.float32)
    for key in state.keys() - result.used.keys():
        reason = _ignored(key, state, layout, part)
        if reason:
            result.ignored[key] = reason
        else:
            problems.append(f'{key} {np.shape(state[key])}: no place for it')
    if problems:
        raise DataError('cannot convert it:\n  ' + '\n  '.join(problems))
    result.variables = traverse_util.unflatten_dict(found)
    return result


def _ignored(key, state, layout, part):
    """Why a tensor may be left out, or None if it may not."""
    if key.endswith('.num_batches_tracked'):
        return 'step counter'
    if not layout.heads and key.startswith(('fc.', 'head.')):
        return 'classifier of the pretraining'
    if part == 'backbone' and not key.startswith(layout.prefix):
        return 'only the backbone is asked for'
    for query, twin in (('query_project', 'key_project'), ('f_query', 'f_key')):
        twin = key.replace(query, twin)
        if query in key and twin in state and np.array_equal(state[twin], state[key]):
            return f'copy of {twin}'
    return None


def to_torch(variables: Mapping, layout: str, model: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts variables to the torch state dict of a whole network.

    Parameters for which the layout has no tensor are folded into others, which leaves the outputs in
    evaluation unchanged: batch normalisation after W_o into W_o, and for mmsegmentation and sssegmentation
    the biases before batch normalisation into its running means.

    Args:
        variables: of `ANN`.
        layout: a key of `EXPORTS`.
        model: its settings, as `config.model`.

    Raises:
        DataError: the layout has another network.
    """
    needed: dict[str, Any] = {'variant': 'full', 'sampling': 'average', 'share': 'query_key'}
    needed |= _NEEDED.get(layout, {})
    if layout == 'paddleseg' and (len(model['stem_widths']) == 1 or model['depth'] < 50):
        raise DataError(
            "the layout 'paddleseg' is written for networks with a deep stem and a depth of 50 or more"
        )
    if dilates_pairs(model['depth'], model['output_stride'], model['multi_grid']):
        needed['dilate_second_conv'] = layout not in UNDILATED
    for key, value in needed.items():
        if model[key] != value:
            raise DataError(
                f'the layout {layout!r} takes a network of model.{key}={value}, not of {model[key]}: it '
                'would compute something else there. Export to another layout, or train with '
                f'--config.model.{key}={value}'
            )
    flat = {path: np.array(array) for path, array in traverse_util.flatten_dict(dict(variables)).items()}
    _fold_out_norm(flat)
    if layout in _UNBIASED:
        _fold_attention_biases(flat, _UNBIASED[layout])
    if layout in ('mmsegmentation', 'sssegmentation'):
        _fold_biases(flat)
    else:
        _add_biases(flat)
    prefix = 'backbone_net.' if layout == 'sssegmentation' else 'backbone.'
    names = Layout(layout, EXPORTS[layout][len(model['stem_widths']) > 1], prefix, model['avg_down'])
    state = {}
    for path, array in flat.items():
        key = names.key(path)
        copies = [key]
        if path[1:3] == ('context', 'attention_0') and path[3] == 'key':
            copies.append(re.sub(r'\b(f_)?key', r'\1query', key))  # one projection, listed twice
        for key in copies:
            state[key] = np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if array.ndim == 4 else array
            if path[-1] == 'mean' and layout != 'paddleseg':
                state[key.replace('running_mean', 'num_batches_tracked')] = np.zeros((), np.int64)
    return state


def _fold_out_norm(flat):
    for *module, _ in [path[1:] for path in flat if path[-2:] == ('out_bn', 'scale')]:
        block, norm = tuple(module[:-1]), tuple(module)
        mean, var = (flat.pop(('batch_stats', *norm, name)) for name in ('mean', 'var'))
        scale, bias = (flat.pop(('params', *norm, name)) for name in ('scale', 'bias'))
        gain = scale / np.sqrt(var + np.float32(1e-5))
        kernel, offset = (('params', *block, 'out', name) for name in ('kernel', 'bias'))
        flat[kernel], flat[offset] = flat[kernel] * gain, (flat[offset] - mean) * gain + bias


def _fold_attention_biases(flat, names):
    """Takes the biases out of attentions: as weights sum to one, each adds a constant to a channel."""
    for block in {path[:3] for path in flat if path[-2:] == ('value', 'bias')}:
        value, out = (flat.pop((*block, name, 'bias')) for name in names)
        kernel = flat[*block, 'out', 'kernel'][0, 0]
        behind = flat[*block[:2], 'project', 'conv', 'kernel'][0, 0, : kernel.shape[-1]]
        flat['batch_stats', block[1], 'project', 'bn', 'mean'] -= (value @ kernel + out) @ behind


def _fold_biases(flat):
    for path in [path for path in flat if path[-2:] == ('conv', 'bias')]:
        flat['batch_stats', *path[1:-2], 'bn', 'mean'] -= flat.pop(path)


def _add_biases(flat):
    for path in [path for path in flat if path[-2:] == ('conv', 'kernel')]:
        flat.setdefault((*path[:-1], 'bias'), np.zeros(flat[path].shape[-1], np.float32))
