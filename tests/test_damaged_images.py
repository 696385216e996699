"""Images that lack data or lie about their size are refused in one line."""

import os
import struct

import cv2
import numpy as np
import pytest
from PIL import Image
from sample_images import encoded, refused, values

from ann_jax.data.decode.images import decode_image
from ann_jax.data.decode.jpeg import examine_jpeg
from ann_jax.data.decode.reading import damaged
from ann_jax.data.label_files import decode_raw
from ann_jax.errors import DataError


def lying(data, lie):
    """A JPEG cut in its coded data and closed, or with a larger size in its header."""
    coded = data.index(b'\xff\xda') + 14
    if lie.startswith('cut'):
        return data[: coded + int(float(lie[4:]) * (len(data) - coded))] + b'\xff\xd9'
    size = next(data.index(mark) for mark in (b'\xff\xc0', b'\xff\xc2') if mark in data)
    size += 5 if lie == 'tall' else 7
    return data[:size] + (10 * int.from_bytes(data[size : size + 2])).to_bytes(2) + data[size + 2 :]


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
@pytest.mark.parametrize('progressive', [False, True])
def test_a_jpeg_that_lacks_data_is_refused(progressive, mode, capfd):
    """What libjpeg fills up without an error."""
    rng = np.random.default_rng(3)
    picture = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((96, 80)).convert(mode)
    exif = Image.Exif()
    exif[0x112] = 6  # turned: the last pixels are at another corner
    data = encoded(picture, 'jpeg', quality=90, progressive=progressive, exif=exif)
    assert decode_image(data, 'a.jpg').shape == (96, 80, 3)
    for lie in ('cut 0.1', 'cut 0.5', 'tall', 'wide', *(() if progressive else ('cut 0.95',))):
        with pytest.raises(DataError, match=r'a\.jpg.*copy or download'):
            decode_image(lying(data, lie), 'a.jpg')


def test_what_other_threads_say_meanwhile_is_not_lost(capfd, monkeypatch):
    decode = cv2.imdecode

    def slow(*args):
        os.write(2, b'said meanwhile\n')
        return decode(*args)

    monkeypatch.setattr(cv2, 'imdecode', slow)
    picture = np.random.default_rng(3).integers(0, 256, (64, 96, 3), np.uint8)
    whole = encoded(picture, 'jpeg', quality=90)
    examine_jpeg(whole, 'a.jpg')
    assert capfd.readouterr().err == 'said meanwhile\n'
    middle = len(whole) // 2
    with pytest.raises(DataError, match=r'a.jpg is damaged \(.*(Corrupt|Premature)'):
        examine_jpeg(whole[:middle] + whole[middle + 40 :], 'a.jpg')
    assert capfd.readouterr().err == 'said meanwhile\n'


def test_odd_but_whole_jpegs_are_read(capfd):
    """All grey, by restart intervals, followed by more, or lossless."""
    grey = np.full((32, 32, 3), 128, np.uint8)
    assert (decode_image(encoded(grey, 'jpeg'), 'a.jpg') == 128).all()
    restarts = cv2.imencode('.jpg', grey, [cv2.IMWRITE_JPEG_RST_INTERVAL, 1])[1].tobytes()
    for data in (restarts, restarts + b'more', encoded(Image.fromarray(grey), 'mpo')):
        assert (decode_image(data, 'a.jpg') == 128).all()
    # Lossless: 8x8 differences of 0 from 128, each of which is coded by a bit.
    part = lambda marker, *body: bytes([0xFF, marker, 0, len(body) + 2, *body])
    frame, table = part(0xC3, 8, 0, 8, 0, 8, 1, 1, 0x11, 0), part(0xC4, 0, 1, *[0] * 15, 0)
    lossless = b'\xff\xd8' + frame + table + part(0xDA, 1, 1, 0, 1, 0, 0) + bytes(8) + b'\xff\xd9'
    assert (decode_image(lossless, 'a.jpg') == 128).all()


@pytest.mark.filterwarnings('ignore:Dataset has no geotransform')
@pytest.mark.parametrize('tiled', [False, True])
def test_a_tiff_that_lacks_strips_or_tiles_is_refused(tiled):
    """One that declares more rows than it holds, which Pillow leaves black."""
    rasterio = pytest.importorskip('rasterio', reason='writes tiles')
    grey = values(255, dtype=np.uint8)
    shape = {'height': grey.shape[0], 'width': grey.shape[1], 'count': 1, 'dtype': 'uint8'}
    with rasterio.MemoryFile() as file:
        with file.open(driver='GTiff', tiled=tiled, blockxsize=16, blockysize=16, **shape) as opened:
            opened.write(grey, 1)
        data = file.read()
    assert (decode_image(data, 'a.tif')[..., 0] == grey).all()
    height = data.index(struct.pack('<HHI', 257, 3, 1)) + 8
    tall = data[:height] + struct.pack('<H', 500) + data[height + 2 :]
    with pytest.raises(DataError, match=r'label b\.tif: of 20x500 pixels it holds only . of \d+ strips'):
        decode_raw(tall, 'b.tif')
    with pytest.raises(DataError, match=r'a\.tif: of 20x500 pixels it holds only . of \d+ strips'):
        decode_image(tall, 'a.tif')


def test_whatever_a_decoder_raises_is_one_line():
    """Pillow raises a NotImplementedError here, for others a RuntimeError or an error without a text."""
    data = bytearray(encoded(values(255, 3, dtype=np.uint8), 'dds'))
    data[76:108] = bytes(32)  # the format of the pixels
    refused(['a.dds', 'copy or download'], decode_image, bytes(data), 'a.dds')
    assert 'a.png: AssertionError; copy' in str(damaged('a.png', 'image', AssertionError()))


def test_a_png_with_a_wrong_checksum_is_refused():
    """Its pixels were decoded before its end was seen."""
    data = encoded(values(255, 3, dtype=np.uint8), 'png')
    refused(['a.png', 'the checksum of its part', 'IDAT'], decode_image, data[:-16] + bytes(16), 'a.png')
