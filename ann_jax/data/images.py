"""Decodes images of every kind to RGB, and encodes PNGs.

Bytes that cannot be decoded raise a `DataError` that names the file.
"""

import os
import tempfile
import threading

import cv2
import numpy as np
from PIL import Image, ImageOps

from ann_jax.data.reading import open_picture
from ann_jax.errors import DataError

# Several threads read samples at once; OpenCV's own threads would compete with them for the cores.
cv2.setNumThreads(0)

_ERROR_STREAM = threading.Lock()


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
    with open_picture(data, where, 'image') as opened:
        # OpenCV is faster, but imread, and imdecode in some releases, fill the missing part of a truncated
        # JPEG with grey. So it only gets files with a proper end; Pillow, which raises, gets the rest.
        if data.endswith((b'\xff\xd9', b'IEND\xaeB`\x82')):
            flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
            if image is not None:
                return image
        return to_rgb(opened, upright)


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
