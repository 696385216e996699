"""A folder of the user's own images: how it is described, and what people's files are like."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ann_jax.data.augment.transforms import Augment
from ann_jax.data.datasets import FolderSource
from ann_jax.data.decode.images import decode_image
from ann_jax.data.label_files import decode_raw
from ann_jax.data.labels import map_label
from ann_jax.data.own.settings import own_dataset
from ann_jax.data.pipeline import eval_batches, train_batches
from ann_jax.errors import ConfigError, DataError
from ann_jax.typing import IGNORE

RNG = np.random.default_rng(0)
SIZE = (12, 20)
RAW = RNG.integers(0, 3, SIZE).astype(np.uint8)
FLAGS = {'name': 'folder', 'classes': 'sky,road,car'}


def save(path, array, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **kwargs)


def picture(size=SIZE):
    return RNG.integers(0, 256, (*size, 3), np.uint8)


def tree(root, names=('a', 'b'), split='train', raw=RAW):
    for name in names:
        save(root / f'images/{split}/{name}.jpg', picture(raw.shape[:2]))
        save(root / f'labels/{split}/{name}.png', raw)


def source(root, split='train', **flags):
    return FolderSource(own_dataset(**FLAGS | {'root': str(root)} | flags), root, split)


def names(samples):
    return [samples[i]['name'] for i in range(len(samples))]


def refuse(words, **flags):
    with pytest.raises(ConfigError) as caught:
        own_dataset(**FLAGS | flags)
    for word in words:
        assert word in str(caught.value)


# --- How it is described


def test_folders(tmp_path):
    tree(tmp_path)
    samples = source(tmp_path)
    assert names(samples) == ['a', 'b'] and samples.dataset.classes == ('sky', 'road', 'car')
    np.testing.assert_array_equal(samples[0]['label'], RAW)
    assert len(set(samples.dataset.colors)) == 3


def test_training_on_several_splits(tmp_path):
    tree(tmp_path)
    tree(tmp_path, ('c',), 'val')
    splits = 'train+val', 'val'
    assert names(source(tmp_path, 'train+val', splits=splits)) == ['train/a', 'train/b', 'val/c']
    assert names(source(tmp_path, 'val', splits=splits)) == ['c']
    refuse(['val_share=0.1', 'not of train+val'], val_share=0.1, splits=splits)
    with pytest.raises(DataError, match='For more there is train: set --config.dataset.train_split'):
        source(tmp_path, 'train+more', splits=('train+more', 'val'))


def test_lists_of_names(tmp_path):
    for name in 'abc':
        save(tmp_path / f'photos/{name}.JPG', picture(), format='jpeg')
        save(tmp_path / f'masks/{name}.PNG', RAW, format='png')
    (tmp_path / 'train.txt').write_text('b.JPG\na\n\n')  # with or without the ending
    (tmp_path / 'val.txt').write_text('c\n', encoding='utf-8-sig')
    flags = {'images': 'photos', 'labels': 'masks', 'lists': '{split}.txt'}
    assert names(source(tmp_path, **flags)) == ['b', 'a']
    assert names(source(tmp_path, 'val', **flags)) == ['c']
    (tmp_path / 'val.txt').write_text('c\nd\n')
    with pytest.raises(DataError, match='no image .*d.jpg: add it, or remove d from'):
        source(tmp_path, 'val', **flags)
    (tmp_path / 'val.txt').write_text('')
    with pytest.raises(DataError, match='no samples in .*val.txt: expected'):
        source(tmp_path, 'val', **flags)


def test_lists_of_pairs_and_two_lists(tmp_path):
    for name in 'abc':
        save(tmp_path / f'x/{name}.png', picture())
        save(tmp_path / f'y/{name}_truth.png', RAW)
    (tmp_path / 'pairs_train.txt').write_text('x/b.png y/a_truth.png\nx/a.png y/b_truth.png\n')
    (tmp_path / 'i_train.txt').write_text('x/c.png\nx/a.png\n')
    (tmp_path / 'l_train.txt').write_text('y/b_truth.png\ny/c_truth.png\n')
    assert names(source(tmp_path, lists='pairs_{split}.txt')) == ['x/b', 'x/a']
    two = {'images': 'i_{split}.txt', 'labels': 'l_{split}.txt'}
    assert names(source(tmp_path, **two)) == ['x/c', 'x/a']
    (tmp_path / 'l_train.txt').write_text('y/b_truth.png\ny/q_truth.png\n')
    with pytest.raises(DataError, match='names .*y/q_truth.png, which does not exist'):
        source(tmp_path, **two)
    dataset = own_dataset(**FLAGS | {'root': str(tmp_path)} | two)
    rest = FolderSource(dataset, tmp_path, 'train', strict=False)
    assert names(rest) == ['x/c'] and len(rest.problems) == 1
    (tmp_path / 'l_train.txt').write_text('y/b_truth.png\n')
    with pytest.raises(DataError, match='lists 2 images, l_train.txt 1 labels'):
        source(tmp_path, **two)
    (tmp_path / 'l_train.txt').unlink()
    with pytest.raises(DataError, match='no file .*l_train.txt'):
        source(tmp_path, **two)


def test_labels_among_the_images(tmp_path):
    for name in 'ab':
        save(tmp_path / f'train/{name}.png', picture())
        save(tmp_path / f'train/{name}_mask.png', RAW)
    flags = {'images': '{split}', 'labels': '{split}', 'label_ending': '_mask.png'}
    assert names(source(tmp_path, **flags)) == ['a', 'b']


def test_names_with_blanks_and_dots(tmp_path):
    tree(tmp_path, ['my photo', 'v1.2 x', 'ünï'])
    assert names(source(tmp_path)) == ['my photo', 'v1.2 x', 'ünï']
    (tmp_path / 'train.txt').write_text('my photo\nv1.2 x\n', encoding='utf-8')
    flags = {'images': 'images/train', 'labels': 'labels/train', 'lists': '{split}.txt'}
    assert names(source(tmp_path, **flags)) == ['my photo', 'v1.2 x']


def test_label_map(tmp_path):
    raw = np.array([[0, 1, 2, 7, 255]], np.uint8)
    tree(tmp_path, raw=raw)
    for text, expected in (
        ('0:ignore,1:0,2:1,7:2,255:255', [IGNORE, 0, 1, 2, IGNORE]),
        ('1:road,2:car,others:sky', [0, 1, 2, 0, 0]),
        (' 0 : sky , others : ignore ', [0, IGNORE, IGNORE, IGNORE, IGNORE]),
        ('0:0,1:1,2:2,7:2,255:1', [0, 1, 2, 2, 1]),  # 255 can be a class
    ):
        assert source(tmp_path, label_map=text)[0]['label'].ravel().tolist() == expected
    with pytest.raises(DataError, match=r'7 \(1 pixels\).*Known: 0, 1, 2, 255'):
        source(tmp_path)[0]


def test_classes_from_a_file_with_colours(tmp_path):
    (tmp_path / 'names.txt').write_text('sky 70 130 180\ntraffic light, 250, 170, 30\n\n')
    dataset = own_dataset(name='folder', classes='names.txt', root=str(tmp_path))
    assert dataset.classes == ('sky', 'traffic light')
    assert dataset.colors == ((70, 130, 180), (250, 170, 30))
    raw = np.zeros((2, 2, 3), np.uint8)
    raw[0, 0], raw[0, 1] = dataset.colors
    tree(tmp_path, raw=raw)
    label = source(tmp_path, classes='names.txt')[0]['label']
    assert label.tolist() == [[0, 1], [IGNORE, IGNORE]]
    tree(tmp_path, raw=np.array([[0, 1]], np.uint8))  # values still are class indices
    assert source(tmp_path, classes='names.txt')[0]['label'].tolist() == [[0, 1]]


def test_descriptions_that_cannot_be_used(tmp_path):
    refuse(['there are 0 classes', 'names separated by commas'], classes='')
    refuse(['absent.txt', 'no such file'], classes='absent.txt')
    for text in ('', ' \n', '#\n'):
        (tmp_path / 'empty.txt').write_text(text)
        refuse(['empty.txt', 'there are 0 classes'], classes=str(tmp_path / 'empty.txt'))
    refuse(['the class sky appears twice'], classes='sky,road,sky')
    refuse(['there are 300 classes'], classes='300')
    refuse(['1:roof', 'names no class', 'sky, road, car'], label_map='0:0,1:roof')
    refuse(['1:3', 'index below 3'], label_map='1:3')
    refuse(["'x'", '32 bits'], label_map='x:1')
    refuse(['train and val', '{split}'], images='images', labels='labels')
    (tmp_path / 'names.txt').write_text('sky 70 130 180\nroad\n')
    refuse(["'road' has no colour"], classes='names.txt', root=str(tmp_path))
    assert own_dataset(name='folder', classes='2').classes == ('class 0', 'class 1')


# --- What files are like


@pytest.mark.parametrize(
    ('mode', 'expected'),
    [
        ('L', lambda rgb, image: np.repeat(np.array(image)[..., None], 3, -1)),
        ('LA', lambda rgb, image: np.repeat(np.array(image)[..., :1], 3, -1)),
        ('RGBA', lambda rgb, image: rgb),
        ('P', lambda rgb, image: np.array(image.convert('RGB'))),
        ('1', lambda rgb, image: np.repeat(np.array(image)[..., None] * np.uint8(255), 3, -1)),
    ],
)
@pytest.mark.parametrize('tail', [b'', b'more'])  # the second goes to Pillow
def test_png_images_of_every_mode(mode, expected, tail):
    rgb = picture()
    image = Image.fromarray(rgb).convert(mode)
    if 'A' in mode:
        image.putalpha(Image.fromarray(RAW))  # nearly transparent: its colours are taken as they are
    stream = io.BytesIO()
    image.save(stream, 'png')
    np.testing.assert_array_equal(decode_image(stream.getvalue() + tail, 'x'), expected(rgb, image))


@pytest.mark.parametrize('tail', [b'', b'more'])
def test_16_bit_images_keep_their_upper_byte(tail):
    cv2 = pytest.importorskip('cv2')
    deep = RNG.integers(0, 65536, SIZE).astype(np.uint16)
    data = cv2.imencode('.png', deep)[1].tobytes() + tail
    np.testing.assert_array_equal(decode_image(data, 'x'), np.repeat((deep >> 8)[..., None], 3, -1))
    deep = RNG.integers(0, 65536, (*SIZE, 3)).astype(np.uint16)
    data = cv2.imencode('.png', deep[..., ::-1])[1].tobytes() + tail
    np.testing.assert_array_equal(decode_image(data, 'x'), deep >> 8)


@pytest.mark.parametrize('format', ['bmp', 'tiff', 'webp'])
def test_other_formats(format, tmp_path):
    image = picture()
    tree(tmp_path, ['a'])
    (tmp_path / 'images/train/a.jpg').unlink()
    save(
        tmp_path / f'images/train/a.{format}',
        image,
        format=format,
        **{'lossless': True} if format == 'webp' else {},
    )
    np.testing.assert_array_equal(source(tmp_path)[0]['image'], image)


def test_palette_16_bit_and_transparent_labels(tmp_path):
    tree(tmp_path, ['a'])
    path = tmp_path / 'labels/train/a.png'
    palette = Image.fromarray(RAW)
    palette.putpalette([255, 0, 0] * 256)
    grey_alpha = Image.merge('LA', [Image.fromarray(RAW), Image.fromarray(RAW * 0)])
    for label in (palette, Image.fromarray(RAW.astype(np.uint16)), grey_alpha):
        label.save(path)
        np.testing.assert_array_equal(source(tmp_path)[0]['label'], RAW)
    for share, words in ((1, ''), (0.5, 'floating-point numbers such as 0.5'), (np.inf, 'such as inf')):
        with np.errstate(invalid='ignore'):
            Image.fromarray((RAW * share).astype(np.float32)).save(path, 'tiff')
        with pytest.raises(DataError, match=words) if words else contextlib.nullcontext():
            np.testing.assert_array_equal(source(tmp_path)[0]['label'], RAW)


def grey_png(raw, bits):
    """A greyscale PNG of few bits, which Pillow and OpenCV cannot write, by the PNG specification."""
    digits = lambda row: ''.join(format(value, f'0{bits}b') for value in row.tolist()).ljust(
        8 * len(row), '0'
    )
    pack = lambda row: np.packbits([int(d) for d in digits(row)])[: -(-len(row) * bits // 8)].tobytes()
    rows = b''.join(b'\0' + pack(row) for row in raw)
    chunk = lambda kind, data: (
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    )
    head = struct.pack('>IIBBBBB', raw.shape[1], raw.shape[0], bits, 0, 0, 0, 0)
    body = chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + body


@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_labels_of_few_bits_are_not_stretched(bits):
    raw = np.arange(35).reshape(5, 7) % 2**bits
    np.testing.assert_array_equal(decode_raw(grey_png(raw, bits), 'x').values, raw)
    palette = Image.fromarray(raw.astype(np.uint8))
    palette.putpalette([255, 0, 0] * 2**bits)
    stream = io.BytesIO()
    palette.save(stream, 'png', bits=bits)
    np.testing.assert_array_equal(decode_raw(stream.getvalue(), 'x').values, raw)


def test_labels_with_negative_values():
    scipy_io = pytest.importorskip('scipy.io')
    stream = io.BytesIO()
    scipy_io.savemat(
        stream, {'S': np.array([[0, -2, 1]], np.int16)}
    )  # -2 would be 255 from the end of a table
    layout = own_dataset(**FLAGS).layouts[0]
    with pytest.raises(DataError, match=r'-2 \(1 pixels\)'):
        map_label(decode_raw(stream.getvalue(), 'x', 'S').values, layout, 'x', 'folder')


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('drawn_on', ['upright', 'stored'])
def test_exif_orientation_and_labels_which_have_none(orientation, drawn_on, tmp_path):
    """Labels are drawn on the upright image, or, where only that has their size, on the stored one."""
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :16] = 250
    turned = {2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1]}
    turned |= {5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 8: lambda a: np.rot90(a)}
    turned |= {1: lambda a: a, 7: lambda a: a[::-1, ::-1].swapaxes(0, 1)}
    upright = turned[orientation](stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for folder, array in (('images', stored), ('labels', stored if drawn_on == 'stored' else upright)):
        (tmp_path / f'{folder}/train').mkdir(parents=True)
        if folder == 'images':
            Image.fromarray(array).save(tmp_path / 'images/train/a.png', exif=exif)
        else:
            label = Image.fromarray((array[..., 0] > 100).astype(np.uint8))
            label.save(tmp_path / 'labels/train/a.png')
    sample = source(tmp_path)[0]
    seen = upright if drawn_on == 'upright' or orientation <= 4 else stored
    np.testing.assert_array_equal(sample['image'], seen)
    assert sample['image'].shape[:2] == sample['label'].shape


def test_several_sizes_portrait_and_smaller_than_the_crop(tmp_path):
    sizes = {'a': (40, 60), 'b': (60, 40), 'c': (5, 7), 'd': (1, 1), 'e': (40, 60)}
    for name, size in sizes.items():
        tree(tmp_path, [name], raw=np.full(size, 1, np.uint8))
    samples = source(tmp_path)
    assert [samples[i]['label'].shape for i in range(5)] == list(sizes.values())
    batches = train_batches(samples, Augment(crop=(32, 48)), batch_size=10, seed=0)
    batch = next(batches)
    batches.close()
    assert batch['image'].shape == (10, 32, 48, 3) and set(np.unique(batch['label'])) == {1, IGNORE}
    padded = (batch['label'] == IGNORE).mean((1, 2))
    assert padded.max() > 0.9 and padded.min() == 0
    seen = {}
    for evaluated, own in eval_batches(samples, batch_size=2):
        scored = (evaluated['label'] != IGNORE).sum((1, 2)).tolist()
        seen |= dict(zip(own, scored, strict=False))
    assert seen == {name: height * width for name, (height, width) in sizes.items()}  # every pixel once
