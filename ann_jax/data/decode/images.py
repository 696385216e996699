"""Decodes images of every kind to the channels that a network takes, and encodes PNGs.

Bytes that cannot be decoded raise a `DataError` that names the file.
"""

import io
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath

import cv2
import numpy as np
from PIL import Image, ImageOps

from ann_jax.data.decode import jpeg, rasters, tiff
from ann_jax.data.decode.levels import Reading, looks_like_alpha, pick, to_levels
from ann_jax.data.decode.reading import check_png, check_size, open_picture, optional
from ann_jax.errors import DataError

# Files in a folder with one of these are images; a file that is named may have any other.
IMAGE_ENDINGS = (
    '.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.jfif', '.jpe', '.gif', '.jp2', '.ppm',
    '.pgm', '.pbm', '.pnm', '.avif', '.heic', '.heif',
)  # fmt: skip
PLAIN = Reading()

# Several threads read samples at once; OpenCV's own threads would compete with them for the cores.
cv2.setNumThreads(0)

_PILLOW_LOCKS = [threading.Lock() for _ in range(64)]  # by image; that two share one does no harm
_PNG_END = b'IEND\xaeB`\x82'
_HEIC = b'heic', b'heix', b'hevc', b'mif1', b'msf1'
_ANIMATED = ('GIF', 'WEBP', 'PNG', 'AVIF')  # a phone's JPEG or HEIC may hold previews and depth too
_FAST_MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA')
_OPENCV_PIXELS, _OPENCV_SIDE = 2**30, 2**20  # its limits
_ORIENTATION = 0x0112  # of EXIF
_MOST_BANDS = 16  # an array of more rows than these is no stack of bands


def decode_image(data: bytes, where: object, *, reading: Reading = PLAIN, upright: bool = True) -> np.ndarray:
    """Returns an encoded image as (H, W, N) uint8: RGB, or the bands that `reading` picks.

    Grey becomes three equal channels, palettes their colours, CMYK RGB; alpha is dropped. See `to_levels` for
    how values of more than 8 bits are scaled.

    Args:
        data: content of the file.
        where: names the file in errors.
        reading: how it is read.
        upright: apply the EXIF orientation; otherwise the image is returned as stored.

    Raises:
        DataError: it cannot be decoded, is truncated or too large, or has bands, pages or values for which
            `reading` has no rule.
    """
    return to_levels(decode_values(data, where, reading, upright), reading.limits, where)


def decode_values(data: bytes, where: object, reading: Reading, upright: bool = True) -> np.ndarray:
    """As `decode_image`, before the values are scaled: (H, W, N) of the type that the file holds."""
    if tiff.is_tiff(data):
        return _decode_tiff(data, where, reading, upright)
    if data[4:8] == b'ftyp' and data[8:12] in _HEIC and b'avif' not in data[:40]:
        optional('pillow_heif', f'{where}, a HEIC image,').register_heif_opener()
    if size := jpeg.jpeg_size(data):  # of most images, for which Pillow takes as long to open as to decode
        check_size(*size, where, 'image', reading.max_pixels)
        if (values := _decode_eight_bits(data, size, reading, upright)) is not None:
            jpeg.refuse_missing(data, values, where)
            check_page(reading.page, 1, where)
            return pick(values, False, reading, where)
    with open_picture(data, where, 'image', reading.max_pixels) as opened:
        check_png(data, where, 'image')  # decoders pass over some wrong checksums
        count = getattr(opened, 'n_frames', 1) if opened.format in _ANIMATED else 1
        check_page(reading.page, count, where)
        if count > 1:
            opened.seek(reading.page - 1)
        elif (values := _decode_fast(data, opened, reading, upright)) is not None:
            jpeg.refuse_missing(data, values, where)
            return pick(values, values.shape[2] == 4, reading, where)
        values = from_pillow(opened, reading, upright, where)
        jpeg.refuse_missing(data, values, where)
        return values


def check_page(page: int, count: int, where: object) -> None:
    """Refuses files of several images, unless `page` chooses one.

    Raises:
        DataError: there are several and none is chosen, or there is no such page.
    """
    if page > count or count > 1 and not page:
        raise DataError(
            f'{where} holds {count} images: choose one, counted from 1, with --config.dataset.page=1 '
            '(load(..., page=1) in Python), or save them as files of their own'
        )


def _decode_fast(data, opened, reading, upright):
    """Bands of a file by OpenCV, which is faster and keeps 16 bits; None where Pillow should decode."""
    if _too_large_for_opencv(*opened.size):
        return None
    if top := _top(data, opened.format):
        end = data.rfind(_PNG_END) + len(_PNG_END) if opened.format == 'PNG' else len(data)
        values = cv2.imdecode(np.frombuffer(data[:end], np.uint8), cv2.IMREAD_UNCHANGED)
        if values is None or values.dtype == np.uint8:
            raise ValueError('OpenCV cannot decode it')
        if top < 65535 and not reading.limits:  # the range that the header names
            values = np.rint(values * (65535 / top)).astype(np.uint16)
        # OpenCV has blue first. Grey with alpha becomes four channels.
        grey = values.ndim == 2
        values = np.repeat(values[..., None], 3, 2) if grey else values[..., [2, 1, 0, 3][: values.shape[2]]]
        return turned(values, opened.getexif().get(_ORIENTATION, 1)) if upright else values
    if opened.mode not in _FAST_MODES:
        return None
    return _decode_eight_bits(data, opened.size, reading, upright)


def _too_large_for_opencv(width, height):
    return width * height >= _OPENCV_PIXELS or max(width, height) >= _OPENCV_SIDE


def _decode_eight_bits(data, size, reading, upright):
    """RGB of a file of 8 bits by OpenCV; None where Pillow should decode."""
    # imread, and imdecode in some releases, fill the missing part of a truncated JPEG with grey. So OpenCV
    # only gets files with a proper end; Pillow, which raises, gets the rest.
    whole = data.endswith((b'\xff\xd9', _PNG_END))
    if not whole or max(reading.bands, default=1) > 3 or _too_large_for_opencv(*size):
        return None
    flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # Pillow says what is wrong
        return None


def _top(data, form):
    """The largest value that fits a file of more than 8 bits, of which Pillow reads 8 or others; else 0."""
    if form == 'PNG':
        return 65535 if data[24] == 16 else 0
    if form == 'PPM' and data[:2] in (b'P2', b'P3', b'P5', b'P6'):
        top = int(re.sub(rb'#[^\n]*', b'', data[:4096]).split()[3])
        return top if top > 255 else 0
    if form == 'JPEG2000' and data[(size := data.find(b'\xff\x51')) + 40] & 127 > 7 and size >= 0:
        return 65535
    return 0


def _decode_tiff(data, where, reading, upright):
    found = tiff.directories(io.BytesIO(data))
    if found is None:
        with open_picture(data, where, 'image', reading.max_pixels) as opened:  # says what is wrong
            return from_pillow(opened, reading, upright, where)
    if not found:
        raise DataError(
            f'{where} holds only a reduced copy of its image, as raw files of cameras do: save it as PNG'
        )
    check_page(reading.page, len(found), where)
    chosen = found[max(reading.page, 1) - 1]
    chosen.refuse_missing(where)
    check_size(chosen.width, chosen.height, where, 'image', reading.max_pixels)
    if chosen.photometric == tiff.WHITE_IS_ZERO and chosen.bits > 8:
        raise DataError(f'{where} stores white as zero in {chosen.bits} bits: save it with black as zero')
    if chosen.for_pillow:
        with open_picture(data, where, 'image', reading.max_pixels) as opened:
            opened.seek(chosen.number)
            return from_pillow(opened, reading, upright, where, tiff_of=chosen)
    values = rasters.read_bands(data, chosen.number, where)
    values = chosen.without_nodata(values)
    # Programs mark infrared as alpha too.
    alpha = chosen.alpha and looks_like_alpha(values[..., -1])
    return pick(turned(values, chosen.orientation) if upright else values, alpha, reading, where)


def from_pillow(
    image: Image.Image,
    reading: Reading = PLAIN,
    upright: bool = True,
    where: object = 'the Pillow image',
    tiff_of: tiff.Directory | None = None,
) -> np.ndarray:
    """Returns the bands of a Pillow image that `reading` picks, unscaled: see `decode_values`.

    Raises:
        DataError: Pillow keeps too few of its bits, or it has bands for which `reading` has no rule.
    """
    # Pillow decodes an opened file when its pixels are asked for, and not in two threads at once.
    with _PILLOW_LOCKS[id(image) // 16 % len(_PILLOW_LOCKS)]:
        return _from_pillow(image, reading, upright, where, tiff_of)


def _from_pillow(image, reading, upright, where, tiff_of):
    form = image.format
    if image.mode[0] != 'I' and any(';16' in str(tile) for tile in getattr(image, 'tile', ())):
        raise DataError(f'{where} has colours of 16 bits, of which Pillow keeps 8: give the file instead')
    # Only where needed: both copy the image, which may be large.
    if upright and image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode[0] in 'IF':
        values = np.array(image)[..., None]
        if tiff_of:
            values = tiff_of.without_nodata(values.astype(tiff_of.dtype))
        elif values.dtype == np.int32 and form in ('PNG', 'PPM'):
            values = values.astype(np.uint16)
        values = values.astype(values.dtype.newbyteorder('='), copy=False)
        return pick(values, False, reading, where)
    alpha = image.mode in ('RGBA', 'LA', 'PA', 'RGBa', 'La') or 'transparency' in image.info
    if alpha and (tiff_of or max(reading.bands, default=1) > 3):
        values = np.array(image.convert('RGBA'))
        return pick(values, not tiff_of or looks_like_alpha(values[..., 3]), reading, where)
    return pick(np.array(image if image.mode == 'RGB' else image.convert('RGB')), False, reading, where)


def from_array(array: np.ndarray, reading: Reading = PLAIN) -> np.ndarray:
    """Returns an array as `decode_image` returns the file that holds the same values.

    Args:
        array: (H, W) grey, or (H, W, C): grey, RGB, RGBA, or bands of which `reading` picks some.
        reading: how it is read.

    Raises:
        DataError: it has another shape, or bands or values for which `reading` has no rule.
    """
    values = np.asarray(array)
    where = f'an array of shape {values.shape} and type {values.dtype}'
    if values.ndim not in (2, 3) or not values.size:
        raise DataError(f'an image is (H, W) or (H, W, bands), not {values.shape}')
    if values.dtype.kind not in 'buif':
        raise DataError(f'{where} holds values of type {values.dtype}: give integers or floats')
    values = values[..., None] if values.ndim == 2 else values
    if _bands_first(values.shape, reading.bands):
        raise DataError(
            f'{where} has its channels first: an image is (H, W, channels), array.transpose(1, 2, 0), or '
            'image.permute(1, 2, 0) in torch'
        )
    has_alpha = values.shape[2] in (2, 4) and looks_like_alpha(values[..., -1])
    return to_levels(pick(values, has_alpha, reading, where), reading.limits, where)


def _bands_first(shape, bands):
    """Whether the first axis looks like the bands, as in torch and rasterio, which would be cut into rows."""
    first, height, width = shape
    if not bands:
        return first <= 4 < width
    return max(bands) <= first <= _MOST_BANDS < height and width > 4 * first


def unseen(names: Iterable[str | os.PathLike]) -> str:
    """One line about files that do not count as images because of their ending; '' if there are none."""
    counts: Counter[str] = Counter()
    for path in map(PurePath, names):
        if not path.name.startswith('.') and path.suffix.lower() not in IMAGE_ENDINGS:
            counts[path.suffix.lower() or 'no ending'] += 1
    endings = ', '.join(f'{ending} ({count})' for ending, count in counts.most_common(5))
    if not counts:
        return ''
    return f'{counts.total()} files are not read as images, by their endings: {endings}'


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """Applies an EXIF orientation, 1 to 8, to (H, W, C)."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image


def match(
    data: bytes, label: np.ndarray, where: object, label_where: object, reading: Reading = PLAIN
) -> np.ndarray:
    """Decodes an image in the orientation that fits its label.

    Labels are usually drawn on the upright image, with the EXIF orientation applied. Tools that ignore EXIF
    draw on the stored one: if only that has the label's size, it is returned.

    Args:
        data: content of the image file.
        label: (H, W).
        where: names the image in errors.
        label_where: names the label in errors.
        reading: how the image is read.

    Returns:
        (H, W, N) uint8, as `decode_image` returns it.

    Raises:
        DataError: the image cannot be decoded, or has another size.
    """
    image = decode_image(data, where, reading=reading)
    if image.shape[:2] != label.shape and image.shape[1::-1] == label.shape:
        stored = decode_image(data, where, reading=reading, upright=False)
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
