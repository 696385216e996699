"""Annotations drawn as labels: each kind, with masks that are known by themselves."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ann_jax.command import load_config
from ann_jax.errors import ConfigError, DataError
from ann_jax.modes.check import check
from ann_jax.modes.setup import setup
from ann_jax.tools.annotations import convert, main
from ann_jax.typing import IGNORE

HEIGHT, WIDTH = 30, 40


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(path)))
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
    ):
        annotation = {'id': 4, 'image_id': 1, 'category_id': 2, 'segmentation': segmentation}
        image = {'id': 1, 'file_name': 'a.jpg', 'height': HEIGHT, 'width': WIDTH}
        tree = {'images': [image], 'annotations': [annotation], 'categories': [{'id': 2, 'name': 'car'}]}
        write(source / 'a.json', tree)
        refuse(words, source, out, 'coco')
    assert not out.exists()  # what was drawn before the error is in nobody's way
    out.mkdir()
    refuse(['exists already'], source, Path(out), error=ConfigError)
