"""Torch state dicts as NumPy arrays <-> our variables."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flax import traverse_util

from ann_jax.errors import DataError, listed
from ann_jax.models.resnet import dilates_pairs
from ann_jax.weights.layouts import EXPORTS, UNDILATED, Layout, State
from ann_jax.weights.soundness import LARGEST, LARGEST_VARIANCE

# What a segmentor's code has, and no setting of it changes.
_NEEDED = {
    'authors': {'avg_down': False},
    'paddleseg': {'avg_down': True, 'contract_dilation': False, 'ceil_pool': False},
    'sssegmentation': {'avg_down': False, 'ceil_pool': False},
}
# Convolutions that have no bias in a layout. Zeros are the same: a normalisation follows.
_UNBIASED = {'sssegmentation': ('value', 'out')}
# Modules that pretraining puts behind a ResNet, for its own task.
PRETRAINING = {
    *('fc', 'head', 'classifier', 'linear', 'neck', 'mlp', 'last_layer', 'queue', 'queue_ptr', 'prototypes'),
    *('projection_head', 'projection', 'projector', 'predictor', 'prediction_head'),
}
# How the keys of a ResNet itself begin.
_BODY = r'(stem|prefix|conv\d|bn\d|layer\d|conv1_\d|bb_\d|embedder|encoder)'


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
        elif np.abs(array).max(initial=0) > (most := LARGEST_VARIANCE if path[-1] == 'var' else LARGEST):
            problems.append(f'{key}: holds numbers beyond {most:g}; the file is damaged')
        else:
            found[path] = np.ascontiguousarray(array, np.float32)
    for key in state.keys() - result.used.keys():
        reason = _ignored(key, state, layout, part)
        if reason:
            result.ignored[key] = reason
        else:
            problems.append(f'{key} {np.shape(state[key])}: no place for it')
    if problems:
        raise DataError(f'cannot convert it:{listed(problems) if len(problems) > 1 else " " + problems[0]}')
    result.variables = traverse_util.unflatten_dict(found)
    return result


def _ignored(key, state, layout, part):
    """Why a tensor may be left out, or None if it may not."""
    if key.endswith('.num_batches_tracked'):
        return 'step counter'
    if key in ('n_averaged', 'steps'):
        return 'counter of the moving average'
    if not layout.heads and key.removeprefix(layout.prefix).split('.')[0] in PRETRAINING:
        return 'head of the pretraining'
    if part == 'backbone' and not re.match(rf'{re.escape(layout.prefix)}{_BODY}', key):
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
    if model['decoder'] != 'none':
        raise DataError(
            f'no layout has a place for model.decoder={model["decoder"]}: --mode=export writes such a '
            'network as StableHLO, ONNX or LiteRT'
        )
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


# What the code of a layout always computes, whatever the file says; its config has the rest.
_ALWAYS: dict[str, dict[str, Any]] = {
    'mmsegmentation': {'ceil_pool': False},
    'authors': {'ceil_pool': True, 'align_corners': True, 'contract_dilation': True, 'sizes': (1, 3, 6, 8)},
    'sssegmentation': {'contract_dilation': True},
}


def differences_there(layout: str, model: Mapping[str, Any]) -> list[str]:
    """Settings of an exported network that the code of its layout does not have, one line each.

    The file is converted back to the same network, but that code would compute something else from it.
    """
    lines = [
        f'model.{key} is {model[key]}, but the code of {layout} always computes with {value}'
        for key, value in _ALWAYS.get(layout, {}).items()
        if model[key] != value
    ]
    if model['output_stride'] == 4 and layout != 'mmsegmentation':
        lines.append(f'the code of {layout} has no model.output_stride=4')
    if len(model['fuse_stages']) > 1:
        lines.append(f'the code of {layout} fuses one stage, not model.fuse_stages={model["fuse_stages"]}')
    widths = tuple(model['stem_widths'])
    if len(widths) > 1 and widths[:2] != (widths[2] // 2,) * 2:
        lines.append(f'the code of {layout} widens its stem only once, unlike model.stem_widths={widths}')
    return lines


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
