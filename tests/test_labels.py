"""Labels as they come: every form in which people have them, and what the errors about the rest suggest."""

import contextlib
import io
import re
import struct

import numpy as np
import pytest
from PIL import Image

from ann_jax.data import label_map as maps
from ann_jax.data.classes import DATASETS
from ann_jax.data.datasets import FolderSource
from ann_jax.data.decode.images import decode_image
from ann_jax.data.decode.levels import Reading
from ann_jax.data.label_files import decode_raw
from ann_jax.data.labels import decode_label
from ann_jax.data.own.settings import own_dataset
from ann_jax.errors import ConfigError, DataError
from ann_jax.typing import IGNORE

RNG = np.random.default_rng(0)
RAW = RNG.integers(0, 3, (12, 20)).astype(np.uint8)
SKY, ROAD, CAR = COLORS = (70, 130, 180), (128, 64, 128), (0, 0, 142)
PAINTED = np.array(COLORS, np.uint8)[RAW]


def encoded(image, format='png', **kwargs):
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, format, **kwargs)
    return stream.getvalue()


def with_palette(indices, colors):
    image = Image.fromarray(indices)
    image.putpalette([channel for color in colors for channel in color])
    return image


def class_file(folder, *lines):
    path = folder / 'names.txt'
    path.write_text('\n'.join(lines), encoding='utf-8')
    return str(path)


@pytest.fixture
def painted(tmp_path):
    lines = [f'{name} {r} {g} {b}' for name, (r, g, b) in zip(('sky', 'road', 'car'), COLORS, strict=True)]
    return {'classes': class_file(tmp_path, *lines)}


def read(data, **settings):
    layout = own_dataset(**{'name': 'folder', 'classes': 'sky,road,car'} | settings).layouts[0]
    return decode_label(data, layout, 'x.png', 'folder')


def classes(data, **settings):
    return read(data, **settings).classes


def refuse(data, *words, **settings):
    with pytest.raises(DataError) as caught:
        read(data, **settings)
    message = str(caught.value)
    assert 'x.png' in message and all(word in message for word in words), message
    return message


# --- Values


@pytest.mark.parametrize('bands', ['RGB', 'RGBA', 'LA'])
def test_grey_in_several_channels_is_grey(bands):
    alpha = Image.fromarray(RNG.integers(0, 256, RAW.shape).astype(np.uint8))
    grey = Image.fromarray(RAW * 100)
    image = Image.merge(bands, [alpha if band == 'A' else grey for band in bands])
    label = classes(encoded(image), label_map='0:0,100:1,200:2')
    np.testing.assert_array_equal(label, RAW)


def test_one_bit_and_0_255_masks():
    mask = RAW > 0
    one_bit = Image.fromarray(mask)
    assert one_bit.mode == '1'
    two = {'classes': 'background,object'}
    np.testing.assert_array_equal(classes(encoded(one_bit), **two), mask)
    full = encoded(mask * np.uint8(255))
    np.testing.assert_array_equal(classes(full, **two, label_map='0:0,255:1'), mask)
    np.testing.assert_array_equal(classes(full, **two), np.where(mask, IGNORE, 0))


@pytest.mark.parametrize(
    ('dtype', 'format'),
    [('<u2', 'png'), ('<u2', 'tiff'), ('>u2', 'tiff'), ('<i4', 'tiff'), ('>i4', 'tiff'), ('u1', 'tiff')],
)
def test_ids_of_16_and_32_bits(dtype, format):
    wide = np.dtype(dtype).itemsize > 1
    ids = np.array([0, 26_001 if wide else 200, 65_535 if wide else 255], dtype)
    modes = {'<u2': 'I;16', '>u2': 'I;16B', '<i4': 'I', '>i4': 'I', 'u1': 'L'}
    if dtype == '>i4':  # Pillow writes only little-endian ones: the bytes by the TIFF 6.0 specification
        data = big_endian_tiff(ids[RAW])
    else:
        data = encoded(Image.frombytes(modes[dtype], RAW.shape[::-1], ids[RAW].tobytes()), format)
    text = ','.join(f'{value}:{i}' for i, value in enumerate(ids.tolist()))
    np.testing.assert_array_equal(classes(data, label_map=text), RAW)


def big_endian_tiff(array):
    height, width = array.shape
    entries = {256: width, 257: height, 258: 32, 259: 1, 262: 1, 273: 8 + 2 + 12 * 10 + 4, 277: 1}
    entries |= {278: height, 279: array.nbytes, 339: 2}
    short = lambda tag: tag in (258, 259, 262, 277, 339)
    directory = b''.join(
        tag.to_bytes(2)
        + (b'\0\3' if short(tag) else b'\0\4')
        + b'\0\0\0\1'
        + (value.to_bytes(2) + b'\0\0' if short(tag) else value.to_bytes(4))
        for tag, value in sorted(entries.items())
    )
    head = b'MM\0*' + (8).to_bytes(4) + len(entries).to_bytes(2)
    return head + directory + bytes(4) + array.astype('>i4').tobytes()


def test_negative_and_large_values_are_mapped_and_others_covers_them():
    data = encoded(Image.fromarray(np.array([[0, -2, 70_000, 2_000_000_000]], np.int32)), 'tiff')
    message = refuse(data, '-2 (1 pixels)', '70000 (1 pixels)')
    text = re.search(r'--config\.dataset\.label_map=(\S+), or', message)[1]
    assert classes(data, label_map=text).tolist() == [[0, *[IGNORE] * 3]]
    for rest in (',others:ignore', ',2000000000:ignore', ',71000-72000:1,2000000000:ignore'):
        label = classes(data, label_map='0:1,-2:2,70000:0' + rest)
        assert label.tolist() == [[1, 2, 0, IGNORE]]
    refuse(data, '70000', 'Known: -2, 0, 60000, 2000000000', label_map='0:1,-2:2,60000:0,2000000000:0')
    many = encoded(Image.fromarray(np.arange(300, dtype=np.int32)[None] * 1000), 'tiff')
    refuse(many, '65536 values to at most 254 classes')


@pytest.mark.parametrize(('dtype', 'last'), [('uint32', 4_000_000_000), ('int8', -1), ('float64', 2)])
def test_tiffs_that_pillow_reads_otherwise_or_not(dtype, last):
    rasterio = pytest.importorskip('rasterio')
    shape = dict(zip(('height', 'width'), RAW.shape, strict=True))
    place = {'transform': rasterio.Affine(1, 0, 5, 0, -1, 5)}
    with rasterio.MemoryFile() as file:
        with rasterio.open(file.name, 'w', driver='GTiff', count=1, dtype=dtype, **shape, **place) as target:
            target.write(np.array([0, 1, last], dtype)[RAW], 1)
        data = bytes(file.getbuffer())
    np.testing.assert_array_equal(classes(data, label_map=f'0:0,1:1,{last}:2'), RAW)


@pytest.mark.parametrize('mode', ['RGBA', 'LA'])
def test_a_label_whose_alpha_alone_tells_pixels_apart(mode, tmp_path):
    """Its colour says nothing, and the alpha of other labels may be the same all over."""
    alpha = Image.fromarray((RAW > 0) * np.uint8(255))
    one = Image.new('L', alpha.size, 255)
    image = Image.merge(mode, [one] * (len(mode) - 1) + [alpha])
    image.save(old := tmp_path / 'old.png')
    message = refuse(old.read_bytes(), '255 all over', 'alpha')
    cure, new = re.search(r'PIL\..*', message)[0], tmp_path / 'new.png'
    exec(f'import PIL.Image; {cure}', {'old': old, 'new': new})
    label = classes(new.read_bytes(), classes='background,object', label_map='0:0,255:1')
    np.testing.assert_array_equal(label, RAW > 0)


def test_more_than_8_bits_in_several_channels_are_not_cut_off():
    cv2 = pytest.importorskip('cv2')
    deep = np.repeat(RAW.astype(np.uint16)[..., None], 3, -1)  # Pillow would read zeros
    refuse(cv2.imencode('.png', deep)[1].tobytes(), '16 bits', 'greyscale PNG')


def test_several_pictures_in_one_file():
    overview = Image.fromarray(RAW[::2, ::2])  # a smaller copy, as GeoTIFFs have
    overview.encoderinfo = {'tiffinfo': {254: 1}}
    data = encoded(RAW, 'tiff', save_all=True, append_images=[overview])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    np.testing.assert_array_equal(classes(data), RAW)
    pages = [Image.fromarray(RAW), Image.fromarray(RAW)]
    data = encoded(pages[0], 'tiff', save_all=True, append_images=pages[1:])
    refuse(data, '2 pictures', 'save one')


# --- Palettes and colours


def test_palettes_in_any_order_mean_their_colours(painted):
    for order in ([0, 1, 2], [2, 0, 1]):
        place = np.argsort(order)
        image = with_palette(place[RAW].astype(np.uint8), [COLORS[i] for i in order])
        np.testing.assert_array_equal(np.array(image.convert('RGB')), PAINTED)
        found = read(encoded(image), **painted)
        assert found.by_color
        np.testing.assert_array_equal(found.classes, RAW)
        # Values count where label_map says so, and where no colours are given.
        np.testing.assert_array_equal(classes(encoded(image), **painted, label_map='0-2:0-2'), place[RAW])
        np.testing.assert_array_equal(classes(encoded(image)), place[RAW])
    np.testing.assert_array_equal(classes(encoded(PAINTED), **painted), RAW)


def test_colours_of_the_palette_that_no_class_has(painted):
    data = encoded(with_palette(RAW, [SKY, ROAD, (0, 0, 140)]))
    refuse(
        data,
        'rgb(0, 0, 140)',
        'nearest car rgb(0, 0, 142)',
        "'ignore 0 0 140'",
        'label_map=0-2:0-2,255:ignore',
        **painted,
    )


def test_the_last_value_of_a_palette_is_ignored_unless_its_colour_has_a_class(painted):
    raw = RAW.copy()
    raw[0] = 255
    colors = np.zeros((256, 3), int)
    colors[:3], colors[255] = COLORS, (224, 224, 192)  # as in VOC
    np.testing.assert_array_equal(classes(encoded(with_palette(raw, colors)), **painted), raw)
    colors[255] = CAR
    label = classes(encoded(with_palette(raw, colors)), **painted)
    np.testing.assert_array_equal(label, np.where(raw == 255, 2, raw))


def test_colours_and_values_that_the_class_file_ignores(tmp_path):
    lines = 'ignore 0 0 0', 'sky 70 130 180', 'ignore 255 255 255', 'road 128 64 128'
    settings = {'classes': class_file(tmp_path, *lines)}
    values = np.array([[0, 1, 2, 3, 255]], np.uint8)
    colors = np.array([(0, 0, 0), SKY, (255, 255, 255), ROAD], np.uint8)
    assert classes(encoded(values), **settings).tolist() == [[IGNORE, 0, IGNORE, 1, IGNORE]]  # lines
    found = read(encoded(colors[None]), **settings)
    assert found.classes.tolist() == [[IGNORE, 0, IGNORE, 1]] and found.black() == 1
    dataset = own_dataset(name='folder', **settings)
    assert dataset.classes == ('sky', 'road') and dataset.colors == (SKY, ROAD)
    settings = {'classes': class_file(tmp_path, '7 ignore', '8 sky', '9 ignore', '11 road')}
    assert classes(encoded(values[:, :1] + np.arange(7, 10, dtype=np.uint8)), **settings).tolist() == [
        [IGNORE, 0, IGNORE]
    ]
    assert own_dataset(name='folder', classes='ignore,road').classes == ('ignore', 'road')


@pytest.mark.parametrize('form', ['RGB', 'P', 'L'])
def test_black_that_nobody_listed_is_counted(form, tmp_path):
    lines = ['sky 9 9 9', 'ignore 255 255 255', 'road 7 7 7']
    colors = [(9, 9, 9), (255, 255, 255), (0, 0, 0)]
    image = with_palette(RAW, colors)
    found = read(encoded(image.convert(form)), classes=class_file(tmp_path, *lines))
    np.testing.assert_array_equal(found.classes, np.where(RAW == 0, 0, IGNORE))
    assert found.black() == (RAW == 2).sum()


def test_grey_is_a_colour_only_where_it_fits_the_class_colours(tmp_path, painted):
    rgb = encoded(np.repeat(RAW[..., None], 3, -1))
    np.testing.assert_array_equal(classes(rgb, **painted), RAW)
    masks = {'classes': class_file(tmp_path, 'object 255 255 255', 'background 0 0 0')}
    for data in (
        encoded((RAW > 0) * np.uint8(255)),
        encoded(np.repeat((RAW > 0)[..., None] * np.uint8(255), 3, -1)),
    ):
        np.testing.assert_array_equal(classes(data, **masks), RAW == 0)


def test_colours_that_no_class_has(painted):
    mixed = PAINTED.copy()
    mixed[0, :2] = (127, 64, 128)
    message = refuse(
        encoded(mixed), 'rgb(127, 64, 128) (2 pixels), nearest road rgb(128, 64, 128)', **painted
    )
    assert 'JPEG' not in message
    refuse(encoded(PAINTED[..., ::-1]), 'red and blue are swapped', **painted)
    smooth = np.array(Image.fromarray(PAINTED).resize((60, 40), Image.Resampling.BILINEAR))
    refuse(encoded(smooth), 'JPEG', 'interpolation', 'more', **painted)
    refuse(encoded(PAINTED), 'class file', 'dataset.classes=names.txt', "'road ")


# --- Formats


def test_jpeg_masks_take_ranges(painted):
    mask = np.kron(RAW > 0, np.ones((7, 9), bool))  # edges within JPEG's blocks of 8 x 8
    for format, name in (('jpeg', 'a JPEG'), ('webp', 'a lossy WebP')):
        data = encoded(mask * np.uint8(255), format)
        assert len(np.unique(np.array(Image.open(io.BytesIO(data))))) > 2
        for settings in ({}, {'label_map': '0:0,255:1'}, {'label_map': '0:0,others:1'}, painted):
            refuse(data, name, 'label_map=0-127:0,128-255:1', **settings)
        found = read(data, classes='a,b', label_map='0-127:0,128-255:1')
        assert found.lossy and (found.classes == mask).mean() > 0.999
    refused = encoded(Image.fromarray(PAINTED), 'tiff', compression='jpeg')
    refuse(refused, 'compressed as JPEG')
    lossless = encoded(Image.fromarray(PAINTED), 'webp', lossless=True)
    np.testing.assert_array_equal(classes(lossless, **painted), RAW)
    with pytest.raises(DataError, match='a JPEG') as caught:
        decode_label(encoded(RAW, 'jpeg'), DATASETS['camvid'].layouts[0], 'x', 'camvid')
    assert 'label_map' not in str(caught.value)


def test_matlab_files():
    pytest.importorskip('scipy.io')
    newer = b'MATLAB 7.3 MAT-file, Platform: GLNXA64'.ljust(124) + b'\x00\x02IM' + bytes(388)
    with pytest.raises(DataError, match=r"v7\.3; save it with save\(\.\.\., '-v7'\)"):
        decode_raw(newer, 'x', 'S')
    stream = io.BytesIO()
    pytest.importorskip('scipy.io').savemat(stream, {'T': RAW, 'F': RAW / 2})
    for variable, words in (('S', 'it has no S'), ('F', 'whole numbers')):
        with pytest.raises(DataError, match=f'{words}.*label files of the dataset'):
            decode_raw(stream.getvalue(), 'x', variable)
    refuse(stream.getvalue(), 'a MATLAB file', 'save it as a PNG')


def test_the_limit_of_pixels_is_that_of_the_images(tmp_path):
    for kind, array in (('images', PAINTED), ('labels', RAW)):
        (tmp_path / kind / 'train').mkdir(parents=True)
        Image.fromarray(array).save(tmp_path / kind / 'train/a.png')
    dataset = own_dataset(name='folder', classes='3', root=str(tmp_path))
    for most in (RAW.size, RAW.size - 1):
        source = FolderSource(dataset, tmp_path, 'train', reading=Reading(max_pixels=most))
        if most == RAW.size:
            np.testing.assert_array_equal(source[0]['label'], RAW)
        else:
            with pytest.raises(DataError, match='label .*a.png is too large'):
                source.look(0, image=False)


@pytest.mark.parametrize('mode', ['L', 'P', '1'])
def test_every_hole_in_a_png_is_noticed(mode):
    noise = np.random.default_rng(0).integers(0, 2 if mode == '1' else 3, (60, 80)).astype(np.uint8)
    data = encoded(Image.fromarray(noise.astype(bool) if mode == '1' else noise).convert(mode))
    holes = [data[:i] + bytes(256) + data[i + 256 :] for i in range(0, len(data) - 256, 7)]
    accepted = 0
    for holed in holes:
        with pytest.raises(DataError, match='copy or download the file again'):
            decode_raw(holed, 'x')
        with contextlib.suppress(Exception), Image.open(io.BytesIO(holed)) as image:
            image.load()
            accepted += 1
    assert accepted or mode == '1'  # Pillow alone would not notice all
    for end in (len(data) - 1, len(data) - 12, 100):
        with pytest.raises(DataError, match='copy or download the file again'):
            decode_raw(data[:end], 'x')
    np.testing.assert_array_equal(decode_raw(data + b'more', 'x').values, noise)


@pytest.mark.parametrize('most', [1, 3, 200, 255, 300, 1000, 65_534, 65_535])
def test_values_of_a_pgm_are_those_in_it(most):
    """Pillow scales them to 8 or 16 bits."""
    raw = RNG.integers(0, most + 1, (12, 20))
    head = f'20 12 {most}\n'.encode()
    for data in (
        b'P5 ' + head + raw.astype('>u2' if most > 255 else 'u1').tobytes(),
        b'P2 ' + head + ' '.join(map(str, raw.ravel())).encode(),
    ):
        np.testing.assert_array_equal(decode_raw(data, 'x.pgm').values, raw)


@pytest.mark.filterwarnings('ignore:Dataset has no geotransform')
@pytest.mark.parametrize('bits', [1, 2, 4])
def test_values_of_a_tiff_of_few_bits_are_those_in_it(bits):
    rasterio = pytest.importorskip('rasterio', reason='writes them')
    raw = RNG.integers(0, 2**bits, (12, 20)).astype(np.uint8)
    with rasterio.MemoryFile() as file:
        shape = {'height': 12, 'width': 20, 'count': 1, 'dtype': 'uint8'}
        with file.open(driver='GTiff', nbits=bits, **shape) as opened:
            opened.write(raw, 1)
        np.testing.assert_array_equal(decode_raw(file.read(), 'x.tif').values, raw)


@pytest.mark.parametrize('size', [(12, 20), (3, 5)])
def test_a_bmp_of_black_and_white_bytes(size):
    """Pillow writes it and reads its bytes as bits."""
    raw = RNG.integers(0, 2, size).astype(np.uint8)
    data = encoded(with_palette(raw, [(0, 0, 0), (255, 255, 255)]), 'bmp')
    np.testing.assert_array_equal(decode_raw(data, 'x.bmp').values, raw)
    np.testing.assert_array_equal(decode_image(data, 'x.bmp'), np.repeat(255 * raw[..., None], 3, 2))


@pytest.mark.parametrize(
    ('header', 'greys'), [(40, (0, 255)), (40, range(16)), (40, range(0, 256, 17)), (12, range(16))]
)
def test_a_bmp_of_four_bits_with_a_palette_of_greys(header, greys):
    """Pillow takes its pixels for bits or bytes; the bytes here are by the specification."""
    raw = RNG.integers(0, len(greys), (5, 16)).astype(np.uint8)  # whose rows need no padding
    palette = b''.join(bytes([grey] * 3 + [0] * (header > 12)) for grey in greys)
    sizes = struct.pack('<HHHH' if header == 12 else '<iiHH', 16, 5, 1, 4)
    counts = struct.pack('<6I', 0, 40, 0, 0, len(greys), 0) if header > 12 else b''
    start = 14 + header + len(palette)
    data = struct.pack('<2s4I', b'BM', start + 40, 0, start, header) + sizes + counts + palette
    data += (raw[::-1, ::2] << 4 | raw[::-1, 1::2]).tobytes()
    np.testing.assert_array_equal(decode_raw(data, 'x.bmp').values, raw)
    levels = np.array(greys, np.uint8)[raw]
    np.testing.assert_array_equal(decode_image(data, 'x.bmp'), np.repeat(levels[..., None], 3, 2))


def test_a_tiff_that_stores_white_as_zero():
    """A bit is what is shown, as all programs have it; about values they differ."""
    mask = RAW > 0
    white = lambda image: encoded(image, 'tiff', tiffinfo={262: 0})
    data = white(mask)
    assert Image.open(io.BytesIO(data)).tag_v2[262] == 0
    np.testing.assert_array_equal(classes(data, classes='background,object'), mask)
    refuse(white(RAW), 'white as zero', 'save it as a greyscale PNG')


@pytest.mark.parametrize('values', [2, 3, 4, 256])
def test_a_grey_gif(values):
    """With 2 or 4 values, its palette is the greys themselves, and Pillow opens it as grey."""
    raw = np.arange(512).reshape(16, 32) % values
    np.testing.assert_array_equal(decode_raw(encoded(raw.astype(np.uint8), 'gif'), 'x.gif').values, raw)


def test_a_png_with_a_large_profile():
    """Pillow refuses one of more than a megabyte, unless it is told otherwise."""
    data = encoded(RAW, icc_profile=bytes(3_000_000))
    np.testing.assert_array_equal(decode_raw(data, 'x.png').values, RAW)
    np.testing.assert_array_equal(decode_image(data, 'x.png'), np.repeat(RAW[..., None], 3, 2))


def test_a_grey_picture_among_painted_ones(tmp_path):
    """Its colours count if one is that of a class, or if it is black and white."""
    settings = {'classes': class_file(tmp_path, 'road 255 0 0', 'wall 128 128 128', 'background 0 0 0')}
    rgb = lambda grey: encoded(np.repeat(np.array(grey, np.uint8)[..., None], 3, 2))
    assert classes(rgb([[0, 128, 0]]), **settings).tolist() == [[2, 1, 2]]
    for grey in ([[0, 255]], [[128, 1]]):
        refuse(rgb(grey), 'colours without a class', **settings)
    assert classes(rgb([[0, 1, 2, 255]]), **settings).tolist() == [[0, 1, 2, IGNORE]]  # values
    assert classes(rgb([[0, 255]]), **settings, label_map='0:0,255:1').tolist() == [[0, 1]]


# --- The settings that errors suggest


def test_the_suggested_setting_reads_the_label():
    raw = np.array([[0, 1, 2, 7, 9, 300]], np.uint16)
    data = encoded(raw)
    message = refuse(data, '7 (1 pixels)', '300 (1 pixels)')
    text = re.search(r'--config\.dataset\.label_map=(\S+), or', message)[1]
    assert classes(data, label_map=text).tolist() == [[0, 1, 2, *[IGNORE] * 3]]
    message = refuse(data, '300', label_map='0-9:sky')
    text = re.search(r'--config\.dataset\.label_map=(\S+), or', message)[1]
    assert text == '0-9:sky,300:ignore'
    assert classes(data, label_map=text).tolist() == [[0, 0, 0, 0, 0, IGNORE]]
    refuse(encoded(np.arange(100, dtype=np.uint8)[None]), 'JPEG', 'others:ignore', '0-127:0,128-255:1')
    message = refuse(encoded(RAW + np.uint8(1)), 'reduce_zero_label=True')
    np.testing.assert_array_equal(classes(encoded(RAW + np.uint8(1)), reduce_zero_label=True), RAW)


def test_reduce_zero_label():
    raw = np.array([[0, 1, 2, 3, 255]], np.uint8)
    assert classes(encoded(raw), reduce_zero_label=True).tolist() == [[IGNORE, 0, 1, 2, IGNORE]]
    refuse(
        encoded(raw + np.uint8(1)),
        '4 (1 pixels)',
        '0:ignore,1-3:0-2,255:ignore,4:ignore',
        reduce_zero_label=True,
    )
    with pytest.raises(ConfigError, match='1-3:0-2'):
        own_dataset(name='folder', classes='3', label_map='0:0', reduce_zero_label=True)


def test_label_maps_are_parsed_and_written():
    names = [f'c{i}' for i in range(10)]
    parse = lambda text: maps.parse(text, names)
    assert parse('0-2:ignore,3:c4,5-7:1-3').values == {
        **dict.fromkeys(range(3), IGNORE),
        3: 4,
        5: 1,
        6: 2,
        7: 3,
    }
    assert parse('1:1,others:0') == ({1: 1}, 0, False)
    assert parse('0-127:0,128-255:1').coarse and not parse('0-254:0,255:1').coarse
    assert not parse('0:0,others:1').coarse and not parse('0-9:0-9,10-255:1').coarse
    assert parse('0-65535:3').values == dict.fromkeys(range(65_536), 3)
    for values in (
        {-9: IGNORE, -3: 1, -2: 2, -1: 3, 0: 0, 70_000: 5},
        dict(enumerate(range(10))) | {255: IGNORE},
        {i: int(c) for i, c in enumerate(RNG.integers(0, 3, 40))},
        {i: IGNORE for i in range(5)} | {i: i - 5 for i in range(5, 15)},
        {3: 9, 4: IGNORE, 5: IGNORE},
    ):
        text = maps.write(values)
        assert parse(text).values == values, text
    assert maps.write(dict(enumerate(range(150))) | {255: IGNORE}) == '0-149:0-149,255:ignore'
    for text, words in (
        ('0-65536:1', 'more than 65536 values'),
        ('0-65535:1,-1:1', 'more than 65536 values'),
        ('5-2:1', 'range'),
        ('4294967296:1', '32 bits'),
        ('1:-1', 'names no class'),
        ('1-3:0-5', 'names no class'),
        ('1-3:8-10', 'names no class'),
        ('1:0,0-2:1', 'second meaning'),
        ('0:0,others:1,others:0', 'gives others a second meaning'),
        ('1', 'names no class'),
    ):
        with pytest.raises(ConfigError, match=words):
            parse(text)


def test_a_class_called_ignore():
    names = ('road', 'ignore')
    assert maps.parse('0:0,1:1,255:255', names).values == {0: 0, 1: 1, 255: IGNORE}
    with pytest.raises(ConfigError, match='may mean the class ignore.*1 for the class, or 255'):
        maps.parse('0:road,255:ignore', names)


def test_the_number_of_classes():
    assert own_dataset(name='folder', classes='254').num_classes == 254
    for text in ('255', '300', '1' + 12 * '0'):
        with pytest.raises(ConfigError, match=f'{text} classes, of at most 254'):
            own_dataset(name='folder', classes=text)
    for text in ('road', '1', '²'):  # isdigit() is true of the last
        with pytest.raises(ConfigError, match='background,'):
            own_dataset(name='folder', classes=text)
