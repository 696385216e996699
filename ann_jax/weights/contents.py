"""What a checkpoint file holds: the tensors of its network, and what is said of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ann_jax.errors import DataError
from ann_jax.files import refuse_special
from ann_jax.weights.descriptions import read_beside
from ann_jax.weights.pickles import Unread
from ann_jax.weights.safetensors import metadata
from ann_jax.weights.state_dicts import find, module_cure
from ann_jax.weights.torch_files import read


class File(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        state: {key: array}, floats as float32, without wrappers and prefixes.
        meta: what is said of it, in the file and beside it.
        outside: keys that do not belong to the network.
        notes: what was taken off, and what else there is.
    """

    state: dict[str, np.ndarray]
    meta: dict[str, Any]
    outside: list[str]
    notes: list[str]


def read_state(path: Path) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    """The first two parts of `read_file`."""
    return read_file(path)[:2]


def read_file(path: Path, prefer: str | None = None) -> File:
    """Reads the state dict of a checkpoint, and what is said of it.

    Args:
        path: of the file.
        prefer: 'ema' for a moving average of the weights.

    Raises:
        DataError: no weights can be read from it.
    """
    refuse_special(path, 'weights')
    if not path.exists():
        raise DataError(f'{path}: no such file')
    content = read(path)
    if isinstance(content, Unread):
        raise DataError(f'{path}: {module_cure(content.name, str(path))}')
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DataError(f'{path}: holds a {type(content).__name__}, not a state dict of names and tensors')
    try:
        found = find(content, prefer, str(path))
    except DataError as error:
        raise DataError(f'{path}: {error}') from error
    state = {}
    for key, value in found.state.items():
        unusual = value.name if isinstance(value, Unread) and '._rebuild' in value.name else None
        if isinstance(value, np.ndarray) and value.dtype.kind == 'c':
            unusual = value.dtype
        if unusual:
            raise DataError(
                f'{path}: {key} is quantized, sparse or of an unusual type ({unusual}), which is not '
                'supported: save it as an ordinary tensor of float32'
            )
        if isinstance(value, np.ndarray):
            with np.errstate(over='ignore'):  # overflows are reported as infinite later, by name
                state[key] = value.astype(np.float32, copy=False) if value.dtype.kind == 'f' else value
    if not state:
        raise DataError(f'{path}: holds no tensors, only {", ".join(list(found.state)[:4]) or "nothing"}')
    meta = content.get('meta')
    said = metadata(path) | (meta if isinstance(meta, dict) else {}) | read_beside(path)
    return File(state, said, found.outside, found.notes)
