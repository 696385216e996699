"""Checks that weights are what they say: every array of the network once, in its shape, with usable numbers.

A checksum only shows that a file is what was written, which may be NaN, or the arrays of another network.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from ann_jax.data.decode.levels import Reading, channels_of
from ann_jax.errors import ConfigError, DataError, listed, refuse_others
from ann_jax.models.ann import ANN
from ann_jax.models.initializers import shape_variables
from ann_jax.models.resnet import ResNet
from ann_jax.models.settings import BACKBONE_FACTS, CHOICES, OF_BACKBONE, OF_HEAD, network, unknown_settings
from ann_jax.ranges import RANGES, out_of_range, shown
from ann_jax.weights.inputs import check_input

# Trained numbers are far smaller. Sums of thousands of products of such numbers with features are still far
# from 3e38, where float32 ends. Variances are squares.
LARGEST, LARGEST_VARIANCE = 1e8, 1e16
# Types of the entries of a model.json.
_TYPES = {
    'version': int,
    'sha256': str,
    'model': dict,
    'input': dict,
    'classes': list,
    'colors': list,
    'source': dict,
    'backbone': str,
    'images': dict,
}
_BIGGEST, _DEEPEST = 1 << 24, 32  # bytes and levels of a model.json
_FLAGS = {item.name for kind in (ResNet, ANN) for item in dataclasses.fields(kind) if item.type is bool}


def read_facts(file: Path, newest: int) -> dict[str, Any]:
    """Reads a model.json, and checks the types of its entries, unless it is of a version after `newest`.

    Raises:
        DataError: it is not JSON, or an entry is not of its type; the message names the file and the entry.
        OSError: it cannot be read.
    """
    with open(file, 'rb') as opened:
        raw = opened.read(_BIGGEST + 1)
    try:
        if len(raw) > _BIGGEST:
            raise ValueError(f'it is larger than {_BIGGEST} bytes')
        facts = json.loads(raw.decode('utf-8'))
        _refuse_depth([facts])
    except (ValueError, RecursionError) as error:
        raise DataError(
            f'{file.parent} is a damaged weights folder (model.json: {error}): move it away and create it '
            'again, or restore a copy'
        ) from error
    if not isinstance(facts, dict) or not {'version', 'sha256', 'model'} & facts.keys():
        raise DataError(f'{file} was not written by ann_jax: name a run or a weights folder')
    if type(facts.get('version')) is int and facts['version'] > newest:
        return facts
    for key, kind in _TYPES.items():
        if key in facts and (not isinstance(facts[key], kind) or isinstance(facts[key], bool)):
            raise _wrong(file, key, facts[key], f'of type {kind.__name__}')
    texts = {f'images.{name}': value for name, value in facts.get('images', {}).items()}
    texts['source.ann_jax'] = facts.get('source', {}).get('ann_jax', '')
    for name, value in texts.items():
        if not isinstance(value, str):
            raise _wrong(file, name, value, 'a text')
    for name in facts.get('model', {}):
        if '.' in name:
            raise DataError(f'{file}: model has a setting {shown(name)}, which is no name')
    for name in facts.get('classes', []):
        if not isinstance(name, str):
            raise _wrong(file, 'classes', name, 'texts')
    level = lambda n: isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= 255
    for color in facts.get('colors', []):
        if not (isinstance(color, list) and len(color) == 3 and all(map(level, color))):
            raise _wrong(file, 'colors', color, 'lists of three levels from 0 to 255')
    return facts


def _refuse_depth(value):
    level, depth = [value], 0
    while level:
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [item for each in inner for item in each if isinstance(item, dict | list)]
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f'it is nested more than {_DEEPEST} times')


def _wrong(file, key, value, rule):
    return DataError(f'{file}: {key}={shown(value)}: must be {rule}')


def check(
    where: Path,
    variables: Mapping[str, Any],
    *,
    model: Mapping[str, Any],
    input: Mapping[str, Any],
    classes: tuple[str, ...],
    colors: tuple,
    backbone: str,
    images: Mapping[str, str],
) -> None:
    """Checks weights; the arguments are the fields of `Weights`.

    Settings that this version does not know are left to `Weights.refuse_unknown`, and the arrays of a custom
    backbone to `check_network`, once it is given.

    Raises:
        DataError: settings or arrays cannot be right; the message names them and the place.
    """
    for key, value in model.items():
        name = f'model.{key}'
        if name in RANGES and (line := out_of_range(name, value)):
            raise DataError(f'{where}: {line}')
        if key in _FLAGS and not isinstance(value, bool):
            raise _wrong(where, name, value, 'true or false')
        kind = type(next(iter(CHOICES[key]))) if key in CHOICES else object
        if not isinstance(value, kind) or kind is int and isinstance(value, bool):
            raise _wrong(where, name, value, f'of type {kind.__name__}')
    try:
        bands = images.get('bands', '')
        Reading.parse(images.get('image_range', ''), bands)
        channels = channels_of(bands)
        if input.keys() >= {'mean', 'std', 'bgr'}:
            check_input(input, channels)
    except ConfigError as error:
        raise DataError(f'{where}: {error}') from error
    if len({*classes}) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise DataError(f'{where}: classes: {twice!r} appears twice')
    if len(colors) != len(classes):
        raise DataError(f'{where}: colors: there are {len(colors)} for {len(classes)} classes')

    flat = traverse_util.flatten_dict(dict(variables))
    outputs = np.shape(flat.get(('params', 'classifier', 'bias')))
    if classes and len(outputs) == 1 and outputs[0] != len(classes):
        raise DataError(
            f'{where}: names {len(classes)} classes, but params/classifier has {outputs[0]} outputs'
        )
    try:
        compared, expected = _comparable(flat, dict(model), len(classes), backbone, channels)
    except ConfigError as error:
        raise DataError(f'{where}: its network cannot be built: {error}') from error
    refuse_others(
        {path: np.shape(array) for path, array in flat.items() if compared(path)},
        expected,
        f'{where}: these are not the arrays of its network',
    )
    if lines := [line for path, array in flat.items() if (line := _unusable(path, array))]:
        raise DataError(f'{where}: these arrays cannot be weights:{listed(lines)}')


def check_network(where: Path, variables: Mapping[str, Any], model: ANN) -> None:
    """Checks that variables are exactly those of a network.

    Raises:
        DataError: names or shapes differ; the message lists them.
    """
    flat = traverse_util.flatten_dict(dict(variables))
    refuse_others(
        {path: np.shape(array) for path, array in flat.items()},
        {path: shape for path, shape in _shapes(model).items() if path[0] in ('params', 'batch_stats')},
        f'{where}: these are not the arrays of a network on {type(model.backbone).__name__}',
    )


@functools.lru_cache(16)
def _shapes(model):
    return {
        path: leaf.shape for path, leaf in traverse_util.flatten_dict(dict(shape_variables(model))).items()
    }


def _comparable(flat, model, classes, backbone, channels):
    """Which paths can be compared with a network, as a predicate, and the shapes that it has there."""
    of_backbone = lambda path: path[1:2] == ('backbone',)
    of_head, everything = lambda path: not of_backbone(path), lambda path: True
    some = lambda shapes, chosen: {path: shape for path, shape in shapes.items() if chosen(path)}
    whole = classes and not unknown_settings(model, OF_HEAD if backbone else OF_HEAD + OF_BACKBONE)
    if backbone:
        if whole:
            return of_head, some(_shapes(_on_stand_in(flat, model, classes, channels)), of_head)
    elif whole:
        return everything, _shapes(network(model, classes, in_channels=channels))
    else:
        known = {key: model[key] for key in BACKBONE_FACTS if key in model}
        if not unknown_settings(known, BACKBONE_FACTS):
            alone = ANN(1, ResNet(**known), variant='baseline', aux_channels=0, in_channels=channels)
            # A head of a newer version cannot be compared; a backbone alone has none.
            return of_backbone if classes else everything, some(_shapes(alone), of_backbone)
    return lambda path: False, {}


class _StandIn(nn.Module):
    """A backbone without variables, whose stages have the given channels."""

    channels: tuple[int, ...]

    def __call__(self, image, train):
        return [jnp.zeros((1, 5, 5, count)) for count in self.channels]


def _on_stand_in(flat, model, classes, channels):
    """The network on a backbone of which only the head is known, whose arrays show the stages' channels."""
    build = lambda stages: network(model, classes, _StandIn(stages), channels)
    trials = (11, 12, 13, 14), (21, 22, 23, 24)
    first, second = (_shapes(build(trial)) for trial in trials)
    found = dict.fromkeys(range(4), 1)
    for path in first.keys() & flat.keys():
        if np.ndim(flat[path]) == len(first[path]):
            for pair, length in zip(
                zip(first[path], second[path], strict=True), flat[path].shape, strict=True
            ):
                for stage, sizes in enumerate(zip(*trials, strict=True)):
                    if pair == sizes:  # this dimension follows the channels of that stage
                        found[stage] = length
    return build(tuple(max(found[stage], 1) for stage in range(4)))


def _unusable(path, array):
    """Why an array cannot be that of a trained network, in one line; '' if it can."""
    name = '/'.join(path)
    if array.dtype.kind != 'f':
        return f'{name}: holds {array.dtype}, not floats'
    if not array.size:
        return f'{name}: is empty'
    low, high = array.min(), array.max()
    of_variance = path[0] == 'batch_stats' and path[-1] == 'var'
    most = LARGEST_VARIANCE if of_variance else LARGEST
    if not np.isfinite([low, high]).all():  # NaN is both
        return f'{name}: holds numbers that are not finite'
    if of_variance and low < 0:
        return f'{name}: holds negative variances'
    return '' if -most <= low and high <= most else f'{name}: holds numbers beyond {most:g}'
