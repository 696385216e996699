"""Images as they come: what is read, by which rule, and what is refused with a cure."""

import io
import logging
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from sample_images import RANGE, SIZE, encoded, refused, scaled, values

from ann_jax.config import defaults, validate
from ann_jax.data.datasets import FolderSource
from ann_jax.data.decode.images import (
    IMAGE_ENDINGS,
    decode_image,
    decode_values,
    from_array,
    from_pillow,
    unseen,
)
from ann_jax.data.decode.jpeg import jpeg_size
from ann_jax.data.decode.levels import Reading, to_levels
from ann_jax.data.decode.reading import open_picture
from ann_jax.data.own.settings import own_dataset
from ann_jax.errors import ConfigError
from ann_jax.inference.intake import find_images

RNG = np.random.default_rng(0)

# --- Levels


def png_16(array):
    """By OpenCV, which takes blue first."""
    order = {2: ..., 3: (..., [2, 1, 0, 3][: array.shape[-1]])}[array.ndim]
    return cv2.imencode('.png', np.ascontiguousarray(array[order]))[1].tobytes()


def pnm(array, top):
    kind = b'P5' if array.ndim == 2 else b'P6'
    return kind + b'\n%d %d\n%d\n' % (*array.shape[1::-1], top) + array.astype('>u2').tobytes()


def big_endian_tiff(array):
    """An uncompressed grey TIFF, by the TIFF 6.0 specification."""
    pixels = array.astype('>u2').tobytes()
    tags = {256: array.shape[1], 257: array.shape[0], 258: 16, 259: 1, 262: 1, 273: 8 + 2 + 9 * 12 + 4}
    tags |= {277: 1, 278: array.shape[0], 279: len(pixels)}
    entries = [struct.pack('>HHII', tag, 4, 1, value) for tag, value in tags.items()]
    return b'MM\0*' + struct.pack('>IH', 8, len(entries)) + b''.join(entries) + bytes(4) + pixels


def files_of_16_bits(grey, color, alpha):
    """(content, the array in it without alpha)."""
    yield png_16(grey), grey
    yield png_16(color), color
    yield png_16(alpha), alpha[..., :3]
    yield encoded(grey, 'png'), grey
    yield encoded(grey, 'tiff', compression='tiff_lzw'), grey
    yield big_endian_tiff(grey), grey


def test_16_bits_without_a_range_are_their_upper_8():
    arrays = values(65536), values(65536, 3), values(65536, 4)
    for data, array in files_of_16_bits(*arrays):
        upper = (array >> 8).astype(np.uint8)
        upper = upper if upper.ndim == 3 else np.stack([upper] * 3, -1)
        np.testing.assert_array_equal(decode_image(data, 'x'), upper)
        np.testing.assert_array_equal(from_array(array), upper)


def test_a_range_scales_every_file_and_array_alike():
    arrays = values(5000), values(5000, 3), values(5000, 4)
    files = [*files_of_16_bits(*arrays)]
    files += [(pnm(values(4096), 4095), None), (pnm(values(4096, 3), 4095), None)]
    for data, array in files:
        if array is None:
            array = np.frombuffer(data[data.index(b'4095\n') + 5 :], '>u2')
            array = (
                array.reshape(*SIZE, -1).squeeze(2)
                if array.size == np.prod(SIZE)
                else array.reshape(*SIZE, 3)
            )
        np.testing.assert_array_equal(decode_image(data, 'x', reading=RANGE), scaled(array))
        np.testing.assert_array_equal(from_array(array, RANGE), scaled(array))
    for array in (values(5000, dtype=np.int32) - 50, values(5000, dtype=np.float32) - 0.25):
        np.testing.assert_array_equal(decode_image(encoded(array, 'tiff'), 'x', reading=RANGE), scaled(array))
    odd = np.array([[np.nan, np.inf, -np.inf, 100, 4000, 2050.01]])
    np.testing.assert_array_equal(from_array(odd, RANGE)[0, :, 0], [0, 255, 0, 0, 255, 128])


def test_a_range_in_the_header_is_a_natural_one():
    for array in (values(4096), values(4096, 3)):
        data = pnm(array, 4095)
        expected = scaled(array, 0, 4095)
        np.testing.assert_allclose(decode_image(data, 'x').astype(int), expected.astype(int), atol=1)
        refused(['cannot read the image x'], decode_image, data[:-9], 'x')
        refused(['almost black'], decode_image, data.replace(b'4095', b'65535'), 'x')


def test_a_pillow_image_that_lost_bits_is_told():
    with Image.open(io.BytesIO(png_16(values(4096, 3)))) as image:
        refused(['Pillow keeps 8', 'give the file'], from_pillow, image)
    with Image.open(io.BytesIO(png_16(values(65536)))) as image:
        assert from_pillow(image).dtype == np.uint16


def test_a_pillow_image_that_several_threads_read_is_decoded_once():
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, 'png')
    for _ in range(10):
        opened = Image.open(io.BytesIO(stream.getvalue()))
        with ThreadPoolExecutor(4) as pool:
            for values in pool.map(from_pillow, [opened] * 4):
                np.testing.assert_array_equal(values, image)


def test_the_size_of_a_jpeg_is_that_of_pillow():
    photo = Image.fromarray(RNG.integers(0, 256, (37, 53, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x010E] = 'x' * 5000
    for mode in ('L', 'RGB', 'CMYK'):
        for options in ({}, {'progressive': True}, {'exif': exif}, {'comment': b'\xff\xc0\0\x0b'}):
            stream = io.BytesIO()
            photo.convert(mode).save(stream, 'jpeg', **options)
            data = stream.getvalue()
            assert jpeg_size(data) == (None if mode == 'CMYK' else (53, 37))
            assert {jpeg_size(data[:end]) for end in range(0, len(data), 7)} <= {None, (53, 37)}
    assert jpeg_size(b'\xff\xd8\xff\xd9' * 9) is None and jpeg_size(b'') is None


def test_deep_jpeg_2000():
    array = values(4096, 3).repeat(8, 0).repeat(8, 1)
    lossless = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
    data = cv2.imencode('.jp2', np.ascontiguousarray(array[..., ::-1]), lossless)[1].tobytes()
    refused(['almost black', '0,4095'], decode_image, data, 'x')
    np.testing.assert_array_equal(decode_image(data, 'x', reading=RANGE), scaled(array))


@pytest.mark.parametrize(
    ('array', 'words'),
    [
        (values(4096), ['almost black', 'image_range=0,4095', "load(..., image_range='0,4095')", 'auto']),
        (values(1000, 3), ['image_range=0,1023']),
        (values(30000, dtype=np.int16), ['of type int16', 'image_range=LOW,HIGH']),
        (values(65536, dtype=np.int32), ['of type int32', 'image_range=LOW,HIGH']),
        (RNG.random(SIZE, np.float32), ['from', 'of type float32', 'image_range=0,1']),
        (RNG.random((*SIZE, 3)), ['of type float64', 'image_range=0,1']),
    ],
)
def test_what_has_no_natural_range_is_refused_with_a_cure_that_works(array, words):
    reading = Reading.parse(
        next(w for w in words if 'range' in w).split('=')[1].replace('LOW,HIGH', '0,65535')
    )
    refused(words, from_array, array)
    assert from_array(array, reading).mean() > 50
    data = None
    if array.dtype == np.uint16:
        data = png_16(array)
    elif array.ndim == 2 and array.dtype != np.int16:  # which Pillow saves as 32 bits
        data = encoded(array, 'tiff')
    if data:
        refused(['a.tif', *words], decode_image, data, 'a.tif')
        np.testing.assert_array_equal(decode_image(data, 'x', reading=reading), from_array(array, reading))


def test_a_few_bright_pixels_hide_no_dark_image():
    dark = RNG.integers(0, 1000, (100, 100)).astype(np.uint16)
    dark[0, :9] = 65535
    refused(['99.9 %', 'image_range=0,1023'], from_array, dark)
    dark[0, :11] = 65535
    np.testing.assert_array_equal(from_array(dark)[..., 0], dark >> 8)


def test_a_black_image_and_8_bits_need_no_range():
    assert not from_array(np.zeros(SIZE, np.uint16)).any()
    eight = values(256, 3, dtype=np.uint8)
    for text in ('', '0,4095', '0,1', '-100,200'):  # those of other types leave 8 bits alone
        np.testing.assert_array_equal(from_array(eight, Reading.parse(text)), eight)
    np.testing.assert_array_equal(from_array(eight, Reading.parse('10,200')), scaled(eight, 10, 200))
    np.testing.assert_array_equal(from_array(eight[..., 0] > 99)[..., 1], 255 * (eight[..., 0] > 99))
    refused(['complex64'], to_levels, eight.astype(np.complex64), (0, 1), 'x')


@pytest.mark.parametrize('text', ['7', '5,5', '9,1', 'a,b', '0,nan', '0,inf', '1,2,3'])
def test_bad_ranges(text):
    refused(['dataset.image_range', text, '0,4095'], Reading.parse, text, error=ConfigError)
    config = defaults()
    config.dataset.image_range = text
    refused(['dataset.image_range'], validate, config, error=ConfigError)


# --- Bands


def test_modes_are_as_pillow_converts_them():
    rgb = Image.fromarray(np.repeat(values(256, 3, dtype=np.uint8), 8, 1))
    for mode in ('1', 'L', 'P', 'CMYK', 'YCbCr', 'LAB', 'RGBA', 'RGB'):
        data = encoded(rgb.convert('RGB').convert(mode) if mode != 'LAB' else rgb, 'tiff')
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(decode_image(data, 'x'), np.array(image.convert('RGB')))
    inverted = encoded(rgb.convert('CMYK'), 'jpeg')  # as Adobe stores it
    with Image.open(io.BytesIO(inverted)) as image:
        assert image.mode == 'CMYK'
        np.testing.assert_array_equal(decode_image(inverted, 'x'), np.array(image.convert('RGB')))


def test_bands_are_picked_or_refused():
    four = values(200, 4, dtype=np.uint8)
    refused(['4 bands', 'bands=3,2,1'], from_array, four)
    np.testing.assert_array_equal(from_array(four, Reading(bands=(4, 3, 2))), four[..., [3, 2, 1]])
    np.testing.assert_array_equal(from_array(four, Reading(bands=(2,))), four[..., [1]])
    refused(['4 bands', 'bands=5', '1 to 4'], from_array, four, Reading(bands=(5,)))
    opaque = np.dstack([four[..., :3], np.full(SIZE, 255, np.uint8)])
    for array, expected in ((opaque, opaque), (four[..., :1], four[..., [0, 0, 0]])):
        np.testing.assert_array_equal(from_array(array), expected[..., :3])
    refused(['channels first', 'transpose(1, 2, 0)'], from_array, opaque.transpose(2, 0, 1))
    several, reading = np.zeros((5, 40, 50), np.uint8), Reading(bands=(4, 2, 1))
    refused(['channels first'], from_array, several, reading)
    assert from_array(several.transpose(1, 2, 0), reading).shape == (40, 50, 3)
    for array in (four[:0], four[0, 0], four[None]):
        refused(['an image is (H, W)'], from_array, array)
    png = encoded(four, 'png')  # by its format, a PNG's fourth band is alpha
    np.testing.assert_array_equal(decode_image(png, 'x'), four[..., :3])
    np.testing.assert_array_equal(decode_image(png, 'x', reading=Reading(bands=(4, 1))), four[..., [3, 0]])
    tiff = encoded(four, 'tiff')  # infrared that was saved as alpha
    refused(['a.tif has 4 bands'], decode_image, tiff, 'a.tif')
    np.testing.assert_array_equal(decode_image(tiff, 'x', reading=Reading(bands=(4, 1))), four[..., [3, 0]])
    np.testing.assert_array_equal(decode_image(encoded(opaque, 'tiff'), 'x'), opaque[..., :3])
    for text in ('0', '1,x', '1.5', '-1'):
        refused(['dataset.bands'], Reading.parse, bands=text, error=ConfigError)


@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'uint16', 'float32', 'float64'])
@pytest.mark.parametrize('interleave', ['pixel', 'band'])
def test_tiffs_of_many_bands(dtype, interleave):
    rasterio = pytest.importorskip('rasterio', reason='reads TIFFs of many bands')
    for count, compress in ((1, 'none'), (2, 'lzw'), (3, 'deflate'), (4, 'none'), (7, 'lzw')):
        array = values(120, count, dtype=dtype)
        with rasterio.MemoryFile() as memory:
            shape = {'height': SIZE[0], 'width': SIZE[1], 'count': count, 'dtype': dtype}
            more = {'compress': compress, 'interleave': interleave, 'photometric': 'minisblack'}
            more['transform'] = rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)
            with memory.open(driver='GTiff', **shape, **more) as opened:
                opened.write(array.transpose(2, 0, 1))
            data = memory.read()
        reading = Reading((0, 120), tuple(range(1, count + 1)))
        np.testing.assert_array_equal(decode_values(data, 'x', reading), array)
        levels = array if dtype == 'uint8' else array / 120 * 255
        np.testing.assert_allclose(
            decode_image(data, 'x', reading=Reading((0, 120 if dtype != 'uint8' else 255), reading.bands)),
            np.rint(levels), atol=0 if dtype == 'uint8' else 1,
        )  # fmt: skip
        if count in (2, 4, 7):
            refused([f'x has {count} bands'], decode_image, data, 'x')
        if count == 1:
            with rasterio.MemoryFile() as memory:
                with memory.open(driver='GTiff', **shape, **more | {'compress': 'lerc'}) as opened:
                    opened.write(array.transpose(2, 0, 1))
                np.testing.assert_array_equal(decode_values(memory.read(), 'x', reading), array)
        if count > 1:
            refused(['copy or download the file again'], decode_values, data[: len(data) // 2], 'x', reading)


def test_without_rasterio_its_files_name_it(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'rasterio', None)
    data = encoded(values(256, 3, dtype=np.uint8), 'tiff')
    entry = struct.pack('<HHI', 258, 3, 3)  # its bits per sample, which follow: 16 instead of 8
    place = struct.unpack('<I', data[data.index(entry) + 8 :][:4])[0]
    deep = data[:place] + struct.pack('<3H', 16, 16, 16) + data[place + 6 :]
    refused(['x, a TIFF', 'rasterio', 'pip install rasterio'], decode_image, deep, 'x')


# --- Pages, sizes, endings


def test_several_images_in_a_file_are_counted_and_one_is_chosen():
    pages = [values(256, dtype=np.uint8, seed=i) for i in range(3)]
    first, *others = map(Image.fromarray, pages)
    for form in ('tiff', 'gif', 'png'):
        data = encoded(first, form, save_all=True, append_images=others)
        refused(['a.x holds 3 images', 'dataset.page'], decode_image, data, 'a.x')
        refused(['holds 3 images'], decode_image, data, 'a.x', reading=Reading(page=4))
        for number, page in enumerate(pages, 1):
            image = decode_image(data, 'x', reading=Reading(page=number))
            np.testing.assert_array_equal(image, np.stack([page] * 3, -1))
    single = encoded(first, 'png')
    np.testing.assert_array_equal(decode_image(single, 'x', reading=Reading(page=1))[..., 0], pages[0])
    refused(['page'], Reading.parse, page=-1, error=ConfigError)


def test_overviews_and_masks_are_no_pages():
    stream = io.BytesIO()
    page = values(256, dtype=np.uint8)
    with TiffImagePlugin.AppendingTiffWriter(stream) as file:
        for kind, image in ((0, page), (1, page[::2, ::2]), (4, page > 99)):
            Image.fromarray(image).save(file, 'tiff', tiffinfo={254: kind})
            file.newFrame()
    np.testing.assert_array_equal(decode_image(stream.getvalue(), 'x')[..., 0], page)


@pytest.mark.filterwarnings('error::PIL.Image.DecompressionBombWarning')
def test_max_pixels_is_the_only_limit():
    data = encoded(np.zeros(SIZE, np.uint8), 'png')
    for kind in (data, encoded(np.zeros(SIZE, np.uint8), 'tiff')):
        refused(
            ['a.png is too large: 20x12', '239 pixels', 'dataset.max_pixels'],
            decode_image, kind, 'a.png', reading=Reading(max_pixels=239),
        )  # fmt: skip
        assert decode_image(kind, 'x', reading=Reading(max_pixels=240)).shape == (*SIZE, 3)
    # Above Pillow's own limit of 179 million pixels: only its missing content is refused.
    chunk = lambda kind, body: (
        struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    )
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', 20_000, 20_000, 1, 0, 0, 0, 0))
    data = b'\x89PNG\r\n\x1a\n' + head + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')
    refused(['too large: 20000x20000'], decode_image, data, 'x', reading=Reading(max_pixels=10**8))
    for limit in (4 * 10**8, 10**10):
        with open_picture(data, 'x', 'image', limit) as image:
            assert image.size == (20_000, 20_000)


def test_endings_are_those_of_training_and_prediction(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    image = Image.fromarray(values(256, 3, dtype=np.uint8))
    (tmp_path / 'images/train').mkdir(parents=True)
    (tmp_path / 'labels/train').mkdir(parents=True)
    forms = {
        '.jfif': 'jpeg',
        '.jpe': 'jpeg',
        '.gif': 'gif',
        '.ppm': 'ppm',
        '.jp2': 'jpeg2000',
        '.TIF': 'tiff',
    }
    for ending, form in forms.items():
        image.save(tmp_path / f'images/train/{form}{ending}', form)
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / f'labels/train/{form}.png')
    (tmp_path / 'images/train/jpeg.jpe').unlink()
    source = FolderSource(own_dataset(name='folder', classes='a,b', root=str(tmp_path)), tmp_path, 'train')
    assert len(source) == 5
    for index in range(5):
        assert source[index]['image'].shape == (*SIZE, 3)
    assert not caplog.text
    for name in ('a.psd', 'b.PSD', 'c'):
        (tmp_path / 'images/train' / name).touch()
    told = '3 files are not read as images, by their endings: .psd (2), no ending (1)'
    assert len(find_images(tmp_path / 'images')) == 5
    assert caplog.text.count(told) == 1
    FolderSource(source.dataset, tmp_path, 'train')
    assert caplog.text.count(told) == 2
    assert unseen([f'a{ending.upper()}' for ending in IMAGE_ENDINGS]) == ''


def test_heic_needs_a_package(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'pillow_heif', None)
    refused(['a.heic', 'pip install pillow-heif'], decode_image, b'\0\0\0\x18ftypheic' + bytes(9), 'a.heic')
