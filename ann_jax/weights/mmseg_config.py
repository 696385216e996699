"""The configs that mmsegmentation saves with its weights: what they say of the network, and writing one.

A checkpoint holds the text of its config, in Python. The text is parsed and never run: literals, `dict(...)`
and the names of earlier assignments are understood, and anything else is unknown.
"""

import ast
import pprint
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ann_jax.models.resnet import DEPTHS, PLANS

UNKNOWN = object()  # stands for what only running the text could tell


def parse(text: str) -> dict[str, Any]:
    """The assignments of a config.

    Args:
        text: Python.

    Returns:
        {name: value}; parts of values may be `UNKNOWN`.

    Raises:
        ValueError: it is not Python.
    """
    try:
        text = re.sub(r'(?m)^\S+\.py$', '', text)  # mmcv puts the names of files between their texts
        body = ast.parse(textwrap.dedent(text).strip()).body
        names: dict[str, Any] = {}
        for line in body:
            if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                names[line.targets[0].id] = _value(line.value, names)
        return names
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f'its config is not Python: {type(error).__name__}') from error


def _value(node, names):
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return names.get(name, UNKNOWN)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return tuple(_value(item, names) for item in items)
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {key.value: _value(value, names) for key, value in pairs if isinstance(key, ast.Constant)}
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=items):
            return {item.arg: _value(item.value, names) for item in items if item.arg}
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            number = _value(operand, names)
            return -number if isinstance(number, int | float) else UNKNOWN
    return UNKNOWN


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the network and its input; mmsegmentation's defaults where a part is silent.

    Args:
        config: from `parse`, or of the same structure.

    Returns:
        Some of 'output_stride', 'contract_dilation', 'multi_grid', 'sizes', 'align_corners', 'mean', 'std',
        'bgr', 'crop', and 'test', the settings of a sliding window.

    Raises:
        ValueError: it describes a network that cannot be built here.
    """
    facts: dict[str, Any] = {}
    model = _dict(config.get('model'))
    for part in ('backbone', 'decode_head', 'auxiliary_head'):
        _refuse_layers(model.get(part))
    if backbone := _dict(model.get('backbone')):
        facts |= _backbone(backbone)
    head = model.get('decode_head')
    head = _dict(head[-1] if isinstance(head, Sequence) and head else head)
    if head:
        if tuple(head.get('query_scales', (1,))) != (1,):
            raise ValueError(f'query_scales={head["query_scales"]}: only (1,) can be built here')
        facts['align_corners'] = _known(head, 'align_corners', False)
        if 'key_pool_scales' in head:
            facts['sizes'] = tuple(_known(head, 'key_pool_scales'))
    test = _dict(model.get('test_cfg')) or _dict(config.get('test_cfg'))
    if test.get('mode') == 'slide':
        facts['test'] = {'crop': _known(test, 'crop_size'), 'stride': _known(test, 'stride')}
    facts |= _input(config, model)
    if isinstance(crop := config.get('crop_size'), Sequence) and UNKNOWN not in crop:
        facts['crop'] = tuple(crop)
    return facts


def _dict(value):
    return value if isinstance(value, Mapping) else {}


def _known(part, key, default=None):
    value = part.get(key, default)
    if value is UNKNOWN or isinstance(value, tuple) and UNKNOWN in value:
        raise ValueError(f'{key} in its config is not a plain value')
    return value


def _refuse_layers(part):
    """Refuses layers that no tensor tells from those that are built here."""
    for each in part if isinstance(part, tuple | list) else (part,):
        if (eps := _known(_dict(_dict(each).get('norm_cfg')), 'eps', 1e-5)) != 1e-5:
            raise ValueError(f'norm_cfg has eps={eps}: only 1e-05 can be built here')
        activation = _dict(each).get('act_cfg', {})
        if activation is None or _known(_dict(activation), 'type', 'ReLU') != 'ReLU':
            raise ValueError(f'act_cfg={activation}: only ReLU can be built here')


def _backbone(backbone):
    if _known(backbone, 'style', 'pytorch') == 'caffe' and backbone.get('depth', 50) >= 50:
        raise ValueError("style='caffe' puts strides into 1x1 convolutions, which cannot be built here")
    strides = tuple(_known(backbone, 'strides', (1, 2, 2, 2)))
    dilations = tuple(_known(backbone, 'dilations', (1, 1, 1, 1)))
    plans = {tuple(zip(*plan, strict=True)): stride for stride, plan in PLANS.items()}
    if (strides, dilations) not in plans:
        raise ValueError(f'strides={strides} with dilations={dilations} cannot be built here')
    facts = {
        'output_stride': plans[strides, dilations],
        'contract_dilation': bool(_known(backbone, 'contract_dilation', False)),
        'multi_grid': (1, 1, 1),
    }
    if grid := _known(backbone, 'multi_grid'):
        # Theirs are the dilations of the last stage, of which the first is not contracted; ours are factors.
        rate = dilations[-1]
        first = 2 if facts['contract_dilation'] and rate > 1 else 1
        factors = [n * (first if i == 0 else 1) / rate for i, n in enumerate(grid)]
        if not all(n >= 1 and n == int(n) for n in factors):
            raise ValueError(f'multi_grid={tuple(grid)} with dilations={dilations} cannot be built here')
        facts['multi_grid'] = tuple(map(int, factors))
    return facts


def _input(config, model):
    """Normalisation; mmsegmentation reads images blue first."""
    flips = [('bgr_to_rgb', False), ('to_rgb', False)]  # the second in mmpretrain
    found = _dict(model.get('data_preprocessor')) or _dict(config.get('data_preprocessor'))
    if not found:
        flips = [('to_rgb', True)]  # before 1.0
        found = _dict(config.get('img_norm_cfg')) or next(_steps(config, 'Normalize'), {})
    facts: dict[str, Any] = {}
    for name in ('mean', 'std'):
        if found.get(name):
            facts[name] = tuple(map(float, _known(found, name)))
    if facts:
        facts['bgr'] = not any(_known(found, *flip) for flip in flips)
    return facts


def _steps(part: Any, kind: str) -> Iterator[Mapping]:
    """The steps of a kind in pipelines, at any depth."""
    if isinstance(part, Mapping):
        if part.get('type') == kind:
            yield part
        part = list(part.values())
    if isinstance(part, list | tuple):
        for item in part:
            yield from _steps(item, kind)


def write(
    model: Mapping[str, Any],
    normalization: Mapping[str, Any],
    num_classes: int,
    crop: Sequence[int] | None = None,
) -> str:
    """The config with which mmsegmentation 1.x builds the network of an export.

    Args:
        model: settings, as `config.model`.
        normalization: as `config.input`.
        num_classes: outputs of the classifier.
        crop: height and width of the training crops, if known.
    """
    bottleneck, blocks = DEPTHS[model['depth']]
    strides, dilations = zip(*PLANS[model['output_stride']], strict=True)
    rate, grid = dilations[-1], tuple(model['multi_grid'])
    deep = len(model['stem_widths']) > 1
    channels = [model['width'] * (4 if bottleneck else 1) * 2**i for i in range(4)]
    norm = {'type': 'SyncBN', 'requires_grad': True}
    backbone: dict[str, Any] = {
        'type': ('ResNetV1d' if model['avg_down'] else 'ResNetV1c') if deep else 'ResNet',
        'depth': model['depth'],
        'stem_channels': model['stem_widths'][-1],
        'base_channels': model['width'],
        'num_stages': 4,
        'out_indices': (0, 1, 2, 3),
        'strides': strides,
        'dilations': dilations,
        'contract_dilation': model['contract_dilation'],
        'norm_cfg': norm,
        'norm_eval': False,
        'style': 'pytorch',
    }
    if model['avg_down'] and not deep:
        backbone['avg_down'] = True
    if set(grid) != {1}:
        factors = [grid[min(i, len(grid) - 1)] for i in range(blocks[-1])]
        first = rate * factors[0] // (2 if model['contract_dilation'] and rate > 1 else 1)
        backbone['multi_grid'] = (first, *(rate * factor for factor in factors[1:]))
    common = {'num_classes': num_classes, 'norm_cfg': norm, 'align_corners': model['align_corners']}
    loss = {'type': 'CrossEntropyLoss', 'use_sigmoid': False}
    low = model['fuse_stages'][0] - 2
    network = {
        'type': 'EncoderDecoder',
        'data_preprocessor': {
            'type': 'SegDataPreProcessor',
            'mean': list(normalization['mean']),
            'std': list(normalization['std']),
            'bgr_to_rgb': not normalization['bgr'],
            'pad_val': 0,
            'seg_pad_val': 255,
            **({'size': tuple(crop)} if crop else {}),
        },
        'pretrained': None,
        'backbone': backbone,
        'decode_head': {
            'type': 'ANNHead',
            'in_channels': [channels[low], channels[3]],
            'in_index': [low, 3],
            'channels': model['head_channels'],
            'project_channels': model['key_channels'],
            'query_scales': (1,),
            'key_pool_scales': tuple(model['sizes']),
            'dropout_ratio': 0.1,
            **common,
            'loss_decode': loss | {'loss_weight': 1.0},
        },
        'train_cfg': {},
        'test_cfg': {'mode': 'whole'},
    }
    if model['aux_channels']:
        network['auxiliary_head'] = {
            'type': 'FCNHead',
            'in_channels': channels[2],
            'in_index': 2,
            'channels': model['aux_channels'],
            'num_convs': 1,
            'concat_input': False,
            'dropout_ratio': 0.1,
            **common,
            'loss_decode': loss | {'loss_weight': 0.4},
        }
    text = f"default_scope = 'mmseg'\nmodel = {pprint.pformat(network, sort_dicts=False)}\n"
    return f'crop_size = {tuple(crop)}\n{text}' if crop else text
