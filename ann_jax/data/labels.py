"""Decodes labels of every kind, and maps their values or colours to class indices.

Labels that cannot be used raise a `DataError` that names the file.
"""

import io
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from ann_jax.data import rasters, tiff
from ann_jax.data import unknown_labels as unknown
from ann_jax.data.classes import INVALID, Layout
from ann_jax.data.reading import (
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
from ann_jax.typing import IGNORE


class Raw(NamedTuple):
    """A label as it is stored."""

    values: np.ndarray  # (H, W) integers, or (H, W, 3) uint8 if it holds colours
    palette: np.ndarray | None = None  # (256, 3) int64: colours of the values, -1 where it has none
    lossy: str = ''  # the format, if it changes values


class Label(NamedTuple):
    """A label and how it was read."""

    classes: np.ndarray  # (H, W) uint8: class index, or IGNORE
    by_color: bool = False
    raw: Raw | None = None  # None: it is not a file of its own

    @property
    def lossy(self) -> str:
        """The format, if it changes values."""
        return self.raw.lossy if self.raw else ''

    def palette(self) -> dict[int, int]:
        """Value -> 0xRRGGBB of the values in the label, if it has a palette of which the values count."""
        if self.raw is None or self.raw.palette is None or self.by_color:
            return {}
        used = np.flatnonzero(count_bytes(self.raw.values))
        return dict(zip(used.tolist(), (self.raw.palette[used] @ _ONE).tolist(), strict=True))

    def black(self) -> int:
        """Number of black pixels, if colours count."""
        if self.raw is None or not self.by_color:
            return 0
        values, palette, _ = self.raw
        if values.ndim == 3:
            return int(np.count_nonzero(~values.any(-1)))
        zero = np.arange(256) == 0 if palette is None else ~palette.any(1)
        return int(count_bytes(values)[zero].sum())


def count_bytes(values: np.ndarray) -> np.ndarray:
    """Counts each value of (H, W) uint8: (256,) int64."""
    if values.size < _EXACT:
        counts = cv2.calcHist([np.ascontiguousarray(values)], [0], None, [256], [0, 256])
        return counts.ravel().astype(np.int64)
    return np.array(Image.fromarray(values).histogram(), np.int64)


def decode_label(
    data: bytes, layout: Layout, where: object, name: str, *, max_pixels: int = MAX_PIXELS
) -> Label:
    """Decodes a label and maps it to classes.

    Args:
        data: content of the file.
        layout: defines what values and colours mean.
        where: names the file in errors.
        name: names the dataset in errors.
        max_pixels: larger labels are refused before they are decoded.

    Raises:
        DataError: see `decode_raw` and `map_label`, or the format changes values.
    """
    raw = decode_raw(data, where, layout.variable, max_pixels=max_pixels)
    if raw.lossy and not (layout.own and layout.own.coarse):
        cure = '; a black and white mask can be read with --config.dataset.label_map=0-127:0,128-255:1'
        raise DataError(
            f'label {where} is a {raw.lossy}, which can change values, mostly at edges: save labels as PNG, '
            f'not from this file but from what it was made of{cure if layout.own else ""}'
        )
    classes, by_color = _map(raw, layout, where, name)
    return Label(classes, by_color, raw)


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
        palette = _palette(image) if mode in ('P', 'PA') else None
        # The indices of a GIF are in the order of its own palette, so that only its colours mean something.
        raw = np.array(image if image.format != 'GIF' else image.convert('RGB'))
    if raw.ndim == 3 and palette is not None:
        mode, palette = 'RGB', None
        if (raw == raw[..., :1]).all():
            mode, raw = 'L', raw[..., 0]
    if pages > 1:
        raise DataError(f'label {where} holds {pages} pictures: save one, with a class per pixel')
    if mode == 'L' and data.startswith(PNG) and data[24] in (2, 4):
        raw //= 255 // (2 ** data[24] - 1)  # Pillow scales 2- and 4-bit grey to 8 bits, but not 1-bit
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


def _deep_tiff(data, where, max_pixels):
    """Values of a TIFF of one band that Pillow would change or refuse, such as unsigned 32 bits; or None."""
    found = tiff.directories(io.BytesIO(data)) if tiff.is_tiff(data) else None
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
    return _map(Raw(raw), layout, where, name)[0]


def _map(raw, layout, where, name):
    """Returns the classes, and whether they come from colours."""
    values, palette = raw.values, raw.palette
    if values.ndim == 3:
        if layout.color_map:
            classes = _by_color(values, layout.color_map)
            if not (classes == INVALID).any():
                return classes, True
        # In the user's own labels, grey that is no colour of a class is a value, saved as RGB.
        most = _CHROMA if raw.lossy else 0
        if not (layout.own and np.ptp(values, -1).max(initial=0) <= most):
            if layout.color_map:
                raise unknown.colors(values[classes == INVALID], layout, where, name)
            raise unknown.colors_without_classes(values, layout, where, name)
        values = values[..., 1]
    elif layout.color_map and layout.own and not layout.own.label_map:
        if palette is not None:
            known = _by_color(palette, layout.color_map)
            if known[IGNORE] == INVALID:
                known[IGNORE] = IGNORE  # a colour of its own, as in VOC
            classes = known[values]
            if (classes == INVALID).any():
                raise unknown.colors(palette[values[classes == INVALID]], layout, where, name, palette=True)
            return classes, True
        if values.dtype == np.uint8 and all(len(set(color)) == 1 for color in layout.own.listed):
            classes = _by_color(_GREYS, layout.color_map)[values]
            if not (classes == INVALID).any():
                return classes, True
    classes = _by_value(values, layout)
    wrong = classes == INVALID
    if wrong.any():
        raise unknown.values(values[wrong], layout, where, name)
    return classes, False


_CHROMA = 16  # differences between the channels of grey in formats that change values
_EXACT = 1 << 24  # numbers below are exact in float32
_ONE = np.array([1 << 16, 1 << 8, 1])  # makes one number of a colour
_PIXELS = 1 << 20  # at a time: a colour as one number takes many bytes
_GREYS = np.repeat(np.arange(256)[:, None], 3, 1)


def _by_value(values, layout):
    """Class indices of raw values (H, W); INVALID of others."""
    lut = layout.lut
    if values.dtype == np.uint8:
        return cv2.LUT(np.ascontiguousarray(values), lut[:256])
    outside = (values < 0) | (values >= len(lut) - 1)
    classes = lut[np.where(outside, len(lut) - 1, values)]
    far, targets = layout.far
    if far.size and outside.any():
        place = np.searchsorted(far, values[outside]).clip(max=len(far) - 1)
        classes[outside] = np.where(far[place] == values[outside], targets[place], lut[-1])
    return classes


def _by_color(colors, color_map):
    """Class indices (...) of colours (..., 3); INVALID of others."""
    known = np.array(list(color_map)) @ _ONE
    order = np.argsort(known)
    known, targets = known[order], np.array(list(color_map.values()), np.uint8)[order]
    classes = np.empty(colors.shape[:-1], np.uint8)
    rows = max(_PIXELS // max(classes[0].size, 1), 1) if len(classes) else 1
    for start in range(0, len(classes), rows):
        codes = colors[start : start + rows] @ _ONE
        place = np.searchsorted(known, codes).clip(max=len(known) - 1)
        classes[start : start + rows] = np.where(known[place] == codes, targets[place], np.uint8(INVALID))
    return classes
