"""What a checkpoint file holds: the tensors of its network, and what is said of them."""

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

# How the names of tensors of a network end.
_LEAVES = {'weight', 'bias', 'running_mean', 'running_var', '_mean', '_variance'}


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
        if problem := _problem(key, value):
            raise DataError(f'{path}: {key} {problem}')
        if isinstance(value, np.ndarray):
            with np.errstate(over='ignore'):  # overflows are reported as infinite later, by name
                state[key] = value.astype(np.float32, copy=False) if value.dtype.kind == 'f' else value
    if not state:
        raise DataError(f'{path}: holds no tensors, only {", ".join(list(found.state)[:4]) or "nothing"}')
    meta = content.get('meta')
    said = metadata(path) | (meta if isinstance(meta, dict) else {}) | read_beside(path)
    return File(state, said, found.outside, found.notes)


# How torch rebuilds tensors that are no plain arrays of floats, as parts of the names of its functions.
_UNUSUAL = {
    'meta_tensor': 'is a meta tensor, without numbers: save the network after its weights are loaded',
    'qtensor': 'is quantized: save the network as it was before, or the tensor after .dequantize()',
    'sparse': 'is a sparse tensor: save it after .to_dense()',
    'nested': 'is a nested tensor, of several shapes: no weights are',
}


def _problem(key, value):
    """Why a value of a state dict cannot be a tensor of weights, or ''; types of real numbers come later."""
    if isinstance(value, np.ndarray):
        return (
            'holds complex numbers: weights are real, as .real gives them' if value.dtype.kind == 'c' else ''
        )
    if isinstance(value, Unread) and 'rebuild' in value.name:
        for part, problem in _UNUSUAL.items():
            if part in value.name:
                return problem
        kind = value.name.rpartition(' of ')[2]
        return f'is of the type {kind}, which is not supported: save it after .float()'
    kind = value.name if isinstance(value, Unread) else type(value).__name__
    return f'is a {kind}, not a tensor' if key.rpartition('.')[2] in _LEAVES else ''
