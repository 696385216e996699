"""Decodes labels of every kind, and maps their values or colours to class indices.

Labels that cannot be used raise a `DataError` that names the file.
"""

import io

import cv2
import numpy as np

from ann_jax.data.classes import INVALID, Layout
from ann_jax.data.reading import open_picture, optional
from ann_jax.errors import DataError


def decode_raw(data: bytes, where: object, variable: str | None = None) -> np.ndarray:
    """Decodes a label to its raw values: (H, W) integers, or (H, W, 3) uint8 if it holds colours.

    Palette PNGs give their indices, PNGs of fewer than 8 bits their values as stored; alpha is dropped.

    Args:
        data: content of the file: any image Pillow reads or, with `variable`, a MATLAB file.
        where: names the file in errors.
        variable: name of the matrix in a MATLAB file.

    Raises:
        DataError: it cannot be decoded, or is truncated; SciPy is missing.
    """
    if variable:
        return _decode_matlab(data, where, variable)
    # Not OpenCV: it turns the indices of a palette PNG into colours.
    with open_picture(data, where, 'label') as image:
        mode, raw = image.mode, np.array(image)
    if mode == 'L' and data.startswith(b'\x89PNG') and data[24] in (2, 4):
        raw //= 255 // (2 ** data[24] - 1)  # Pillow scales 2- and 4-bit grey to 8 bits, but not 1-bit
    if mode in ('LA', 'PA'):
        raw = raw[..., 0]
    elif mode == 'RGBA':
        raw = raw[..., :3]
    if raw.dtype.kind not in 'bui' or mode not in ('RGB', 'RGBA') and raw.ndim != 2:
        raise DataError(
            f'label {where} holds neither class values nor colours ({mode}): save it as a greyscale or '
            'palette PNG of class values'
        )
    return raw


def _decode_matlab(data, where, variable):
    scipy_io = optional('scipy.io', where)
    try:
        name, _, field = variable.partition('.')
        raw = np.asarray(scipy_io.loadmat(io.BytesIO(data), variable_names=[name])[name])
        raw = raw[field][0, 0] if field else raw
        if raw.ndim != 2 or raw.dtype.kind not in 'bui' and (raw != np.rint(raw)).any():
            raise ValueError(f'{variable} is not a matrix of whole numbers')
        return raw.astype(np.int64) if raw.dtype.kind == 'f' else raw
    except Exception as e:  # a damaged file can make SciPy raise anything
        reason = f'it has no {variable}' if isinstance(e, KeyError) else e
        raise DataError(f'cannot read the label {where}: {reason}; copy or download the file again') from e


def map_label(raw: np.ndarray, layout: Layout, where: object, name: str) -> np.ndarray:
    """Maps raw values or colours to classes.

    Args:
        raw: (H, W) integers or (H, W, 3) uint8.
        layout: defines what raw values mean.
        where: names the file in errors.
        name: names the dataset in errors.

    Returns:
        (H, W) uint8: class index, or IGNORE.

    Raises:
        DataError: there are values or colours that the layout does not list.
    """
    if raw.ndim == 3:
        if not layout.color_map:
            raise DataError(
                f'label {where} holds colours (RGB), not class values: save it as a greyscale or palette PNG '
                'of class values'
            )
        return _map_colors(raw, layout.color_map, where, name)
    lut = layout.lut
    if raw.dtype == np.uint8:
        label = cv2.LUT(np.ascontiguousarray(raw), lut[:256])
    else:
        label = lut[np.where((raw >= 0) & (raw < len(lut)), raw, len(lut) - 1)]  # the last is INVALID
    wrong = label == INVALID
    if wrong.any():
        known = ', '.join(str(v) for v in np.flatnonzero(lut != INVALID)[:300])
        raise _unknown_values(raw[wrong], str, where, name, known)
    return label


def _map_colors(raw, color_map, where, name):
    one = np.array([1 << 16, 1 << 8, 1])  # a colour as one number
    known = np.array(list(color_map)) @ one
    order = np.argsort(known)
    codes = raw @ one
    place = np.searchsorted(known[order], codes).clip(max=len(known) - 1)
    wrong = known[order][place] != codes
    if wrong.any():
        show = lambda code: f'rgb({code >> 16}, {code >> 8 & 255}, {code & 255})'
        raise _unknown_values(codes[wrong], show, where, name, f'the {len(known)} colours of the classes')
    return np.array(list(color_map.values()), np.uint8)[order][place]


def _unknown_values(raw, show, where, name, known):
    values, pixels = np.unique(raw, return_counts=True)
    found = ', '.join(
        f'{show(v)} ({n} pixels)' for v, n in zip(values[:8].tolist(), pixels.tolist(), strict=False)
    )
    return DataError(
        f'label {where} holds values that are not {name} labels: {found}'
        f'{" and more" if len(values) > 8 else ""}; relabel them, or choose the dataset that has them. '
        f'Known: {known}'
    )
