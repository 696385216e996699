"""Arrays, lists and frames that a segmenter gets."""

import numpy as np
from PIL import Image

OTHER_TYPES = [
    'int8', 'uint16', 'int32', 'int64', 'float16', 'float32', 'float64', 'bool', 'complex64', 'object', 'U3',
    'datetime64[s]',
]  # fmt: skip
WRAPS = (
    'numpy', 'torch', 'jax', 'list', 'nested', 'masked', 'readonly', 'strided', 'fortran',
    'matrix', 'swapped',
    'memory', 'pillow', 'tuple', 'generator', 'record',
)  # fmt: skip


def draw(segmenter, rng, folder):
    """An array of any shape and type, in any wrapping."""
    channels = int(rng.choice([0, 1, 2, 3, 3, 3, 4, 5]))
    shape = [int(rng.integers(1, 60)), int(rng.integers(1, 60)), *([channels] if channels else [])]
    if rng.random() < 0.15:
        shape = [int(n) for n in rng.integers(0, 9, rng.integers(0, 6))]
    if rng.random() < 0.1:
        shape.insert(0, int(rng.integers(0, 3)))
    values = rng.integers(0, 256, shape)
    kind = str(rng.choice(['uint8'] * 6 + OTHER_TYPES))
    array = values.astype(kind)
    if array.dtype.kind == 'f' and array.size and rng.random() < 0.5:
        array.flat[0] = rng.choice([np.nan, np.inf, -1.0, 1e9])
    wrap = WRAPS[rng.integers(len(WRAPS))]
    return f'{wrap} {kind} {tuple(shape)}', lambda: segmented(segmenter, wrap, array)


def segmented(segmenter, wrap, array):
    try:
        given = wrapped(wrap, array)
    except (TypeError, ValueError, RuntimeError, AttributeError, OverflowError, IndexError):
        return ''  # that library has no such array
    before = array.tobytes() if array.dtype != object else b''
    result = segmenter(given)
    several = isinstance(result, list)
    if before and array.tobytes() != before:
        return 'the array was changed'
    if wrap == 'matrix':  # which drops axes of 1
        array = np.asarray(given)
    if wrap == 'masked' and np.ma.is_masked(given):
        return 'masked pixels were segmented'
    if wrap in ('list', 'tuple', 'generator') or (wrap != 'nested' and array.ndim == 4):
        if not several:
            return 'one result for several images'
        parts = [array] if wrap in ('list', 'tuple', 'generator') and array.ndim < 4 else list(array)
    elif isinstance(given, list) and not given:
        parts = []
    else:
        if several:
            return f'{len(result)} results for one image'
        result, parts = [result], [array]
    if len(result) != len(parts):
        return f'{len(result)} results for {len(parts)} images'
    for one, part in zip(result, parts, strict=True):
        expected = rgb(part)
        if expected is None:
            return f'{part.dtype} {part.shape} was segmented'
        if not np.array_equal(one.image, expected):
            return 'another image was segmented'
        if not np.array_equal(one.ids, segmenter(expected).ids):
            return 'other classes than those of the plain image'
    return ''


def rgb(array):
    """The image that an array means, by definition; None if it means none."""
    if array.dtype != np.uint8 and array.dtype != bool or array.ndim not in (2, 3) or not array.size:
        return None
    array = array[..., None] if array.ndim == 2 else array
    if array.shape[2] not in (1, 2, 3, 4):
        return None
    array = array.astype(np.uint8) * np.uint8(255) if array.dtype == bool else array
    return array[..., :3] if array.shape[2] > 2 else np.repeat(array[..., :1], 3, 2)


def wrapped(wrap, array):
    if wrap == 'torch':
        import torch

        return torch.tensor(array)
    if wrap == 'jax':
        import jax.numpy as jnp

        return jnp.asarray(array)
    if wrap in ('list', 'tuple', 'generator'):
        items = [array] if array.ndim < 4 else list(array)
        return {'list': items, 'tuple': tuple(items), 'generator': (x for x in items)}[wrap]
    if wrap == 'nested':
        return array.tolist()
    if wrap == 'masked':  # refused, unless nothing is masked
        return np.ma.masked_array(array, np.arange(array.size).reshape(array.shape) % 7 == 0)
    if wrap == 'readonly':
        array = array.copy()
        array.flags.writeable = False
    elif wrap == 'strided':
        array = np.repeat(array, 2, 0)[::2]
    elif wrap == 'fortran':
        array = np.asfortranarray(array)
    elif wrap == 'matrix':
        return np.matrix(array)
    elif wrap == 'swapped':
        array = array.astype(array.dtype.newbyteorder())
    elif wrap == 'memory':
        return memoryview(np.ascontiguousarray(array))
    elif wrap == 'pillow':
        return Image.fromarray(array)
    elif wrap == 'record':
        return array.view([('x', array.dtype)])
    return array
