"""From a torch state dict to `Weights`, with all that is known of them."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ann_jax.data.classes import DATASETS
from ann_jax.data.names import voc_colors
from ann_jax.errors import ConfigError, unknown
from ann_jax.models.ann import ANN
from ann_jax.models.initializers import shape_variables
from ann_jax.models.resnet import ResNet
from ann_jax.models.settings import network
from ann_jax.weights.folder import BACKBONE_FACTS, Weights
from ann_jax.weights.layouts import Conversion, State, from_torch
from ann_jax.weights.recognize import read_meta, recognize


class Converted(NamedTuple):
    """Weights, what became of every tensor, and what was assumed of them, for people to read."""

    weights: Weights
    conversion: Conversion
    notes: list[str]


def convert(
    state: State,
    meta: Mapping[str, Any],
    *,
    name: str,
    part: str = 'all',
    classes: str | None = None,
    align_corners: bool | None = None,
    output_stride: int = 8,
    source: Mapping[str, Any] | None = None,
) -> Converted:
    """Converts a state dict whose layout is told by its keys.

    Args:
        state: torch keys, without `module.`, and NumPy tensors in torch's layout (OIHW).
        meta: what mmsegmentation writes beside them, or nothing.
        name: of the file, which may tell the size of the crops of training.
        part: 'all', or 'backbone' to leave the heads out.
        classes: dataset whose class names the classifier has.
        align_corners: of the resizing of the logits; None for what the file says.
        output_stride: of a whole ANN.
        source: where the weights come from.

    Raises:
        DataError: the keys are those of no known network, or a tensor has no place.
        ConfigError: the classes are unknown, or not as many as the classifier has.
    """
    found = recognize(state)
    whole = bool(found.layout.heads) and part == 'all'
    if found.layout.heads:
        model = network(found.model, found.num_classes)
    else:
        model = ANN(1, ResNet(**found.model), 'baseline')
    target = shape_variables(model)
    if not whole:
        target = {group: {'backbone': tree['backbone']} for group, tree in target.items()}
    conversion = from_torch(state, target, found.layout, part)

    facts = read_meta(meta)
    settings = found.model if whole else {key: found.model[key] for key in BACKBONE_FACTS}
    notes, named = [], {}
    if whole:
        settings = {**settings, 'output_stride': output_stride}
        settings['sizes'] = facts.get('sizes', settings['sizes'])
        settings['align_corners'] = _align_corners(align_corners, name, facts, settings, notes)
        named = _classes(classes, facts, found.num_classes, notes)
    weights = Weights(
        variables=conversion.variables,
        model=settings,
        input={key: facts.get(key, value) for key, value in found.input.items()},
        **named,
        source={**(source or {}), 'layout': found.layout.describe()},
    )
    return Converted(weights, conversion, notes)


def _align_corners(given, name, facts, settings, notes):
    if given is not None:
        return given
    if 'align_corners' in facts:
        return facts['align_corners']
    if re.search(r'(769|713)x\1', name):
        notes.append('align_corners is true: the name of the file says 769x769')
        return True
    if not settings['ceil_pool']:
        notes.append(
            "align_corners is false, mmsegmentation's default, as the file does not say; its configs for "
            'crops of 769x769 have true: then convert again with --align-corners=true'
        )
    return settings['align_corners']


def _classes(given, facts, count, notes):
    if given:
        if given not in DATASETS:
            raise ConfigError(unknown('dataset', given, DATASETS))
        names, colors = DATASETS[given].classes, DATASETS[given].colors
    else:
        names, colors = facts.get('classes'), facts.get('colors')
        if not names:
            names = [f'class {i}' for i in range(count)]
            notes.append('the file does not name its classes: --classes=DATASET does')
    if len(names) != count:
        raise ConfigError(f'the classifier has {count} classes, but {len(names)} names are given')
    if not colors or len(colors) != count:
        colors = voc_colors(count)
    return {'classes': tuple(names), 'colors': tuple(map(tuple, colors))}
