"""Files of safetensors, read and written without the package.

The length of a header, the header (JSON: name -> dtype, shape, and where the numbers are), and the numbers.
Source: the README of safetensors.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from ann_jax.errors import DataError
from ann_jax.files import replacing

_KINDS = {
    'BF16': 'bfloat16',
    'BOOL': 'bool',
    **{f'F{bits}': f'float{bits}' for bits in (16, 32, 64)},
    **{f'I{bits}': f'int{bits}' for bits in (8, 16, 32, 64)},
    **{f'U{bits}': f'uint{bits}' for bits in (8, 16, 32, 64)},
}
_ALIGNED = 8  # bytes, of the header


def read(file: BinaryIO) -> dict[str, np.ndarray]:
    """Reads all tensors; bfloat16 is widened to float32.

    Raises:
        DataError: a tensor has an unusual type.
        Exception: of any kind, if the file is damaged.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), 'little')
    if length > size - 8:
        raise ValueError(f'its header has {length} bytes, the file {size}')
    header = json.loads(file.read(length))
    header.pop('__metadata__', None)
    tensors, at = {}, 0
    for key, facts in sorted(header.items(), key=lambda item: item[1]['data_offsets']):
        (begin, end), shape, kind = facts['data_offsets'], facts['shape'], _KINDS.get(facts['dtype'])
        if kind is None:
            raise DataError(f'{key} has the type {facts["dtype"]}, which is not supported: save it as F32')
        if not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError(f'{key} has the shape {shape}')
        count = math.prod(shape)
        if begin != at or end - begin != count * item_size(kind):
            raise ValueError(f'{key} is at {begin} to {end}, which does not match its shape and the file')
        tensors[key], at = numbers_of(file.read(end - begin), kind, count, '<').reshape(shape), end
    if at != size - 8 - length:
        raise ValueError(f'its tensors have {at} bytes, the file {size - 8 - length}')
    return tensors


def metadata(path: Path) -> dict[str, str]:
    """What a file of safetensors, which can be read, says beside its tensors; {} for other files."""
    with open(path, 'rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        if file.read(1) != b'{':
            return {}
        said = json.loads(b'{' + file.read(length - 1)).get('__metadata__')
    return said if isinstance(said, dict) else {}


def write(path: Path, tensors: Mapping[str, np.ndarray], said: Mapping[str, str] | None = None) -> None:
    """Writes a file.

    Args:
        path: of the file.
        tensors: name -> array of a type that the format knows.
        said: texts by name, which `metadata` returns.

    Raises:
        SaveError: it cannot be written.
    """
    names = {np.dtype(kind): name for name, kind in _KINDS.items() if kind != 'bfloat16'}
    header: dict[str, Any] = {'__metadata__': {'format': 'pt', **(said or {})}}
    at = 0
    for key, array in tensors.items():
        end = at + array.nbytes
        header[key] = {'dtype': names[array.dtype], 'shape': list(array.shape), 'data_offsets': [at, end]}
        at = end
    raw = json.dumps(header, separators=(',', ':')).encode()
    raw += b' ' * (-len(raw) % _ALIGNED)
    with replacing(path) as draft, open(draft, 'wb') as file:
        file.write(len(raw).to_bytes(8, 'little') + raw)
        for array in tensors.values():
            little = array.astype(array.dtype.newbyteorder('little'), copy=False)
            file.write(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)


def item_size(kind: str) -> int:
    """Bytes of a number."""
    return 2 if kind == 'bfloat16' else np.dtype(kind).itemsize


def numbers_of(raw: bytes, kind: str, count: int, order: Literal['<', '>']) -> np.ndarray:
    """(count,) numbers in native byte order; bfloat16 as float32."""
    dtype = np.dtype('uint16' if kind == 'bfloat16' else kind)
    numbers = np.frombuffer(raw, dtype.newbyteorder(order), count).astype(dtype, copy=False)
    return (numbers.astype(np.uint32) << 16).view(np.float32) if kind == 'bfloat16' else numbers
