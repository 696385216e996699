"""Opening pictures: what is too large, what is damaged, and what is no picture at all."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ann_jax.data.decode.images import decode_image
from ann_jax.data.decode.reading import MAX_PIXELS, open_picture
from ann_jax.data.label_files import decode_raw
from ann_jax.errors import DataError

AGAIN = 'copy or download the file again'


def encoded(array, format, **kwargs):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format, **kwargs)
    return stream.getvalue()


def png_header(width, height):
    """A PNG of that size without its pixels."""
    chunk = lambda kind, data: (
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    )
    head = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')
    )


def float_rgb_tiff(size=4):
    """An uncompressed little-endian TIFF of three float32 channels, by the TIFF 6.0 specification."""
    pixels = np.zeros((size, size, 3), '<f4').tobytes()
    entries = [(256, 3, 1, size), (257, 3, 1, size), (258, 3, 3, None), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [
        (273, 4, 1, None),
        (277, 3, 1, 3),
        (278, 3, 1, size),
        (279, 4, 1, len(pixels)),
        (339, 3, 3, None),
    ]
    after = 8 + 2 + 12 * len(entries) + 4
    places = {258: after, 339: after + 6, 273: after + 12}
    directory = struct.pack('<H', len(entries))
    for tag, kind, count, value in entries:
        directory += struct.pack('<HHII', tag, kind, count, places.get(tag, value))
    values = struct.pack('<3H', 32, 32, 32) + struct.pack('<3H', 3, 3, 3)
    return b'II*\0' + struct.pack('<I', 8) + directory + bytes(4) + values + pixels


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    ('data', 'words'),
    [
        (npy(np.zeros((4, 4), np.uint8)), ['a NumPy array', 'save it as a PNG']),
        (b'\x89HDF\r\n\x1a\n' + bytes(100), ['HDF5', 'v7.3']),
        (b'MATLAB 7.3 MAT-file, Platform: GLNXA64' + bytes(500), ['MATLAB']),
        (b'PK\x03\x04' + bytes(50), ['.npz']),
        (b'\0\0\0\x18ftypmp42' + bytes(50), ['a video', 'frames']),
        (b'RIFF\x24\0\0\0AVI LIST' + bytes(50), ['a video']),
        (b'\x1aE\xdf\xa3' + bytes(50), ['a video']),
        (b'\0\0\0\x18ftypheic' + bytes(50), ['HEIC', 'JPEG or PNG']),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', ['an SVG drawing']),
        ('0 1 2\nzwölf\n'.encode(), ['a text file']),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:00', ['git lfs pull']),
        (float_rgb_tiff(), ['3 channels of 32 bits (float)', '8 bits per channel']),
    ],
)
def test_what_is_no_picture_is_named_and_not_called_damaged(data, words):
    for decode, kind in ((decode_image, 'image'), (decode_raw, 'label')):
        if kind == 'image' and data[:4] in (b'II*\0', b'\0\0\0\x18') and b'mp4' not in data[:12]:
            continue  # read as images, by packages that may be missing
        with pytest.raises(DataError) as caught:
            decode(data, 'x.png')
        message = str(caught.value)
        assert f'the {kind} x.png' in message and AGAIN not in message
        assert all(word in message for word in words), message


@pytest.mark.filterwarnings('ignore')  # Pillow warns before it raises
def test_what_is_damaged_is_to_be_copied_again():
    whole = encoded(np.arange(64, dtype=np.uint8).reshape(8, 8), 'png')
    tiff = encoded(np.zeros((9, 9), np.uint8), 'tiff')
    html = b'<!DOCTYPE html><html><body>404</body></html>'
    for data in (
        b'',
        bytes(200),
        tiff[:-40],
        whole[:-30],
        whole[:20],
        tiff[:40],
        b'\xff\xd8\xff' + bytes(90),
    ):
        for decode in (decode_image, decode_raw):
            with pytest.raises(DataError, match=AGAIN):
                decode(data, 'x.png')
    with pytest.raises(DataError, match='web page.*download the file again'):
        decode_raw(html, 'x.png')


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_pixels_are_limited_before_they_are_decoded():
    assert MAX_PIXELS > 13_400**2 > 2 * 89_478_485  # Pillow's own limit, above which it refuses
    side = int(MAX_PIXELS**0.5)
    with open_picture(png_header(side, side), 'x', 'label') as image:
        assert image.size == (side, side)
    for height in (side + 100, 5 * side):  # Pillow warns about the first, and refuses the second
        with pytest.raises(DataError, match=r'label x is too large.*1,000,000,000 pixels.*tiles'):
            decode_raw(png_header(side, height), 'x')
