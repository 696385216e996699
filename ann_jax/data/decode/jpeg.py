"""JPEGs: their size by the header, and missing data, which decoders fill with grey without an error."""

import os
import re
import struct
import tempfile
import threading

import cv2
import numpy as np

from ann_jax.data.decode.reading import damaged
from ann_jax.errors import DataError

_ERROR_STREAM = threading.Lock()
# What libjpeg fills with: coefficients of 0. In Pillow's RGB of CMYK, inverted or not, that is 63 or 64.
_FILLED = 128, 64, 63
_MARKER = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')  # that ends coded data
_EOI, _SOS = 0xD9, 0xDA
_FRAMES = 0xC0, 0xC1, 0xC2, 0xC9, 0xCA  # of coefficients; those of lossless JPEGs have none


def is_jpeg(data: bytes) -> bool:
    """Whether a file is a JPEG, or several in one."""
    return data.startswith(b'\xff\xd8\xff')


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG of 8 bits in one or three channels, as its header says; None for others."""
    start = 2
    while data[:2] == b'\xff\xd8' and start + 10 < len(data) and data[start] == 0xFF:
        marker = data[start + 1]
        if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
            bits, height, width, channels = struct.unpack_from('>BHHB', data, start + 4)
            return (width, height) if bits == 8 and channels in (1, 3) and width and height else None
        if not 0xC3 < marker < 0xFF or 0xD0 <= marker <= 0xDA:  # pixels follow, or nothing that is expected
            return None
        start += 2 + int.from_bytes(data[start + 2 : start + 4])
    return None


def refuse_missing(data: bytes, values: np.ndarray, where: object) -> None:
    """Refuses a JPEG whose data ends before the picture that its header declares; others pass.

    Scans that are missing are counted. Only if a corner is as grey as libjpeg fills what is missing, the file
    is decoded again. So it costs whole files next to nothing, and finds neither what else `examine_jpeg`
    finds, nor a cut in the last of several scans.

    Args:
        data: content of the file.
        values: (H, W, N), what was decoded of it.
        where: names the file in errors.

    Raises:
        DataError: scans are missing, or libjpeg reports corrupt data.
    """
    if not is_jpeg(data):
        return
    if _lacks_scans(data):
        raise damaged(where, 'image', 'its last scans are missing')
    corners = values[[0, 0, -1, -1], [0, -1, 0, -1]]  # any may have been the last, by EXIF
    if any((corners == grey).all(-1).any() for grey in _FILLED):
        examine_jpeg(data, where)


def _lacks_scans(data):
    """Whether some coefficients of some component are in no scan, or not to their last bit."""
    missing: dict[int, set] = {}
    place = 2
    while found := _MARKER.search(data, place):
        marker, place = data[found.start() + 1], found.end()
        size = int.from_bytes(data[place : place + 2])
        body, place = data[place + 2 : place + size], place + size
        if marker == _EOI:
            break
        if marker in _FRAMES:
            missing = {body[at]: {*range(64)} for at in range(6, len(body) - 2, 3)}
        elif marker == _SOS and len(body) >= 4 and len(body) == 4 + 2 * body[0] and not body[-1] & 15:
            for component in body[1:-3:2]:
                missing.get(component, set()).difference_update(range(body[-3], body[-2] + 1))
            if not any(missing.values()):
                return False
    return any(missing.values())


def examine_jpeg(data: bytes, where: object) -> None:
    """Refuses a JPEG with missing or corrupt data in the middle, which decoders accept without an error.

    Finds what libjpeg reports: most gaps and overwritten parts, but only one flipped bit in six, because
    almost any sequence of bits decodes to some picture. Other formats pass. Runs in one thread at a time.

    Raises:
        DataError: libjpeg reports corrupt data.
    """
    if not is_jpeg(data):
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
        lines = said.read().splitlines(keepends=True)
    damage = [line for line in lines if b'Corrupt JPEG' in line or b'Premature end of JPEG' in line]
    for line in lines:
        if line not in damage:  # of another thread
            os.write(2, line)
    if damage:
        reason = damage[0].decode(errors='replace').strip()
        raise DataError(f'the image {where} is damaged ({reason}): copy or download the file again')
