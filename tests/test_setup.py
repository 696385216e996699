"""--mode=setup: the folders that tools write, what it says of them, and that its configs work."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ann_jax import build, main
from ann_jax.command import load_config
from ann_jax.config import validate
from ann_jax.errors import ConfigError, DataError, SaveError
from ann_jax.modes.check import check
from ann_jax.modes.setup import setup
from ann_jax.typing import IGNORE

SIZE = (40, 56)
RNG = np.random.default_rng(0)
ROAD, CAR = (128, 64, 128), (0, 0, 142)
PALETTE = [(0, 0, 0), ROAD, CAR]


def photo(path, size=SIZE):
    """A picture with many colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (*size, 3), np.uint8)).save(path)


def label(path, values=(0, 1, 2), colors=None, palette=None):
    """A label in whose rows each value has a part; saved as colours if there are some."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = np.array(values, np.uint8)[np.arange(SIZE[0]) % len(values)][:, None].repeat(SIZE[1], 1)
    picture = Image.fromarray(np.array(colors, np.uint8)[raw] if colors else raw)
    if palette:
        picture.putpalette([channel for color in palette for channel in color])
    picture.save(path)


def pairs(root, images, labels, names='abcd', **kwargs):
    for name in names:
        photo(root / images.format(name))
        label(root / labels.format(name), **kwargs)


def write(root, name, text):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text if isinstance(text, str) else json.dumps(text))


def roboflow(root):
    for split in ('train', 'valid', 'test'):
        pairs(root, f'{split}/{{0}}_png.rf.0{{0}}f.jpg', f'{split}/{{0}}_png.rf.0{{0}}f_mask.png')
        write(root, f'{split}/_classes.csv', 'Pixel Value, Class\n0, background\n1, road\n2, car\n')


def cvat(root):
    pairs(root, 'JPEGImages/{}.jpg', 'SegmentationClass/{}.png', colors=PALETTE)
    for name in 'abcd':
        label(root / f'SegmentationObject/{name}.png', colors=[(0, 0, 0), (128, 0, 0), (0, 128, 0)])
    write(root, 'ImageSets/Segmentation/default.txt', 'a\nb\nc\nd\n')
    names = '# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:0,0,142::\nroad:128,64,128::\n'
    write(root, 'labelmap.txt', names)


def supervisely(root):
    pairs(root, 'ds/img/{}.jpg', 'ds/masks_machine/{}.png', colors=[(0, 0, 0), (1, 1, 1), (2, 2, 2)])
    for name in 'abcd':
        photo(root / f'ds/masks_human/{name}.png')
        write(root, f'ds/ann/{name}.jpg.json', {'objects': [], 'size': {}})
    classes = [{'title': 'road', 'color': '#804080', 'id': 4}, {'title': 'car', 'color': '#00008E', 'id': 9}]
    write(root, 'meta.json', {'classes': classes})


def voc(root):
    pairs(root, 'JPEGImages/{}.jpg', 'SegmentationClass/{}.png', palette=PALETTE)
    for split, names in (('train', 'a\nb'), ('val', 'c'), ('trainval', 'a\nb\nc')):
        write(root, f'ImageSets/Segmentation/{split}.txt', names)
        write(root, f'ImageSets/Main/{split}.txt', 'a\n')


def paddleseg(root):
    pairs(root, 'images/{}.jpg', 'labels/{}.png')
    write(root, 'train.txt', 'images/a.jpg labels/a.png\nimages/b.jpg labels/b.png\n')
    write(root, 'val.txt', 'images/c.jpg labels/c.png\n')
    write(root, 'labels.txt', 'background\nroad\ncar\n')


def mmseg(root):
    for split in ('train', 'val'):
        pairs(root, f'img_dir/{split}/{{}}.jpg', f'ann_dir/{split}/{{}}.png')


def carvana(root):
    pairs(root, 'train/{}.jpg', 'train_masks/{}_mask.gif', values=(0, 255))
    for name in 'xy':
        photo(root / f'test/{name}.jpg')


def beside(root):
    pairs(root, '{}.jpg', '{}.png', values=(0, 255))


def camvid(root):
    pairs(root, 'data/{}.png', 'data/{}_L.png', colors=[ROAD, CAR, (64, 0, 128)])
    write(root, 'label_colors.txt', '128 64 128\tRoad\n0 0 142\t\tCar\n64 0 128 Tree\n')


def kaggle(root):
    pairs(root, 'train/{}_sat.jpg', 'train/{}_mask.png', colors=PALETTE)
    write(root, 'class_dict.csv', 'name,r,g,b\nroad,128,64,128\ncar,0,0,142\nsky,1,2,3\n')


def potsdam(root):
    colors = [(255, 255, 255), (0, 0, 255), (0, 255, 255)]
    pairs(root, 'RGB/top_2_1{}_RGB.tif', '5_Labels_all/top_2_1{}_label.tif', names='0123', colors=colors)


def scenes(root):
    for scene in ('one', 'two'):
        pairs(root, f'{scene}/images/{{}}.jpg', f'{scene}/masks/{{}}.png', values=(0, 85, 170, 255))


def numbered(root):
    pairs(root, 'images/image_{}.png', 'masks/mask_{}.png', names='1234')
    photo(root / 'images/image_9.png')


def partly(root):
    for split in ('train', 'val'):
        pairs(root, f'images/{split}/{{}}.jpg', f'labels/{split}/{{}}.png')
        photo(root / f'images/{split}/alone.jpg')


def cityscapes(root):
    for split in ('Train', 'Val'):
        for city in ('ulm', 'bonn'):
            images = f'leftImg8bit/{split}/{city}/{{}}_leftImg8bit.png'
            pairs(root, images, f'gtFine/{split}/{city}/{{}}_gtFine_labelIds.png', names='12')
            pairs(root, images, f'gtFine/{split}/{city}/{{}}_gtFine_color.png', names='12', colors=PALETTE)


def loveda(root):
    for split in ('Train', 'Val'):
        for scene in ('Urban', 'Rural'):
            pairs(root, f'{split}/{scene}/images_png/{{}}.png', f'{split}/{scene}/masks_png/{{}}.png', '01')


def drive(root):
    pairs(
        root,
        'training/images/2{}_training.tif',
        'training/1st_manual/2{}_manual1.gif',
        '123',
        values=(0, 255),
    )
    for name in '123':
        label(root / f'training/mask/2{name}_training_mask.gif', values=(0, 255))


def outlines(root):
    """A mask of the field of view, which is the same all over, and has the better name."""
    pairs(root, 'images/{}.tif', 'manual/{}.gif', values=(0, 255))
    pairs(root, 'images/{}.tif', 'field_mask/{}.gif', values=(255,))


def prefixed(root):
    for split in ('train', 'val'):
        pairs(root, f'images/{split}/{{}}.jpg', f'labels/{split}/mask_{{}}.png', names=('x_1', 'x_2'))


def label_first(root):
    pairs(root, 'images/{}.png', 'labels/{}.png')
    for split, names in (('train', 'abc'), ('val', 'd')):
        write(root, f'{split}.txt', ''.join(f'labels/{n}.png images/{n}.png\n' for n in names))


def palettes(root):
    """The same colours at other places of the palettes, which only colours tell apart."""
    pairs(root, 'images/{}.jpg', 'labels/{}.png', names='ab', palette=PALETTE)
    pairs(root, 'images/{}.jpg', 'labels/{}.png', names='cd', palette=PALETTE[::-1])


def bands(root):
    """Four bands of 12 bits in 16 need two settings."""
    rasterio = pytest.importorskip('rasterio')
    pairs(root, 'images/{}.tif', 'labels/{}.tif')
    for path in (root / 'images').iterdir():
        values = RNG.integers(0, 4096, (4, *SIZE)).astype(np.uint16)
        shape = {
            'transform': rasterio.Affine(1, 0, 5, 0, -1, 5),
            'count': 4,
            'height': SIZE[0],
            'width': SIZE[1],
            'dtype': 'uint16',
        }
        with rasterio.open(path, 'w', driver='GTiff', photometric='minisblack', **shape) as target:
            target.write(values)


def pages(root):
    pairs(root, 'images/{}.tif', 'labels/{}.png')
    for path in (root / 'images').iterdir():
        image = Image.open(path)
        image.load()
        image.save(path, save_all=True, append_images=[image])


def signed(root):
    pairs(root, 'images/{}.jpg', 'labels/{}.tif')
    for path in (root / 'labels').iterdir():
        raw = np.array(Image.open(path)).astype(np.int32)
        Image.fromarray(np.array([-1, 0, 90_000, 1], np.int32)[raw]).save(path)


def pets(root):
    pairs(root, 'images/dog_{}.jpg', 'annotations/trimaps/dog_{}.png', values=(1, 2, 3))
    write(root, 'annotations/trainval.txt', 'dog_a 1 1 1\ndog_b 1 1 1\n')


def jpegs(root):
    pairs(root, 'images/{}.jpg', 'masks/{}.jpg', values=(0, 255))


# layout: (classes, label_map, number of images for training and evaluation, words of the report)
LAYOUTS = {
    roboflow: ('background,road,car', '', (4, 4), ['named *_mask.png', 'test has labels too']),
    cvat: ('background,car,road', '', (3, 1), ['held out of default', '0 0 142 (32.5 %)']),
    supervisely: ('background,road,car', '', (3, 1), ['meta.json lacks the background', 'masks_machine']),
    voc: ('class 0,class 1,class 2', '', (2, 1), ['ImageSets/Segmentation/{split}.txt', 'name them']),
    paddleseg: ('background,road,car', '', (2, 1), ['{split}.txt']),
    mmseg: ('class 0,class 1,class 2', '', (4, 4), ['ann_dir/{split}', '0 (35.0 %)']),
    carvana: ('background,object', '0:0,255:1', (3, 1), ['*_mask.gif', '255 (50.0 %)']),
    beside: ('background,object', '0:0,255:1', (3, 1), ['held out of train']),
    camvid: ('Road,Car,Tree', '', (3, 1), ['*_L.png', '64 0 128 (']),
    kaggle: ('background,road,car,sky', '', (3, 1), ['class_dict.csv lacks, was added as background']),
    potsdam: ('class 0,class 1,class 2', '', (2, 2), ['*_RGB.tif', '*_label.tif', '0 255 255 (']),
    scenes: (
        'class 0 (value 0),class 1 (value 85),class 2 (value 170),class 3 (value 255)',
        '0:0,85:1,170:2,255:3',
        (7, 1),
        ['lists of images and labels are written'],
    ),
    numbered: ('class 0,class 1,class 2', '', (3, 1), ['lists of images and labels are written']),
    partly: (
        'class 0,class 1,class 2',
        '',
        (4, 4),
        ['1 files are left out by a list', 'alone.jpg has no label'],
    ),
    loveda: ('class 0,class 1,class 2', '', (4, 4), ['lists of images and labels are written']),
    drive: ('background,object', '0:0,255:1', (2, 1), ['1st_manual', 'mask may hold labels too']),
    outlines: ('background,object', '0:0,255:1', (3, 1), ['labels    manual']),
    prefixed: ('class 0,class 1,class 2', '', (2, 2), ['lists of images and labels are written']),
    label_first: ('class 0,class 1,class 2', '', (3, 1), ['{split}.txt']),
    palettes: ('background,class 1,class 2', '', (3, 1), ['0 0 0 (33.8 %)', '128 64 128 (32.5 %)']),
    bands: ('class 0,class 1,class 2', '', (3, 1), ['4 bands', 'natural range']),
    pages: ('class 0,class 1,class 2', '', (3, 1), ['several images, of which the first']),
    signed: (
        'class 0 (value 0),class 1 (value 90000)',
        '-1:ignore,0:0,255:ignore,90000:1',
        (3, 1),
        ['-1 (35.0 %)'],
    ),
    pets: ('class 1,class 2,class 3', '0:ignore,1-3:0-2,255:ignore', (3, 1), ['1 is the first class']),
    jpegs: ('background,object', '0-127:0,128-255:1', (3, 1), ['labels are JPEG']),
    cityscapes: ('class 0,class 1,class 2', '', (4, 4), ['*_gtFine_labelIds.png']),
}


@pytest.mark.parametrize('layout', LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts_of_tools(layout, tmp_path, capsys, monkeypatch):
    """The config loads, checks as usable, and has the classes and splits that are there."""
    classes, label_map, counts, words = LAYOUTS[layout]
    root = tmp_path / f'{layout.__name__} files'
    layout(root)
    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    before = sorted(root.rglob('*'))
    file = setup(folder_config(root))
    said = capsys.readouterr().out
    for word in (*words, str(root), str(file)):
        assert word in said, said
    assert sorted(root.rglob('*')) == before
    config = load_config(str(file))
    validate(config)
    assert check(config) == 0, capsys.readouterr().out
    assert ('usable' if layout in (kaggle, jpegs) else 'usable: no problems') in capsys.readouterr().out
    dataset = build.dataset(config)
    assert ','.join(dataset.classes) == classes and config.dataset.label_map == label_map
    splits = config.dataset.train_split, config.dataset.eval_split
    samples = [build.source(config, split) for split in splits]
    assert tuple(map(len, samples)) == counts
    seen = {int(v) for source in samples for i in range(len(source)) for v in np.unique(source[i]['label'])}
    assert seen - {IGNORE} == set(range(len(classes.split(',')) - (layout is kaggle)))
    commands = [line for line in said.splitlines() if line.startswith('python -m ann_jax.main')]
    assert [re.search(r'--mode=\w+|$', line)[0] for line in commands] == [
        '--mode=check',
        '',
        '--mode=predict',
    ]
    channels = 4 if layout is bands else 3
    assert build.channels(config) == channels == samples[0][0]['image'].shape[2]
    for line in commands:
        words = dict(word.split('=', 1) for word in shlex.split(line)[3:])
        assert Path(words['--config']).samefile(file)
        assert Path(words.get('--config.predict.input', file)).is_file()


def written_config(root, where):
    """The config that is written for a folder."""
    return load_config(str(setup(folder_config(root), where)))


def test_white_that_is_a_colour(tmp_path, capsys):
    """Painted labels of which some are black and white alone."""
    pairs(tmp_path / 'd', 'images/{}.jpg', 'masks/{}.png', colors=[(0, 0, 0), (255, 0, 0), (255, 255, 255)])
    grey = np.zeros((*SIZE, 3), np.uint8)
    grey[::2] = 255
    for number in range(3):
        photo(tmp_path / f'd/images/{number}.jpg')
        Image.fromarray(grey).save(tmp_path / f'd/masks/{number}.png')
    config = written_config(tmp_path / 'd', tmp_path)
    assert check(config) == 0 and build.dataset(config).num_classes == 3, capsys.readouterr().out


def test_lines_of_ignored_colours_are_not_counted_as_classes(tmp_path, capsys):
    pairs(tmp_path / 'd', 'images/{}.jpg', 'masks/{}.png', colors=PALETTE)
    write(tmp_path / 'd', 'names.txt', 'road 128 64 128\ncar 0 0 142\nignore 0 0 0\nignore 255 255 255\n')
    config = written_config(tmp_path / 'd', tmp_path)
    assert 'classes   2: road, car\n' in capsys.readouterr().out
    assert build.dataset(config).classes == ('road', 'car')


@pytest.mark.parametrize('border', [False, True])
def test_palettes_in_the_order_of_no_file(border, tmp_path):
    """By their colours, classes are found whatever their order in the file, with a border of 255 too."""
    lines = 'background:0,0,0::\n', 'bus:0,128,0::\n', 'plane:128,0,0::\n'
    colors = [(0, 0, 0), (128, 0, 0), (0, 128, 0)] + [(224, 224, 192)] * 253
    pairs(
        tmp_path / 'd',
        'JPEGImages/{}.jpg',
        'SegmentationClass/{}.png',
        palette=colors,
        values=(0, 1, 2, 255) if border else (0, 1, 2),
    )
    write(
        tmp_path / 'd',
        'labelmap.txt',
        '# label:color_rgb:parts:actions\n' + ''.join(lines),
    )
    config = written_config(tmp_path / 'd', tmp_path)
    source = build.source(config, config.dataset.train_split)
    with Image.open(next((tmp_path / 'd/SegmentationClass').iterdir())) as image:
        raw = np.asarray(image)
    assert source.dataset.classes == ('background', 'bus', 'plane')
    np.testing.assert_array_equal(np.unique(source[0]['label'][raw == 1]), [2])
    np.testing.assert_array_equal(np.unique(source[0]['label'][raw == 2]), [1])


def test_masks_of_supervisely_without_the_last_class(tmp_path):
    pairs(tmp_path / 'd', 'ds/img/{}.jpg', 'ds/masks_machine/{}.png', values=(0, 1))
    write(tmp_path / 'd', 'meta.json', {'classes': [{'title': 'car'}, {'title': 'road'}]})
    config = written_config(tmp_path / 'd', tmp_path)
    assert build.dataset(config).classes == ('background', 'car', 'road')


def test_a_first_class_that_may_be_the_background_is_told(tmp_path, capsys):
    pairs(tmp_path / 'd', 'images/{}.jpg', 'labels/{}.png', values=(0, 1))
    write(tmp_path / 'd', 'classes.txt', 'car\nroad\ntree\n')
    written_config(tmp_path / 'd', tmp_path)
    assert 'value 0 is taken for car, the first in classes.txt' in capsys.readouterr().out


def test_who_is_held_out_of_written_lists(tmp_path, capsys):
    """As many as are told, though the list names paths and not samples."""
    for count in (4, 10):
        root = tmp_path / str(count)
        for number in range(count):
            photo(root / f'images/{number}.jpg')
            label(root / f'labels/{number}.png', values=(0, 1))
        photo(root / 'images/more.jpg')  # without a label
        config = written_config(root, tmp_path)
        train, val = (len(build.source(config, split)) for split in ('train', config.dataset.eval_split))
        assert f'{train} in train, {val} in val' in capsys.readouterr().out and train + val == count


def test_a_table_with_a_column_of_splits_is_refused(tmp_path):
    pairs(tmp_path / 'd', 'images/{}.jpg', 'masks/{}.png', values=(0, 1))
    lines = [f'images/{name}.jpg,masks/{name}.png,{"val" if name == "a" else "train"}' for name in 'abcd']
    write(tmp_path / 'd', 'data.csv', '\n'.join(['image,mask,split', *lines]))
    refuse(['data.csv has a column', 'train, val', 'lists={split}.csv'], tmp_path / 'd')


def test_a_class_file_that_is_not_understood_is_told(tmp_path, capsys):
    pairs(tmp_path / 'd', 'images/{}.jpg', 'labels/{}.png', values=(0, 1))
    write(tmp_path / 'd', 'classes.txt', 'wall\ncrack{thin}\n')
    written_config(tmp_path / 'd', tmp_path)
    assert "the line 'crack{thin}' is not understood" in capsys.readouterr().out


def folder_config(root):
    config = load_config('folder')
    config.dataset.root = str(root)
    return config


def refuse(words, root, error=DataError):
    with pytest.raises(error) as caught:
        setup(folder_config(root))
    for word in words:
        assert str(word) in str(caught.value), caught.value


def test_nothing_is_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    partly(tmp_path / 'mine')
    assert setup(folder_config('mine')) == Path('mine.py')
    text = Path('mine.py').read_text()
    refuse(['mine_train.txt exists already', 'nothing was written'], 'mine', SaveError)
    Path('mine_train.txt').unlink()
    Path('mine_val.txt').unlink()
    refuse(['mine.py exists already', '--workdir'], 'mine', SaveError)
    assert Path('mine.py').read_text() == text and not Path('mine_train.txt').exists()
    assert setup(folder_config('mine'), Path('other')) == Path('other/mine.py')


def test_annotations_are_recognised(tmp_path):
    photo(tmp_path / 'a/x.jpg')
    write(tmp_path, 'a/x.json', {'shapes': [], 'imagePath': 'x.jpg'})
    command = ['python -m ann_jax.tools.annotations', tmp_path / 'a', tmp_path / 'a_masks']
    refuse(['x.json is LabelMe', *command], tmp_path / 'a')
    write(tmp_path, 'a/x.json', {'images': [], 'annotations': [], 'categories': []})
    refuse(['COCO', *command], tmp_path / 'a')
    (tmp_path / 'a/x.json').unlink()
    write(tmp_path, 'a/annotations.xml', '<?xml version="1.0"?>\n<annotations>\n</annotations>')
    refuse(['CVAT', *command], tmp_path / 'a')
    (tmp_path / 'a/annotations.xml').unlink()
    write(tmp_path, 'a/x.txt', '0 0.1 0.1 0.5 0.1 0.5 0.6\n')
    refuse(['YOLO outlines', *command], tmp_path / 'a')
    write(tmp_path, 'a/x.txt', '0 0.1 0.1 0.5 0.1\n')
    refuse(['only boxes'], tmp_path / 'a')
    write(tmp_path, 'a/x.txt', '')
    refuse(['no picture in it has a label'], tmp_path / 'a')
    write(tmp_path, 'a/masks.zip', '')
    refuse(['masks.zip is an archive: unpack it'], tmp_path / 'a')
    write(tmp_path, 'a/project.json', [{'annotations': [], 'data': {'image': 'x.jpg'}}])
    refuse(['Label Studio', 'as COCO'], tmp_path / 'a')
    for tag in ('road', 'car'):
        label(tmp_path / f'a/task-1-annotation-2-by-1-tag-{tag}-0.png')
    refuse(['a picture per tag', 'as COCO'], tmp_path / 'a')


def test_folders_that_cannot_be_set_up(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for kind in ('SegmentationClass', 'SegmentationObject'):  # exported without images
        label(tmp_path / f'only/{kind}/a.png', colors=PALETTE)
    refuse(['no picture in it has a label'], 'only')
    refuse(['--config.dataset.root is missing'], '', ConfigError)
    refuse(['no such folder', 'absent'], tmp_path / 'absent')
    pairs(tmp_path / 'many', 'images/{}.jpg', 'masks/{}.png', colors=[(i, 255 - i, 7) for i in range(200)])
    for name in 'abcd':  # 400 colours of resized labels
        array = np.random.default_rng(ord(name)).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(np.kron(array, np.ones((2, 2, 1), np.uint8))).save(
            tmp_path / f'many/masks/{name}.png'
        )
    with pytest.raises(DataError):
        setup(folder_config('many'))
    pairs(tmp_path / 'red', 'images/{}.jpg', 'masks/{}.png', colors=[(255, 0, 0)] * 3)
    refuse(['255 0 0 all over', 'nothing to learn'], 'red')
    pairs(tmp_path / 'blank', 'images/{}.jpg', 'masks/{}.png', values=(0,))
    setup(folder_config('blank'))
    assert 'labels are 0 all over' in capsys.readouterr().out
    pairs(tmp_path / 'one', 'images/{}.jpg', 'masks/{}.png', names='a')
    photo(tmp_path / 'two/images/a.png', (SIZE[0], 7))
    label(tmp_path / 'two/masks/a.png')
    setup(folder_config('two'))
    assert 'a.png is 7x40 but its label' in capsys.readouterr().out
    config = load_config(str(setup(folder_config('one'))))
    assert config.dataset.eval_split == 'train' and check(config) == 0


@pytest.mark.parametrize('mode', [['--mode=setup'], ['--mode', 'setup'], ['-mode=setup'], ['-mode', 'setup']])
def test_the_command_needs_no_config(mode, monkeypatch):
    parsed: list[str] = []
    monkeypatch.setattr(main.command, 'parse', lambda argv, *_, **__: parsed.extend(argv[1:]))
    monkeypatch.setattr('sys.argv', ['ann-jax', *mode, '--config.dataset.root=x'])
    main.parse_flags(sys.argv)
    assert parsed == ['--config=folder', *mode, '--config.dataset.root=x']
    parsed.clear()
    monkeypatch.setattr('sys.argv', ['ann-jax', *mode, '--config=mine.py'])
    main.parse_flags(sys.argv)
    assert parsed == [*mode, '--config=mine.py']


def test_a_folder_with_the_name_of_a_mode_is_none(monkeypatch):
    parsed: list[str] = []
    monkeypatch.setattr(main.command, 'parse', lambda argv, *_, **__: parsed.extend(argv[1:]))
    monkeypatch.setattr('sys.argv', ['ann-jax', '--workdir', 'report', '--mode=train'])
    main.parse_flags(sys.argv)
    assert parsed == ['--workdir', 'report', '--mode=train']


def test_the_command_without_a_workdir_writes_to_the_current_folder(tmp_path):
    pairs(tmp_path / 'data', 'images/train/{0}.jpg', 'labels/train/{0}.png')
    result = subprocess.run(
        [sys.executable, '-m', 'ann_jax.main', '--mode=setup', '--config.dataset.root=data'],
        cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(Path(main.__file__).parent.parent)},
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert result.returncode == 0 and (tmp_path / 'data.py').is_file(), result.stderr
    assert 'comes with ann_jax' not in result.stderr  # of the config that it does not use
