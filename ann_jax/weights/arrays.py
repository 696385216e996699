"""Reads the arrays of a weights folder; no pickle is opened, and sizes are checked before unpacking."""

import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from ann_jax.errors import DataError
from ann_jax.ranges import shown
from ann_jax.weights.torch_files import read

_UNPACKED = 4  # times its size, the most that an npz may hold
_DEEPEST = 32  # parts of the name of a variable


def read_variables(path: Path) -> dict[str, Any]:
    """Reads the arrays of a weights folder as variables, floats as float32.

    Args:
        path: weights.safetensors, or weights.npz of early versions.

    Raises:
        DataError: the file is damaged, unpacks to much more than its size, or holds other things than arrays,
            an array twice, or one that is no variable.
        OSError: it cannot be read.
    """
    arrays = read(path) if path.suffix == '.safetensors' else _read_npz(path)
    names = {tuple(name.split('/')): name for name in arrays}
    for parts, name in names.items():
        if parts[0] not in ('params', 'batch_stats') or not 3 <= len(parts) <= _DEEPEST or not all(parts):
            raise DataError(f'{path}: holds an array {shown(name)}, which is no variable of a network')
        if beneath := next((parts[:n] for n in range(1, len(parts)) if parts[:n] in names), None):
            raise DataError(f'{path}: holds an array {shown("/".join(beneath))} and also {shown(name)}')
    with np.errstate(over='ignore'):  # infinite numbers are refused later, by name
        flat = {
            parts: arrays[name].astype(np.float32, copy=False)
            if arrays[name].dtype.kind == 'f'
            else arrays[name]
            for parts, name in names.items()
        }
    return traverse_util.unflatten_dict(flat)


def _read_npz(path):
    """The arrays of an archive; its sizes are checked before anything is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        twice = [name for name, count in Counter(entry.filename for entry in entries).items() if count > 1]
        if twice:
            raise DataError(f'{path}: holds {shown(twice[0])} more than once')
        if others := [entry.filename for entry in entries if not entry.filename.endswith('.npy')]:
            raise DataError(f'{path}: holds {shown(others[0])}, which is no array')
        # Weights hardly shrink.
        size, most = sum(entry.file_size for entry in entries), _UNPACKED * path.stat().st_size
        if size > most:
            raise DataError(f'{path}: unpacks to {size} bytes, more than {_UNPACKED} times its own')
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (DataError, OSError):
        raise
    except Exception as error:  # a damaged archive can raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f'{path}: is not a complete npz file ({reason}): get it again') from error
