"""Annotations drawn as labels: each kind, with masks that are known by themselves."""

import json
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ann_jax.command import load_config
from ann_jax.data.own.annotation_kinds import find_annotations
from ann_jax.errors import ConfigError, DataError
from ann_jax.modes.check import check
from ann_jax.modes.setup import setup
from ann_jax.tools.annotations import convert, main
from ann_jax.typing import IGNORE

HEIGHT, WIDTH = 30, 40


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(str(path).encode()))
    Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding='utf-8')


def box(top, left, bottom, right):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def label(path):
    return np.array(Image.open(path))


def runs(mask):
    """Uncompressed RLE of COCO: lengths of runs down the columns, zeros first."""
    flat = mask.T.ravel().astype(int)
    ends = [*np.flatnonzero(np.diff(flat)) + 1, flat.size]
    lengths = np.diff([0, *ends]).tolist()
    return {'size': list(mask.shape), 'counts': [0, *lengths] if flat[0] else lengths}


def rectangle(top, left, bottom, right):
    return [left, top, right, top, right, bottom, left, bottom]


def text(segmentation):
    """A compressed mask as JSON has it."""
    if isinstance(segmentation, dict) and isinstance(segmentation['counts'], bytes):
        return segmentation | {'counts': segmentation['counts'].decode()}
    return segmentation


def coco(root, split=''):
    photo(root / f'images/{split}/a.jpg')
    photo(root / f'images/{split}/b.jpg')
    masks = pytest.importorskip('pycocotools.mask', reason="pip install '.[annotations]'")
    odd, dot = box(3, 4, 9, 11) | box(12, 0, 13, 40), box(5, 5, 7, 7)
    objects = [
        (1, 7, [rectangle(5, 6, 10, 20), rectangle(20, 0, 25, 8)], 110),
        (1, 3, [rectangle(0, 0, 30, 40)], 1200),  # larger, so that it lies below
        (2, 3, runs(odd), odd.sum().item()),
        (2, 7, masks.encode(np.asfortranarray(dot.astype(np.uint8))), 4),
        (2, 7, [[1, 1, 2, 2]], 0),  # no area
    ]
    tree = {
        'images': [
            {'id': i, 'file_name': f'{name}.jpg', 'height': HEIGHT, 'width': WIDTH}
            for i, name in enumerate('ab', 1)
        ],
        'annotations': [
            {'id': i, 'image_id': image, 'category_id': category, 'segmentation': text(s), 'area': area}
            for i, (image, category, s, area) in enumerate(objects)
        ],
        'categories': [
            {'id': 7, 'name': 'car', 'supercategory': 'project'},
            {'id': 3, 'name': 'road', 'supercategory': 'project'},
            {'id': 0, 'name': 'project', 'supercategory': 'none'},
        ],
    }  # fmt: skip
    tree['annotations'].append(
        {'id': 9, 'image_id': 2, 'category_id': 7, 'bbox': [0, 0, 3, 3], 'segmentation': []}
    )
    write(root / f'annotations/instances_{split or "all"}2017.json', tree)
    a = box(0, 0, 30, 40) + (box(5, 6, 10, 20) | box(20, 0, 25, 8))  # 1 road, 2 car
    return {'a': a.astype(int) + (box(5, 6, 10, 20) | box(20, 0, 25, 8)), 'b': odd.astype(int) + dot}


@pytest.mark.parametrize('split', ['', 'train'])
def test_coco(split, tmp_path):
    expected = coco(tmp_path / 'in', split)
    said = convert(tmp_path / 'in', tmp_path / 'out')
    assert '2 labels of 3 classes drawn from COCO' in said and '1 boxes were left out' in said
    assert (tmp_path / 'out/classes.txt').read_text().split() == ['background', 'road', 'car']
    for name, mask in expected.items():
        np.testing.assert_array_equal(label(tmp_path / f'out/labels/{split}/{name}.png'), mask)
        data = (tmp_path / f'out/images/{split}/{name}.jpg').read_bytes()
        assert data == (tmp_path / f'in/images/{split}/{name}.jpg').read_bytes()


def test_coco_panoptic(tmp_path):
    photo(tmp_path / 'in/val/a.jpg')
    numbers = np.where(box(0, 0, 10, 40), 70_000, np.where(box(10, 0, 20, 40), 300, 0))
    picture = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)
    (tmp_path / 'in/panoptic_val').mkdir()
    Image.fromarray(picture).save(tmp_path / 'in/panoptic_val/a.png')
    segments = [{'id': 70_000, 'category_id': 2}, {'id': 300, 'category_id': 1}]
    tree = {
        'images': [{'id': 5, 'file_name': 'a.jpg', 'height': HEIGHT, 'width': WIDTH}],
        'annotations': [{'image_id': 5, 'file_name': 'a.png', 'segments_info': segments}],
        'categories': [{'id': 1, 'name': 'sky', 'isthing': 0}, {'id': 2, 'name': 'car', 'isthing': 1}],
    }
    write(tmp_path / 'in/panoptic_val.json', tree)
    convert(tmp_path / 'in', tmp_path / 'out')
    expected = np.where(box(0, 0, 10, 40), 2, np.where(box(10, 0, 20, 40), 1, IGNORE))
    np.testing.assert_array_equal(label(tmp_path / 'out/labels/val/a.png'), expected)


def labelme(root, name, shapes):
    photo(root / f'{name}.jpg')
    shapes = [{'label': n, 'points': p, 'shape_type': kind} for n, kind, p in shapes]
    tree = {'shapes': shapes, 'imagePath': f'{name}.jpg', 'imageHeight': HEIGHT, 'imageWidth': WIDTH}
    write(root / f'{name}.json', tree)


def test_labelme(tmp_path):
    outline = [[2.5, 3.1], [30.2, 5.7], [18.9, 27.4]]
    shapes = [
        ('road', 'polygon', outline),
        ('car', 'rectangle', [[20, 15], [10, 10]]),
        ('sign', 'circle', [[30, 20], [33, 24]]),
        ('__ignore__', 'rectangle', [[0, 0], [3, 1]]),
    ]
    labelme(tmp_path / 'in', 'train_1', shapes)  # a name that is no split
    labelme(tmp_path / 'in', 'b', [('car', 'linestrip', [[0, 5], [39, 5]])])
    photo(tmp_path / 'in/unlabelled.jpg')
    assert '1 images without annotations were left out' in convert(tmp_path / 'in', tmp_path / 'out')
    names = (tmp_path / 'out/classes.txt').read_text().split()
    assert sorted(names[1:]) == ['car', 'road', 'sign'] and names[0] == 'background'
    picture = Image.new('L', (WIDTH, HEIGHT))
    brush = ImageDraw.Draw(picture)
    brush.polygon([tuple(p) for p in outline], fill=names.index('road'), outline=names.index('road'))
    expected = np.array(picture)
    expected[10:16, 10:21] = names.index('car')  # both corners are in it
    brush.ellipse([25, 15, 35, 25], fill=99, outline=99)
    expected[np.array(picture) == 99] = names.index('sign')
    expected[:2, :4] = IGNORE
    np.testing.assert_array_equal(label(tmp_path / 'out/labels/train_1.png'), expected)
    line = label(tmp_path / 'out/labels/b.png') == names.index('car')
    assert line.any(1).sum() == 10 and line[5].all()
    bad = tmp_path / 'bad'
    labelme(bad, 'c', [('car', 'polygon', [[0, 0], [1, 1]])])
    with pytest.raises(DataError, match='holds only 1 outlines of less than 3 points'):
        convert(bad, tmp_path / 'more')


def test_cvat(tmp_path):
    pytest.importorskip('pycocotools', reason="pip install '.[annotations]'")
    photo(tmp_path / 'in/images/x/a.jpg')
    write(
        tmp_path / 'in/annotations.xml',
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task><labels>'
        '<label><name>road</name></label><label><name>car</name></label></labels></task></meta>'
        f'<image id="0" name="x/a.jpg" width="{WIDTH}" height="{HEIGHT}">'
        '<box label="car" xtl="5" ytl="5" xbr="10" ybr="10" z_order="2"></box>'
        '<polygon label="road" points="0,0;40,0;40,20;0,20" z_order="0"></polygon>'
        '<mask label="car" rle="1, 2, 2, 1" left="30" top="25" width="3" height="2" z_order="1"></mask>'
        '<box label="car" xtl="11" ytl="8" xbr="19" ybr="12" rotation="90"></box>'
        '<ellipse label="car" cx="30.2" cy="9.8" rx="6" ry="2" rotation="90"></ellipse>'
        '<polyline label="road" points="0,0;3,3"></polyline><tag label="car"></tag></image></annotations>',
    )
    said = convert(tmp_path / 'in', tmp_path / 'out', link=True)
    assert '1 polyline shapes were left out' in said and 'ellipse' not in said and 'tag' not in said
    expected = box(0, 0, 20, 40).astype(int)
    expected[5:10, 5:10] = 2
    expected[25:27, 30:33] = [[0, 2, 2], [0, 0, 2]]
    drawn = label(tmp_path / 'out/labels/x/a.png')
    expected[6:14, 13:17] = 2  # the box of 8 x 4, turned about its centre
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    inside = lambda by: ((columns - 30) / (2 + by)) ** 2 + ((rows - 10) / (6 + by)) ** 2 <= 1
    edge = inside(0.6) & ~inside(-0.6)
    expected[inside(0)] = 2
    np.testing.assert_array_equal(drawn[~edge], expected[~edge])
    assert (tmp_path / 'out/images/x/a.jpg').is_symlink()


def test_yolo_and_what_comes_after_it(tmp_path, monkeypatch, capsys):
    """The folder that is written can be set up and checked."""
    for split, names in (('train', 'abc'), ('val', 'd')):
        for name in names:
            photo(tmp_path / f'in/images/{split}/{name}.jpg')
            write(tmp_path / f'in/labels/{split}/{name}.txt', '1 0.25 0.1 0.75 0.1 0.75 0.5 0.25 0.5\n')
    write(tmp_path / 'in/labels/val/d.txt', '')
    write(tmp_path / 'in/data.yaml', 'names: [road, car]\n')
    monkeypatch.chdir(tmp_path)
    main(['in', 'out'])
    said = capsys.readouterr().out
    assert '4 labels of 3 classes' in said and '--config.dataset.root=out' in said
    np.testing.assert_array_equal(label('out/labels/train/b.png'), 2 * box(3, 10, 16, 31))  # both ends are in
    assert not label('out/labels/val/d.png').any()
    config = load_config('folder')
    config.dataset.root = 'out'
    config = load_config(str(setup(config)))
    assert config.dataset.classes == 'background,road,car' and config.dataset.eval_split == 'val'
    assert check(config) == 0


OUTLINE = '0.25 0.1 0.75 0.1 0.75 0.5 0.25 0.5'
DRAWN = box(3, 10, 16, 31)  # both ends are in


def same(one, two):
    return one.read_bytes() == two.read_bytes()


def yolo(root, labels, names='names: [road, car]\n'):
    """Files of labels: path below the root -> lines."""
    write(root / 'data.yaml', names)
    for path, lines in labels.items():
        write(root / path, lines)


def test_images_of_other_splits_have_the_same_names(tmp_path):
    for split in ('train', 'val'):
        photo(tmp_path / f'yolo/images/{split}/0.jpg')
    yolo(tmp_path / 'yolo', {'labels/train/0.txt': f'0 {OUTLINE}', 'labels/val/0.txt': f'1 {OUTLINE}'})
    convert(tmp_path / 'yolo', tmp_path / 'out')
    for value, split in enumerate(('train', 'val'), 1):
        assert same(tmp_path / f'out/images/{split}/0.jpg', tmp_path / f'yolo/images/{split}/0.jpg')
        np.testing.assert_array_equal(label(tmp_path / f'out/labels/{split}/0.png'), value * DRAWN)
    (tmp_path / 'yolo/images/val/0.jpg').unlink()  # that of train is no replacement
    with pytest.raises(DataError, match='1 of 2 images are missing'):
        convert(tmp_path / 'yolo', tmp_path / 'more')


def test_splits_of_images_and_labels_go_by_other_names(tmp_path):
    for split in ('training', 'validation'):
        photo(tmp_path / f'in/images/{split}/0.jpg')
    yolo(tmp_path / 'in', {'labels/trn/0.txt': f'0 {OUTLINE}', 'labels/val/0.txt': f'1 {OUTLINE}'})
    convert(tmp_path / 'in', tmp_path / 'out')
    for value, (split, of) in enumerate((('trn', 'training'), ('val', 'validation')), 1):
        assert same(tmp_path / f'out/images/{split}/0.jpg', tmp_path / f'in/images/{of}/0.jpg')
        np.testing.assert_array_equal(label(tmp_path / f'out/labels/{split}/0.png'), value * DRAWN)


@pytest.mark.parametrize('path', ['0.jpg', r'C:\data\0.jpg', '/on/another/computer/0.jpg', r'..\x\0.jpg'])
@pytest.mark.parametrize('folders', [('train', 'val'), ('cam1', 'cam2')])
def test_labelme_beside_images_or_in_folders_like_theirs(path, folders, tmp_path):
    for i, folder in enumerate(folders):
        shapes = [{'label': 'car', 'points': [[i, 0], [5, 5]], 'shape_type': 'rectangle'}]
        tree = {'shapes': shapes, 'imagePath': path, 'imageHeight': HEIGHT, 'imageWidth': WIDTH}
        for root, images in (('apart', 'images'), ('beside', 'annotations')):
            write(tmp_path / f'{root}/annotations/{folder}/0.json', tree)
            photo(tmp_path / f'{root}/{images}/{folder}/0.jpg')
    for root, images in (('apart', 'images'), ('beside', 'annotations')):
        out = tmp_path / f'{root}_out'
        convert(tmp_path / root, out)
        assert len([each for each in out.rglob('*') if each.is_file()]) == 5  # two pairs, and classes
        for i, folder in enumerate(folders):
            assert same(out / f'images/{folder}/0.jpg', tmp_path / f'{root}/{images}/{folder}/0.jpg')
            np.testing.assert_array_equal(label(out / f'labels/{folder}/0.png'), box(0, i, 6, 6))


def test_yolo_of_several_cameras(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for camera in ('cam1', 'cam2'):
        photo(Path(f'in/images/{camera}/0.jpg'))
    yolo(Path('in'), {'labels/cam2/0.txt': f'0 {OUTLINE}'})
    assert '1 images without annotations' in convert('in', 'one')
    assert same(Path('one/images/cam2/0.jpg'), Path('in/images/cam2/0.jpg'))
    yolo(Path('in'), {'labels/cam1/0.txt': f'1 {OUTLINE}'})
    convert('in', 'both')
    for value, camera in ((2, 'cam1'), (1, 'cam2')):
        assert same(Path(f'both/images/{camera}/0.jpg'), Path(f'in/images/{camera}/0.jpg'))
        np.testing.assert_array_equal(label(f'both/labels/{camera}/0.png'), value * DRAWN)
    said = convert('in/labels/cam1', 'part')  # images/ are where labels/ are
    assert said.startswith('1 labels') and 'without' not in said
    assert same(Path('part/images/0.jpg'), Path('in/images/cam1/0.jpg'))
    config = load_config('folder')
    config.dataset.root = 'both'
    assert check(load_config(str(setup(config)))) == 0


def test_yolo_beside_images_of_which_there_are_others(tmp_path):
    for path in ('0.jpg', 'a_preview/0.jpg'):
        photo(tmp_path / 'in' / path)
    yolo(tmp_path / 'in', {'0.txt': f'0 {OUTLINE}'})
    convert(tmp_path / 'in', tmp_path / 'out')
    assert same(tmp_path / 'out/images/0.jpg', tmp_path / 'in/0.jpg')
    (tmp_path / 'in/0.jpg').unlink()
    (tmp_path / 'in/b_preview').symlink_to(tmp_path / 'in/a_preview')  # another path of one image
    convert(tmp_path / 'in', tmp_path / 'link')
    assert same(tmp_path / 'link/images/a_preview/0.jpg', tmp_path / 'in/a_preview/0.jpg')


def test_yolo_labels_of_one_image(tmp_path):
    photo(tmp_path / 'in/images/0.jpg')
    yolo(tmp_path / 'in', {f'labels/{split}/0.txt': f'0 {OUTLINE}' for split in ('train', 'val')})
    with pytest.raises(DataError, match='both have labels of .*0.jpg: move one of them out of'):
        convert(tmp_path / 'in', tmp_path / 'out')
    shutil.move(tmp_path / 'in/labels/val', tmp_path)
    assert convert(tmp_path / 'in', tmp_path / 'out').startswith('1 labels')


def coco_of(names, annotations, **image):
    """COCO of images numbered from 0, and of annotations without what is always so."""
    size = {'height': HEIGHT, 'width': WIDTH}
    return {
        'images': [{'id': i, 'file_name': name} | size | image for i, name in enumerate(names)],
        'annotations': [{'id': i, 'category_id': 1} | each for i, each in enumerate(annotations)],
        'categories': [{'id': 1, 'name': 'road'}, {'id': 2, 'name': 'car'}],
    }


def test_coco_names_that_several_images_have(tmp_path):
    pytest.importorskip('pycocotools', reason="pip install '.[annotations]'")
    for camera in ('cam1', 'cam2'):
        photo(tmp_path / f'in/images/{camera}/0.jpg')
    objects = [{'image_id': 0, 'segmentation': [rectangle(1, 2, 3, 4)]}]
    write(tmp_path / 'in/all.json', coco_of(['0.jpg'], objects))
    with pytest.raises(DataError, match='all.json.*cam1/0.jpg or .*cam2/0.jpg: move those') as caught:
        convert(tmp_path / 'in', tmp_path / 'out')
    assert '\n' not in str(caught.value)
    (tmp_path / 'in/all.json').rename(tmp_path / 'in/cam2.json')  # a name tells which
    convert(tmp_path / 'in', tmp_path / 'named')
    assert same(tmp_path / 'named/images/cam2/0.jpg', tmp_path / 'in/images/cam2/0.jpg')
    write(tmp_path / 'in/cam2.json', coco_of(['cam1/0.jpg'], objects))  # and a path even more
    convert(tmp_path / 'in', tmp_path / 'path')
    assert same(tmp_path / 'path/images/cam1/0.jpg', tmp_path / 'in/images/cam1/0.jpg')


def test_coco_images_of_one_place(tmp_path):
    for folder in ('images', 'img'):
        photo(tmp_path / f'in/{folder}/0.jpg')
    write(tmp_path / 'in/all.json', coco_of(['images/0.jpg', 'img/0.jpg'], []))
    with pytest.raises(DataError, match='images/0.jpg and .*img/0.jpg would both be 0.jpg: rename'):
        convert(tmp_path / 'in', tmp_path / 'out')
    write(tmp_path / 'in/all.json', coco_of(['img/0.jpg'] * 2, []))
    with pytest.raises(DataError, match='all.json has labels of .*img/0.jpg twice: remove'):
        convert(tmp_path / 'in', tmp_path / 'out')
    (tmp_path / 'in/img/0.jpg').rename(tmp_path / 'in/img/1.jpg')
    write(tmp_path / 'in/all.json', coco_of(['images/0.jpg', 'img/1.jpg'], []))
    convert(tmp_path / 'in', tmp_path / 'out')
    assert same(tmp_path / 'out/images/1.jpg', tmp_path / 'in/img/1.jpg')


def test_yolo_files_that_are_long(tmp_path):
    """Of the first, the part that is looked at ends in the second line, of the other in the first."""
    along = np.linspace(0, 1, 1500)
    corners = np.array([[0.25, 0.1], [0.75, 0.1], [0.75, 0.5], [0.25, 0.5], [0.25, 0.1]])
    sides = [a + (b - a) * along[:, None] for a, b in zip(corners[:-1], corners[1:], strict=True)]
    outline = ' '.join(f'{number:.12f}' for number in np.concatenate(sides).ravel())
    for name, lines in (('a', f'0 {OUTLINE}\n1 {outline}\n'), ('b', f'1 {outline}')):
        assert len(lines) > 100_000
        photo(tmp_path / f'{name}/images/0.jpg')
        yolo(tmp_path / name, {'labels/0.txt': lines})
        convert(tmp_path / name, tmp_path / f'{name}_out')
        np.testing.assert_array_equal(label(tmp_path / f'{name}_out/labels/0.png'), 2 * DRAWN)


def test_yolo_coordinates_outside(tmp_path):
    files = {
        'a': '0 -0.0001 0.1 1.0001 0.1 1.0001 0.5 -0.0001 0.5',
        'b': '0 0.1 0.1 0.2 0.2',
        'c': f'0 {OUTLINE} 1.3 0.4',
        'classes': 'road',  # has no image
    }
    for name in 'abcd':
        photo(tmp_path / f'in/images/{name}.jpg')
    yolo(tmp_path / 'in', {f'labels/{name}.txt': lines for name, lines in files.items()})
    said = convert(tmp_path / 'in', tmp_path / 'out')
    np.testing.assert_array_equal(label(tmp_path / 'out/labels/a.png'), box(3, 0, 16, 40))
    assert '1 labels' in said and '2 files were not read' in said and '3 images without' in said
    assert 'b.txt is YOLO boxes' in said and 'c.txt has lines that are no class' in said
    far = [f'0 {OUTLINE}'] * 60 + ['0 1.3 0.4 0.1 0.1 0.2 0.2']  # not looked at when it is recognised
    yolo(tmp_path / 'in', {'labels/d.txt': '\n'.join(far)})
    with pytest.raises(DataError, match='d.txt has the coordinate 1.3: divide'):
        convert(tmp_path / 'in', tmp_path / 'more')


def test_names_of_yolo(tmp_path):
    def drawn_as(names, number=1):
        shutil.rmtree(tmp_path / 'out', ignore_errors=True)
        yolo(tmp_path / 'in', {'labels/0.txt': f'{number} {OUTLINE}'}, names)
        convert(tmp_path / 'in', tmp_path / 'out')
        classes = (tmp_path / 'out/classes.txt').read_text().split()
        assert classes[0] == 'background' and len(classes) == 3
        return classes[label(tmp_path / 'out/labels/0.png').max()]

    photo(tmp_path / 'in/images/0.jpg')
    write(tmp_path / 'in/config.yaml', 'epochs: 100\nbatch: 16\n')
    assert drawn_as('names: [a, b]') == drawn_as('names: {0: a, 1: b}') == 'b'
    assert drawn_as('names: {1: b, 0: a}') == 'b' and drawn_as('names: {1: b, 0: a}', 0) == 'a'
    assert drawn_as('names: {1: a, 2: b}') == 'a'
    with pytest.raises(DataError, match='0.txt has class 0, but there are names of 1, 2'):
        drawn_as('names: {1: a, 2: b}', 0)
    with pytest.raises(DataError, match='several classes one name'):
        drawn_as('names: [a, a]')
    write(tmp_path / 'in/classes.txt', 'c\nd\n')
    assert drawn_as('path: .\n') == 'd'


def test_names_of_two_yolo_datasets(tmp_path):
    for name, names in (('x', 'names: [a, b]'), ('y', 'names: [b, a]')):
        photo(tmp_path / f'in/{name}/images/0.jpg')
        yolo(tmp_path / f'in/{name}', {'labels/0.txt': f'1 {OUTLINE}'}, names)
    convert(tmp_path / 'in', tmp_path / 'out')
    assert (tmp_path / 'out/classes.txt').read_text().split() == ['background', 'a', 'b']
    for name, value in (('x', 2), ('y', 1)):
        np.testing.assert_array_equal(label(tmp_path / f'out/labels/{name}/0.png'), value * DRAWN)


def test_coco_ids_of_text_and_flat_outlines(tmp_path):
    """As VGG Image Annotator exports it."""
    pytest.importorskip('pycocotools', reason="pip install '.[annotations]'")
    photo(tmp_path / 'in/a.jpg')
    flat = {'image_id': '0', 'segmentation': rectangle(2, 3, 9, 12), 'area': 63}
    write(tmp_path / 'in/x.json', coco_of(['a.jpg'], [flat]))
    convert(tmp_path / 'in', tmp_path / 'out')
    np.testing.assert_array_equal(label(tmp_path / 'out/labels/a.png'), box(2, 3, 9, 12))
    write(tmp_path / 'in/x.json', coco_of(['a.jpg'], [flat, flat | {'image_id': 7}, flat | {'image_id': 8}]))
    with pytest.raises(DataError, match='x.json has 2 annotations of images that .* annotation 1 of image 7'):
        convert(tmp_path / 'in', tmp_path / 'more')
    write(tmp_path / 'in/x.json', coco_of(['a.jpg', 'b.jpg'], [flat], id=0))
    with pytest.raises(DataError, match='x.json has images of the same id'):
        convert(tmp_path / 'in', tmp_path / 'more')


@pytest.mark.parametrize('area', [{}, {'area': None}, {'area': '100'}, {'area': 0}])
@pytest.mark.parametrize('form', [list, dict])
def test_coco_without_areas(area, form, tmp_path):
    pytest.importorskip('pycocotools', reason="pip install '.[annotations]'")
    photo(tmp_path / 'in/a.jpg')
    large = runs(box(0, 0, 20, 30)) if form is dict else [rectangle(0, 0, 20, 30)]
    objects = [
        {'image_id': 0, 'segmentation': [rectangle(5, 5, 8, 9)], 'category_id': 2, 'area': 12},
        {'image_id': 0, 'segmentation': large} | area,
    ]
    write(tmp_path / 'in/x.json', coco_of(['a.jpg'], objects))
    convert(tmp_path / 'in', tmp_path / 'out')
    expected = box(0, 0, 20, 30).astype(int) + box(5, 5, 8, 9)
    np.testing.assert_array_equal(label(tmp_path / 'out/labels/a.png'), expected)


def test_segments_of_panoptic_labels(tmp_path):
    """They are no images, even if named as one, and all must be listed."""
    photo(tmp_path / 'in/val/a.png')
    segments = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    segments[:10, :, 0], segments[10:20, :, 0], segments[20:22, :, 1] = 3, 4, 1
    (tmp_path / 'in/panoptic_val').mkdir()
    Image.fromarray(segments).save(tmp_path / 'in/panoptic_val/a.png')
    listed = [{'id': 3, 'category_id': 1}, {'id': 4, 'category_id': 2}, {'id': 256, 'category_id': 1}]
    tree = coco_of(['a.png'], [{'image_id': '0', 'file_name': 'a.png', 'segments_info': listed}])
    write(tmp_path / 'in/panoptic_val.json', tree)
    assert 'without annotations' not in convert(tmp_path / 'in', tmp_path / 'out')
    expected = np.select([box(0, 0, 10, 40), box(10, 0, 20, 40), box(20, 0, 22, 40)], [1, 2, 1], IGNORE)
    np.testing.assert_array_equal(label(tmp_path / 'out/labels/val/a.png'), expected)
    assert same(tmp_path / 'out/images/val/a.png', tmp_path / 'in/val/a.png')
    del listed[1:]
    write(tmp_path / 'in/panoptic_val.json', tree)
    with pytest.raises(
        DataError, match='a.png has 2 segments that .*panoptic_val.json does not list, such as 4'
    ):
        convert(tmp_path / 'in', tmp_path / 'more')


@pytest.mark.parametrize(
    'tree',
    [
        {'images': [], 'annotations': {'1': {}}, 'categories': []},
        {'images': 1, 'annotations': 5, 'categories': []},
        {'images': [], 'annotations': ['a'], 'categories': []},
        {'_via_img_metadata': [1]},
        '[' * 100_000,
    ],
)
def test_json_of_other_things(tree, tmp_path):
    write(tmp_path / 'in/x.json', tree)
    assert find_annotations(str(tmp_path)) == []
    with pytest.raises(DataError, match='holds no annotations'):
        convert(tmp_path / 'in', tmp_path / 'out')
    config = load_config('folder')
    config.dataset.root = str(tmp_path / 'in')
    with pytest.raises(DataError, match='no picture in it has a label'):
        setup(config)


def test_damaged_annotations_end_with_one_line(tmp_path):
    for tree in (
        {'images': [{'id': 0}], 'annotations': [{}, 5], 'categories': []},
        {'shapes': [], 'imagePath': None},
        {'shapes': [5], 'imagePath': 'a.jpg'},
        coco_of([7, 'a.jpg'], []),
    ):
        write(tmp_path / 'in/x.json', tree)
        with pytest.raises(DataError, match='cannot read the annotations .*x.json'):
            convert(tmp_path / 'in', tmp_path / 'out')


def test_labelme_shapes_without_area(tmp_path):
    shapes = [
        ('car', 'rectangle', [[1, 2], [5, 6]]),
        ('sign', 'polygon', [[0, 0], [9, 9]]),
        ('sign', 'polygon', []),
        ('car', 'points', [[0, 0], [9, 9], [3, 4]]),
    ]
    labelme(tmp_path / 'in', 'a', shapes)
    labelme(tmp_path / 'in', 'b', [])
    said = convert(tmp_path / 'in', tmp_path / 'out')
    assert '2 outlines of less than 3 points were left out' in said and '1 points shapes were' in said
    assert (tmp_path / 'out/classes.txt').read_text().split() == ['background', 'car']
    np.testing.assert_array_equal(label(tmp_path / 'out/labels/a.png'), box(2, 1, 7, 6))
    assert not label(tmp_path / 'out/labels/b.png').any()  # annotated, and nothing is in it


def test_what_cannot_be_converted(tmp_path):
    def refuse(words, *args, error=DataError, **kwargs):
        with pytest.raises(error) as caught:
            convert(*args, **kwargs)
        for word in words:
            assert str(word) in str(caught.value)

    source, out = tmp_path / 'in', tmp_path / 'out'
    refuse(['no such file or folder'], source, out)
    photo(source / 'a.jpg')
    refuse(['holds no annotations', 'labelme'], source, out)
    labelme(source, 'a', [('car', 'rectangle', [[0, 0], [5, 5]])])
    refuse(['holds no annotations of coco'], source, out, 'coco')
    os.remove(source / 'a.jpg')
    refuse(['1 of 1 images are missing', 'a.jpg', 'a.json'], source, out)
    assert not out.exists()
    write(source / 'a.json', {'shapes': [{}], 'imagePath': 'a.jpg'})
    refuse(['a.json', "lacks 'label'"], source, out)
    write(source / 'a.json', '{"shapes": [')
    refuse(['holds no annotations', 'a.json is damaged', 'export or download it again'], source, out)
    write(source / 'a.json', {'_via_img_metadata': {}})
    refuse(['holds no annotations', 'export it as COCO'], source, out)
    photo(source / 'a.jpg')
    pytest.importorskip('pycocotools', reason="pip install '.[annotations]'")
    image = (
        f'<annotations><image id="0" name="a.jpg" width="{WIDTH}" height="{HEIGHT}">%s</image></annotations>'
    )
    write(source / 'a.xml', image % '<mask label="car" rle="1,2" left="0" top="0" width="3" height="2"/>')
    refuse(['cannot draw car on a.jpg', 'a.xml', 'remove it'], source, out)
    write(source / 'a.xml', image % '<polyline label="car" points="1,1;2,2;3,3"/>')
    refuse(['only 1 polyline shapes', 'nothing to learn'], source, out)
    for segmentation, words in (
        ([[0, 0, 3, 3, 3]], ['a.json', 'annotation 4', 'half a point']),
        (
            runs(box(0, 0, 3, 3)[:20]),
            ['cannot draw car on a.jpg', 'mask is 40x20', f'image {WIDTH}x{HEIGHT}'],
        ),
        ([[0, 0, 3, 0, float('nan'), 3]], ['a.json', 'nan is no coordinate']),  # which crashed
        ({'counts': [3, 4], 'size': [HEIGHT, WIDTH]}, ['a.json', 'counts are of 7 pixels']),
        ({'size': [HEIGHT, WIDTH]}, ['a.json', 'counts']),
    ):
        annotation = {'id': 4, 'image_id': 1, 'category_id': 2, 'segmentation': segmentation}
        image = {'id': 1, 'file_name': 'a.jpg', 'height': HEIGHT, 'width': WIDTH}
        tree = {'images': [image], 'annotations': [annotation], 'categories': [{'id': 2, 'name': 'car'}]}
        write(source / 'a.json', tree)
        refuse(words, source, out, 'coco')
    write(source / 'a.json', tree | {'images': [image | {'height': -5}]})
    refuse(['a.json', f'the size of a.jpg is {WIDTH}x-5'], source, out, 'coco')
    assert not out.exists()  # what was drawn before the error is in nobody's way
    out.mkdir()
    refuse(['exists already'], source, Path(out), error=ConfigError)
