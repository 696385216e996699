"""What the scores of an evaluation depend on: only scores of the same settings are compared."""

import json
import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ann_jax.runs.history import flat
from ann_jax.typing import Source

# Settings of the dataset that change no score: where it lies, what is trained on, and what weights determine.
_NOT_SCORED = (
    'root', 'format', 'train_split', 'repeat_threshold', 'scenes.train_count', 'max_pixels', 'page', 'bands',
    'image_range', 'stand_in',
)  # fmt: skip


def protocol_settings(config: ConfigDict) -> dict[str, Any]:
    """How an evaluation makes its scores."""
    c = config.eval
    names = ('scales', 'flip', 'crop', 'stride', 'average', 'limit')
    return {name: c[name] for name in names} | {'dtype': config.model.dtype}


def describe_source(source: Source) -> str:
    """A source of the caller's own, which no setting describes: the name of its dataset, and its length."""
    return f'{source.dataset.name} x {len(source)}'


def scored_data(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the flat settings of `config.dataset` on which scores depend, wherever the dataset lies."""
    drawn = 'scenes' in (settings['name'], settings['stand_in'])
    name = lambda value: os.path.basename(value) if os.path.isabs(str(value)) else value
    return {
        key: name(value)
        for key, value in settings.items()
        if key not in _NOT_SCORED and (drawn or not key.startswith('scenes.'))
    }


def scored_how(config: ConfigDict) -> str:
    """How an evaluation makes its scores, and of what, as a text: scores of one text can be compared."""
    data = scored_data(flat(config.dataset.to_dict()))
    return json.dumps(protocol_settings(config) | data, sort_keys=True)
