"""Names the format of a file that is not read as an image, so that an error can say what to do instead."""

import io
from typing import NamedTuple

from PIL import TiffImagePlugin

_AS_PNG = 'save it as a PNG'
_FRAMES = 'save its frames as images, say with ffmpeg'
_UNPACK = 'unpack it'


class Unread(NamedTuple):
    """What a file is instead of an image, and what helps."""

    what: str
    cure: str


# Where the bytes begin, the bytes, and what they say.
_SIGNATURES: tuple[tuple[int, bytes, Unread], ...] = (
    (0, b'version https://git-lfs', Unread('a Git LFS pointer', 'fetch the file with `git lfs pull`')),
    (0, b'\x89HDF', Unread('an HDF5 file (as MATLAB v7.3 writes)', _AS_PNG)),
    (0, b'MATLAB ', Unread('a MATLAB file', _AS_PNG)),
    (0, b'\x93NUMPY', Unread('a NumPy array', _AS_PNG)),
    (0, b'PK\x03\x04', Unread('a ZIP archive (as .npz files are)', f'{_UNPACK}, or {_AS_PNG}')),
    (0, b'\x1f\x8b', Unread('gzip-compressed', f'{_UNPACK}, and save images as PNG')),
    (0, b'7z\xbc\xaf', Unread('a 7z archive', _UNPACK)),
    (0, b'Rar!', Unread('a RAR archive', _UNPACK)),
    (257, b'ustar', Unread('a tar archive', _UNPACK)),
    (0, b'\x80\x04\x95', Unread('a Python pickle', _AS_PNG)),
    (0, b'%PDF', Unread('a PDF', _AS_PNG)),
    (128, b'DICM', Unread('a DICOM file', _AS_PNG)),
    (344, b'n+1\0', Unread('a NIfTI file', 'save its slices as PNGs')),
    (0, b'v/1\x01', Unread('an OpenEXR image', _AS_PNG)),
    (0, b'\xff\x0a', Unread('a JPEG XL image', _AS_PNG)),
    (4, b'JXL ', Unread('a JPEG XL image', _AS_PNG)),
    (0, b'FLV', Unread('a video', _FRAMES)),
    (0, b'\x1aE\xdf\xa3', Unread('a video', _FRAMES)),  # Matroska, WebM
    (0, b'\0\0\x01\xba', Unread('a video', _FRAMES)),  # MPEG
    (0, b'\0\0\x01\xb3', Unread('a video', _FRAMES)),
    (0, b'OggS', Unread('a video', _FRAMES)),
    (8, b'AVI ', Unread('a video', _FRAMES)),
    (0, b'0&\xb2u', Unread('a video', _FRAMES)),  # WMV
    (4, b'ftyphei', Unread('a HEIC photo', 'save it as JPEG or PNG')),
    (4, b'ftypmif1', Unread('a HEIC photo', 'save it as JPEG or PNG')),
    (4, b'ftypavi', Unread('an AVIF image that this Pillow does not read', _AS_PNG)),
    (4, b'ftyp', Unread('a video', _FRAMES)),  # MP4, MOV: after those above
    (4, b'moov', Unread('a video', _FRAMES)),
)


def unread(data: bytes, identified: bool = False) -> Unread | None:
    """Names the format of a file that no decoder of images took; None if it looks like a damaged image.

    Args:
        data: content of the file.
        identified: whether a decoder opened it, and failed later, as Pillow does with HDF5 files.
    """
    for start, signature, found in _SIGNATURES:
        if data[start : start + len(signature)] == signature:
            return found
    if identified:
        return None
    if data[:4] in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'):
        return _tiff(data)
    return _text(data[:4096])


def _tiff(data):
    """A TIFF of a kind that Pillow has no mode for; None if its directory is damaged."""
    try:
        big = data[:4] in (b'II+\0', b'MM\0+')
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if big else 8])
        stream = io.BytesIO(data)
        stream.seek(tags.next)
        tags.load(stream)
        bits, form = tags.get(258, (1,)), tags.get(339, (1,))
        kind = {1: 'unsigned', 2: 'signed', 3: 'float'}.get(form[0], 'other')
        channels = tags.get(277, 1)
        if not tags[256] or not tags[257] or not (273 in tags or 324 in tags):
            return None  # the rest of the directory is missing
    except Exception:  # a damaged directory can make Pillow raise anything
        return None
    what = f'a TIFF of {channels} channels of {bits[0]} bits ({kind}), which Pillow does not read'
    return Unread(what, 'save it with 8 bits per channel, as PNG or TIFF')


def _text(start):
    text = start.decode('utf-8', 'ignore').lstrip('\ufeff \t\r\n')
    lower = text.lower()
    if '<svg' in lower:
        return Unread('an SVG drawing', 'draw it as a PNG')
    if lower.startswith(('<!doctype html', '<html')):
        return Unread('a web page, so the download failed', 'download the file again')
    if text and (text.isprintable() or all(c.isprintable() or c in '\t\r\n' for c in text)):
        return Unread(
            'a text file',
            'only pictures are read; python -m ann_jax.tools.annotations draws labels from annotations',
        )
    return None
