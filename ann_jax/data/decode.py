"""Decodes files: images of every kind to RGB, labels of every kind to class indices.

Bytes that cannot be decoded raise a `DataError` that names the file.
"""

import io
import os
import re
import struct
import tempfile
import threading
import zlib

import cv2
import numpy as np
from PIL import Image, ImageOps

from ann_jax.data.classes import INVALID, Layout
from ann_jax.data.reading import optional
from ann_jax.errors import DataError

# Several threads read samples at once; OpenCV's own threads would compete with them for the cores.
cv2.setNumThreads(0)

_ERROR_STREAM = threading.Lock()
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    Image.DecompressionBombError,
    cv2.error,
    struct.error,
    zlib.error,
)


def decode_image(data: bytes, where: object, *, upright: bool = True) -> np.ndarray:
    """Returns an encoded image as (H, W, 3) uint8 RGB.

    Grey becomes three equal channels, palettes their colours, 16 bits their upper 8; alpha is dropped.

    Args:
        data: content of the file.
        where: names the file in errors.
        upright: apply the EXIF orientation; otherwise the image is returned as stored.

    Raises:
        DataError: it cannot be decoded, or is truncated.
    """
    try:
        # OpenCV is faster, but imread, and imdecode in some releases, fill the missing part of a truncated
        # JPEG with grey. So it only gets files with a proper end; Pillow, which raises, gets the rest.
        if data.endswith((b'\xff\xd9', b'IEND\xaeB`\x82')):
            flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
            if image is not None:
                return image
        with Image.open(io.BytesIO(data)) as opened:
            return to_rgb(opened, upright)
    except _DECODER_ERRORS as e:
        raise DataError(
            f'cannot read the image {where}: {_reason(e)}; copy or download the file again'
        ) from e


def to_rgb(image: Image.Image, upright: bool = True) -> np.ndarray:
    """Returns a Pillow image as (H, W, 3) uint8 RGB; see `decode_image`."""
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith('I'):  # Pillow would clip 16 bits at 255
        grey = (np.array(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, -1)
    return np.array(image.convert('RGB'))


def examine_jpeg(data: bytes, where: object) -> None:
    """Refuses a JPEG with missing or corrupt data in the middle, which decoders accept without an error.

    Finds what libjpeg reports: most gaps and overwritten parts, but only one flipped bit in six, because
    almost any sequence of bits decodes to some picture. Other formats pass. Runs in one thread at a time.

    Raises:
        DataError: libjpeg reports corrupt data.
    """
    if not data.startswith(b'\xff\xd8'):
        return
    # libjpeg reports it on the stderr of the process, and nowhere else.
    with _ERROR_STREAM, tempfile.TemporaryFile() as said:
        kept = os.dup(2)
        try:
            os.dup2(said.fileno(), 2)
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        said.seek(0)
        lines = said.read().decode(errors='replace').splitlines()
    for line in lines:
        if 'Corrupt JPEG' in line or 'Premature end of JPEG' in line:
            raise DataError(f'the image {where} is damaged ({line.strip()}): copy or download the file again')


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
    try:
        # Not OpenCV: it turns the indices of a palette PNG into colours.
        with Image.open(io.BytesIO(data)) as image:
            mode, raw = image.mode, np.array(image)
    except _DECODER_ERRORS as e:
        raise DataError(
            f'cannot read the label {where}: {_reason(e)}; copy or download the file again'
        ) from e
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


def match(data: bytes, label: np.ndarray, where: object, label_where: object) -> np.ndarray:
    """Decodes an image in the orientation that fits its label.

    Labels are usually drawn on the upright image, with the EXIF orientation applied. Tools that ignore EXIF
    draw on the stored one: if only that has the label's size, it is returned.

    Args:
        data: content of the image file.
        label: (H, W).
        where: names the image in errors.
        label_where: names the label in errors.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        DataError: the image cannot be decoded, or has another size.
    """
    image = decode_image(data, where)
    if image.shape[:2] != label.shape and image.shape[1::-1] == label.shape:
        stored = decode_image(data, where, upright=False)
        image = stored if stored.shape[:2] == label.shape else image
    if image.shape[:2] != label.shape:
        (h, w), (lh, lw) = image.shape[:2], label.shape
        raise DataError(
            f'{where} is {w}x{h} but its label {label_where} is {lw}x{lh}: make them the same size'
        )
    return image


def encode_png(array: np.ndarray) -> bytes:
    """Encodes (H, W, 3) uint8 RGB or (H, W) uint8 as a PNG."""
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    return cv2.imencode('.png', array)[1].tobytes()


def _reason(error):
    # Pillow names the buffer it was given, which means nothing to the user.
    return re.sub(r' <_io\.BytesIO[^>]*>', '', str(error))
