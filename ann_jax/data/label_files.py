"""Decodes labels of every kind to the values or colours that they hold.

Labels that cannot be used raise a `DataError` that names the file.
"""

import io
from typing import NamedTuple

import numpy as np

from ann_jax.data.decode import rasters, tiff
from ann_jax.data.decode.reading import (
    MAX_PIXELS,
    PNG,
    check_png,
    check_size,
    damaged,
    open_picture,
    optional,
    refuse_format,
)
from ann_jax.errors import DataError


class Raw(NamedTuple):
    """A label as it is stored."""

    values: np.ndarray  # (H, W) integers, or (H, W, 3) uint8 if it holds colours
    palette: np.ndarray | None = None  # (256, 3) int64: colours of the values, -1 where it has none
    lossy: str = ''  # the format, if it changes values


def decode_raw(
    data: bytes, where: object, variable: str | None = None, *, max_pixels: int = MAX_PIXELS
) -> Raw:
    """Decodes a label to its raw values.

    Palette PNGs give their indices, PNGs of fewer than 8 bits their values as stored; floats are read if all
    are whole numbers; alpha is dropped, unless nothing else tells pixels apart, which is refused.

    Args:
        data: content of the file: any image Pillow reads or, with `variable`, a MATLAB file.
        where: names the file in errors.
        variable: name of the matrix in a MATLAB file.
        max_pixels: larger labels are refused before they are decoded.

    Raises:
        DataError: it cannot be decoded, or is truncated or damaged; SciPy is missing.
    """
    if variable:
        return Raw(_decode_matlab(data, where, variable))
    check_png(data, where, 'label')  # Pillow decodes damaged ones, some to values of classes
    if (values := _deep_tiff(data, where, max_pixels)) is not None:
        return Raw(values)
    # Not OpenCV: it turns the indices of a palette PNG into colours.
    with open_picture(data, where, 'label', max_pixels) as image:
        pages = _pages(image)
        mode, lossy, deep = image.mode, _lossy(image, data), _deep(image, data)
        largest = _largest(image, data)
        palette = _palette(image) if mode in ('P', 'PA') else None
        # The indices of a GIF are in the order of its own palette, so that only its colours mean something.
        gif = image.format == 'GIF'
        raw = np.array(image.convert('RGB') if gif else image)
    if gif:
        mode, palette = 'RGB', None
        if (raw == raw[..., :1]).all():
            mode, raw = 'L', raw[..., 0]
    if pages > 1:
        raise DataError(f'label {where} holds {pages} pictures: save one, with a class per pixel')
    if largest and mode[0] in 'LI':  # Pillow has scaled it to all of 8 or 16 bits
        raw = np.rint(raw / (255 if mode == 'L' else 65535) * largest).astype(raw.dtype)
    if deep:
        raise DataError(
            f'label {where} holds 16 bits in each of several channels: save it as a greyscale PNG of class '
            'values, or with 8 bits per channel'
        )
    if mode in ('LA', 'PA', 'RGBA'):
        _refuse_alpha_alone(raw, where)
        raw = raw[..., 0] if mode in ('LA', 'PA') else raw[..., :3]
    if mode == 'F':
        raw = _whole_numbers(raw, where)
    if raw.dtype.kind not in 'bui' or mode not in ('RGB', 'RGBA') and raw.ndim != 2:
        raise DataError(
            f'label {where} holds neither class values nor colours ({mode}): save it as a greyscale or '
            'palette PNG of class values'
        )
    return Raw(raw.astype(np.uint8) if mode == '1' else raw, palette, lossy)


def _largest(image, data):
    """The largest value that an opened picture of few levels may hold; 0 where Pillow keeps values."""
    if data.startswith(PNG) and data[24] in (2, 4):  # but not of 1 bit
        return 2 ** data[24] - 1
    if image.format == 'TIFF' and len(image.getbands()) == 1 and image.tag_v2.get(258, (1,))[0] in (2, 4):
        return 2 ** image.tag_v2[258][0] - 1
    if image.format == 'PPM' and image.mode in ('L', 'I'):
        name, _, _, arguments = image.tile[0]
        return arguments[1] if 'ppm' in name and arguments[1] not in (255, 65535) else 0
    return 0


def _deep_tiff(data, where, max_pixels):
    """Values of a TIFF of one band that Pillow would change or refuse, such as unsigned 32 bits; or None."""
    found = tiff.directories(io.BytesIO(data)) if tiff.is_tiff(data) else None
    for directory in found or ():
        directory.refuse_missing(where, 'label')
        if directory.photometric == tiff.WHITE_IS_ZERO and 1 < directory.bits <= 8:
            raise DataError(
                f'label {where} stores white as zero, so that some programs read its values and others their '
                'complements: save it as a greyscale PNG of class values'
            )
    if not found or len(found) > 1 or found[0].samples > 1 or found[0].for_pillow:
        return None
    check_size(found[0].width, found[0].height, where, 'label', max_pixels)
    values = rasters.read_bands(data, found[0].number, where)[..., 0]
    return _whole_numbers(values, where) if values.dtype.kind == 'f' else values


def _refuse_alpha_alone(raw, where):
    """Refuses a label whose alpha alone tells pixels apart, because other labels have none to tell it by."""
    first = raw[:1, :1]
    if (raw[..., -1] != first[..., -1]).any() and (raw[..., :-1] == first[..., :-1]).all():
        color = ' '.join(map(str, first[0, 0, :-1].tolist()))
        raise DataError(
            f'label {where} is {color} all over, and only its alpha tells pixels apart: save the alpha of '
            'each label as a greyscale PNG, in Python with '
            "PIL.Image.open(old).convert('RGBA').getchannel('A').save(new)"
        )


def _whole_numbers(raw, where):
    """Floats as integers, as GIS programs write class values.

    Raises:
        DataError: some are no whole numbers.
    """
    whole = np.rint(raw)
    wrong = ~np.isfinite(raw) | (whole != raw) | (np.abs(whole) > 2**32)
    if wrong.any():
        raise DataError(
            f'label {where} holds floating-point numbers such as {raw[wrong][0]:g}, which are no class '
            'values: save it as a greyscale or palette PNG of class values'
        )
    return whole.astype(np.int64)


def _pages(image):
    """Number of pictures in an opened file, without smaller copies and masks of one."""
    count = getattr(image, 'n_frames', 1)
    if count == 1 or image.format != 'TIFF':
        return count
    pages = 0
    for i in range(count):
        image.seek(i)
        pages += not image.tag_v2.get(254, 0) & 5
    image.seek(0)
    return pages


def _lossy(image, data):
    """The name of the format of an opened picture if it changes values, else ''."""
    if image.format in ('JPEG', 'MPO'):
        return 'JPEG'
    if image.format == 'WEBP' and b'VP8 ' in data[:4096]:
        return 'lossy WebP'
    if image.format == 'TIFF' and 'jpeg' in str(image.info.get('compression')):
        return 'TIFF compressed as JPEG'
    return image.format if image.format in ('AVIF', 'JPEG2000') else ''


def _deep(image, data):
    """Whether several channels have more than 8 bits, of which Pillow keeps the upper 8."""
    if len(image.getbands()) == 1:
        return False
    if data.startswith(PNG):
        return data[24] == 16
    return image.format == 'TIFF' and max(image.tag_v2.get(258, (8,))) > 8


def _palette(image):
    colors = np.array(image.getpalette('RGB'), np.int64).reshape(-1, 3)
    return np.concatenate([colors, np.full((256 - len(colors), 3), -1)])


def _decode_matlab(data, where, variable):
    scipy_io = optional('scipy.io', where)
    refuse_format(data, where, 'label', but='a MATLAB file')
    name, _, field = variable.partition('.')
    try:
        found = scipy_io.loadmat(io.BytesIO(data), variable_names=[name])
    except NotImplementedError as e:
        raise DataError(
            f"cannot read the label {where}: it is of MATLAB v7.3; save it with save(..., '-v7')"
        ) from e
    except Exception as e:  # a damaged file can make SciPy raise anything
        raise damaged(where, 'label', e) from e
    try:
        raw = np.asarray(found[name])
        raw = raw[field][0, 0] if field else raw
    except (LookupError, ValueError) as e:
        raise DataError(
            f'cannot read the label {where}: it has no {variable}; use the label files of the dataset'
        ) from e
    if raw.ndim != 2 or raw.dtype.kind not in 'buif' or (raw != np.rint(raw)).any():
        raise DataError(
            f'cannot read the label {where}: {variable} is not a matrix of whole numbers; use the label '
            'files of the dataset'
        )
    return raw.astype(np.int64) if raw.dtype.kind == 'f' else raw
