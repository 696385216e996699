"""Reads files of tensors as NumPy arrays, without their packages and without running code.

Since torch 1.6, a .pth file is a zip archive: ROOT/data.pkl describes the tree and names its storages, which
are in ROOT/data/KEY as raw numbers. Before, it was a sequence: pickles of a magic number, a version, details
of the machine, the tree, and the keys of the storages, followed by their numbers. A .pdparams file of Paddle
is one pickle, of a dict of NumPy arrays.

Source: torch/serialization.py.
"""

import io
import math
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ann_jax.errors import DataError
from ann_jax.weights import safetensors
from ann_jax.weights.formats import BEGIN, format_of
from ann_jax.weights.pickles import Budget, Unread, load
from ann_jax.weights.safetensors import item_size, numbers_of

ENDINGS = ('.pth', '.pt', '.bin', '.ckpt', '.tar', '.safetensors', '.pdparams')

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
# Names of torch's storage classes, without 'Storage' -> dtypes.
_STORAGES = {
    'Double': 'float64',
    'Float': 'float32',
    'Half': 'float16',
    'BFloat16': 'bfloat16',
    'Long': 'int64',
    'Int': 'int32',
    'Short': 'int16',
    'Char': 'int8',
    'Byte': 'uint8',
    'Bool': 'bool',
    'ComplexFloat': 'complex64',
    'ComplexDouble': 'complex128',
    'Untyped': 'uint8',
}
# dtypes without such a class: their tensors are stored as bytes.
_UNTYPED = ('uint16', 'uint32', 'uint64')


def read(path: Path) -> Any:
    """Reads a file of tensors.

    Returns:
        What was saved, in plain containers. Tensors and parameters are NumPy arrays of their dtype, bfloat16
        widened to float32. Objects of other classes, and tensors that are not plain arrays (sparse,
        quantized, without data), are `Unread`.

    Raises:
        DataError: the file is damaged, of another format, or names something that could run arbitrary code.
    """
    kind = 'torch'
    try:
        with open(path, 'rb') as file:
            begin = file.read(BEGIN)
            file.seek(0)
            kind = format_of(begin, path.suffix)
            return {'torch': _torch, 'safetensors': safetensors.read, 'Paddle': _paddle}[kind](file)
    except DataError as error:
        raise DataError(f'{path}: {error}') from error
    except Exception as error:  # a damaged file can raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f'{path}: is not a complete {kind} file ({reason}): get it again') from error


def _paddle(file):
    return load(file, Budget(os.fstat(file.fileno()).st_size))


def _torch(file):
    budget = Budget(os.fstat(file.fileno()).st_size)
    begin = file.read(BEGIN)
    file.seek(0)
    if begin[257:262] == b'ustar':
        _refuse_tar(file)
    return (_archive if begin.startswith(b'PK\x03\x04') else _legacy)(file, budget)


def _refuse_tar(file):
    with tarfile.TarFile(fileobj=file) as archive:
        names = archive.getnames()
    if not {'storages', 'tensors', 'pickle'} <= set(names):
        raise DataError(
            f'is a tar archive ({", ".join(names[:3])}, ...): unpack it, and convert what it holds'
        )
    out = file.name.rpartition('.')[0] + '_state.pth'
    raise DataError(
        'is of the tar form of early torch: with torch, if you trust it, run python -c "import torch; '
        f'torch.save(torch.load({file.name!r}, weights_only=False), {out!r})"'
    )


def _archive(file, budget):
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        budget.spend(sum(entry.file_size for entry in entries))
        if (bad := archive.testzip()) is not None:
            raise DataError(f'is damaged (checksum of {bad}): get it again')
        root = entries[0].filename.split('/')[0]
        if f'{root}/data.pkl' not in archive.namelist():
            held = ', '.join(entry.filename for entry in entries[:3])
            raise DataError(
                f'is a zip archive that torch did not write ({held}, ...): unpack it, and convert a file of '
                'torch or safetensors'
            )
        byteorder = f'{root}/byteorder'
        order: Literal['<', '>'] = (
            '>' if byteorder in archive.namelist() and archive.read(byteorder) == b'big' else '<'
        )
        storages = {}

        def persistent(pid):
            _, storage, key, _, count = pid
            kind = _kind(storage)
            if kind is None:
                return storage
            _check_key(key)
            if (key, kind) not in storages:
                raw = archive.read(f'{root}/data/{key}')
                budget.spend(len(raw))
                storages[key, kind] = numbers_of(raw, kind, count, order)
            return storages[key, kind]

        pickled = io.BytesIO(archive.read(f'{root}/data.pkl'))
        return load(pickled, budget, _rebuilders(budget, order), persistent)


def _legacy(file, budget):
    first = load(file, budget)
    if isinstance(first, dict):  # a plain pickle, as Paddle's
        return first
    if first != _MAGIC or load(file, budget) != _VERSION:
        raise ValueError('it does not begin like one')
    load(file, budget)  # details of the machine; numbers are always little-endian
    storages = {}

    def persistent(pid):
        if pid[0] == 'module':  # a class, with its source
            return pid[1]
        _, storage, key, _, count, view = pid
        kind = _kind(storage)
        if kind is None or view is not None:
            raise DataError(f'holds a {storage.name}, which is not supported: save it as tensors of float32')
        _check_key(key)
        if key not in storages:
            budget.spend(count * item_size(kind))
            # The numbers come later in the file.
            storages[key] = kind, np.empty(count, 'float32' if kind == 'bfloat16' else kind)
        if storages[key][0] != kind:
            raise ValueError(f'the storage {key} has two types')
        return storages[key][1]

    tree = load(file, budget, _rebuilders(budget, '<'), persistent)
    for key in load(file, budget):
        _check_key(key)
        kind, numbers = storages.pop(key)
        count = int.from_bytes(file.read(8), 'little')
        if count != len(numbers):
            raise ValueError(f'the storage {key} has {count} numbers, not {len(numbers)}')
        numbers[:] = numbers_of(file.read(count * item_size(kind)), kind, count, '<')
    if storages:
        raise ValueError(f'{len(storages)} storages are missing')
    return tree


def _check_key(key):
    """Refuses keys that cannot be hashed, or are nested too deeply for it."""
    if not isinstance(key, str):
        raise ValueError(f'a storage has a {type(key).__name__} as its key')


def _kind(storage):
    """The dtype of a storage class; None if it is not supported."""
    module, _, name = storage.name.rpartition('.')
    return _STORAGES.get(name.removesuffix('Storage')) if module.split('.')[0] == 'torch' else None


def _rebuilders(budget, order):
    """The functions that torch's pickles call."""

    def tensor(storage, offset, size, stride, _grad=None, _hooks=None, views=None, *_):
        if isinstance(storage, Unread):
            return Unread(f'torch._utils._rebuild_tensor of {storage.name}')
        if len(size) != len(stride) or not all(
            isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)
        ):
            raise ValueError(f'a tensor has the shape {size}, strides {stride} and offset {offset}')
        try:
            budget.spend(math.prod(size))
        except ValueError as error:
            if math.prod(size) <= len(storage):
                raise
            raise DataError(
                f'a tensor of shape {tuple(size)} is expanded from {len(storage)} numbers, and claims far '
                'more memory than the file has bytes: save it after .contiguous()'
            ) from error
        if 0 in size:
            return np.empty(size, storage.dtype)
        if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= len(storage):
            raise ValueError(f'a tensor of shape {size} reaches beyond its {len(storage)} numbers')
        strides = [step * storage.itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
        array = np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)
        # Views of torch whose numbers differ from those that are stored.
        array = array.conj() if isinstance(views, dict) and views.get('conj') is True else array
        return -array if isinstance(views, dict) and views.get('neg') is True else array

    def typed_tensor(storage, offset, size, stride, _grad, _hooks, dtype, *_):
        kind = dtype.name.removeprefix('torch.')
        if kind not in _UNTYPED or order == '>':
            return Unread(f'torch._utils._rebuild_tensor of {dtype.name}')
        return tensor(storage.view(kind), offset, size, stride)

    def of_subclass(function, _type, arguments, _state):
        return made[function.name](*arguments) if function.name in made else Unread(function.name)

    made: dict[str, Callable[..., Any]] = {
        'torch.Size': lambda size=(): size,
        'torch._utils._rebuild_tensor': tensor,
        'torch._utils._rebuild_tensor_v2': tensor,
        'torch._utils._rebuild_tensor_v3': typed_tensor,
        'torch._utils._rebuild_parameter': lambda data, *_: data,
        'torch._utils._rebuild_parameter_with_state': lambda data, *_: data,
        'torch._tensor._rebuild_from_type_v2': of_subclass,
    }
    return made
