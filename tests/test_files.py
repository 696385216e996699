"""Folders, lists and files of classes as people and tools leave them."""

import itertools
import json
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import write_tree

from ann_jax.data.classes import DATASETS
from ann_jax.data.datasets import FolderSource, open_source
from ann_jax.data.disk import walk
from ann_jax.data.own.class_files import parse_classes
from ann_jax.data.own.settings import own_dataset
from ann_jax.errors import ConfigError, DataError
from ann_jax.inference.intake import find_images
from ann_jax.modes.inputs import input_files
from ann_jax.typing import IGNORE

IMAGE = np.zeros((2, 3, 3), np.uint8)


def save(path, label=False, value=0, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((IMAGE[..., 0] if label else IMAGE) + np.uint8(value)).save(path, **kwargs)


def tree(root, images, labels):
    """Writes images of level i and labels of value i, so that a wrong pair shows."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        save(root / image, value=i)
        save(root / label, True, i)


def source(root, split='train', strict=True, **flags):
    flags = {'classes': '9', 'root': str(root)} | flags
    return FolderSource(own_dataset(name='folder', **flags), root, split, strict=strict)


def pairs(samples):
    """{name: (level of the image, value of the label)}."""
    found = (samples[i] for i in range(len(samples)))
    return {s['name']: (int(s['image'][0, 0, 0]), int(s['label'][0, 0])) for s in found}


def matched(samples, names):
    """Whether the samples are those of `tree`, image i with label i."""
    found = pairs(samples)
    assert list(found) == list(names)
    assert all(abs(image - label) <= 1 for image, label in found.values())  # JPEG
    assert sorted(label for _, label in found.values()) == list(range(len(found)))


def refuse(words, function, *args, error=DataError, **kwargs):
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    for word in words:
        assert str(word) in str(caught.value), caught.value


HERE = {'images': '{split}', 'labels': '{split}'}

# --- Folders

HIDDEN = (
    '.ipynb_checkpoints/a-checkpoint.png',
    '@eaDir/a.png/SYNO_THUMB.png',
    '__MACOSX/._a.png',
    '.AppleDouble/a.png',
    '$RECYCLE.BIN/a.png',
    '._a.png',
    '.a.png',
)


def test_hidden_and_system_files_are_left_out_everywhere(tmp_path):
    tree(tmp_path, ['images/train/a.png'], ['labels/train/a.png'])
    for name in HIDDEN:
        save(tmp_path / 'images/train' / name)
        save(tmp_path / 'labels/train' / name, True, 5)
    (tmp_path / 'images/train/Thumbs.db').write_bytes(b'x')
    assert list(pairs(source(tmp_path))) == ['a']
    assert find_images(tmp_path / 'images') == [tmp_path / 'images/train/a.png']
    assert input_files(f'{tmp_path}/images/**/*.png', 'predict', tmp_path / 'out') == (
        [tmp_path / 'images/train/a.png'],
        tmp_path / 'images',
    )


def test_links_are_followed_once_around(tmp_path):
    tree(tmp_path, ['images/train/a.png', 'elsewhere/b.png'], ['labels/train/a.png', 'labels/train/x/b.png'])
    (tmp_path / 'images/train/x').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere/around').symlink_to(tmp_path / 'images')
    (tmp_path / 'images/train/self').symlink_to(tmp_path / 'images/train')
    # Without end, if links are followed again and again.
    assert len(list(itertools.islice(walk(tmp_path / 'images'), 10))) == 3
    matched(source(tmp_path), ['a', 'x/b'])
    assert len(find_images(tmp_path / 'images')) == 2


@pytest.mark.parametrize('forms', [('NFC', 'NFD'), ('NFD', 'NFC')])
def test_accents_of_one_and_of_two_characters_pair(forms, tmp_path):
    image, label = (unicodedata.normalize(form, 'größe é') for form in forms)
    assert image != label
    tree(tmp_path, [f'images/train/{image}.png'], [f'labels/train/{label}.png'])
    matched(source(tmp_path), [unicodedata.normalize('NFC', image)])
    (tmp_path / 'train.txt').write_text(f'{label}.png\n', encoding='utf-8')
    flags = {'images': 'images/train', 'labels': 'labels/train', 'lists': '{split}.txt'}
    assert len(source(tmp_path, **flags)) == 1


# (images, labels, settings): by the names alone
NAMINGS = {
    'one folder, two endings': (['train/a.jpg', 'train/b.jpeg'], ['train/a.png', 'train/b.png'], HERE),
    'one folder, gif': (['train/a.jpg', 'train/b.png'], ['train/a.gif', 'train/b.gif'], HERE),
    'one folder, a word': (['train/a.png', 'train/b.png'], ['train/a_mask.png', 'train/b_mask.png'], HERE),
    'one folder, jpg': (['train/a.jpg', 'train/b.jpg'], ['train/a-gt.png', 'train/b-gt.png'], HERE),
    'one folder, two words': (
        ['train/1_sat.jpg', 'train/2_sat.jpg'],
        ['train/1_mask.png', 'train/2_mask.png'],
        HERE,
    ),
    'one folder, one file': (['train/1_sat.png'], ['train/1_mask.png'], HERE),
    **{
        f'suffix {suffix}': (
            ['images/train/a.jpg', 'images/train/a_1.jpg', 'images/train/x/b.jpg'],
            [f'labels/train/a{suffix}', f'labels/train/a_1{suffix}', f'labels/train/x/b{suffix}'],
            {},
        )
        for suffix in ('_mask.png', '_labelIds.png', '-seg.png', '.jpg.png', '_L.png', 'gt.PNG', '.tif')
    },
    'both named': (
        ['images/train/a_rgb.png', 'images/train/b_rgb.png'],
        ['labels/train/a_label.png', 'labels/train/b_label.png'],
        {},
    ),
    'labels below images': (
        ['train/a.png', 'train/b.png'],
        ['train/masks/a.png', 'train/masks/b.png'],
        {'images': '{split}', 'labels': '{split}/masks'},
    ),
    'set endings': (
        ['images/train/a_x.png', 'images/train/b_x.png'],
        ['labels/train/a_y.png', 'labels/train/b_y.png'],
        {'image_ending': '_x.png', 'label_ending': '_y.png'},
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', NAMINGS)
def test_names_that_carry_a_word(case, tmp_path):
    images, labels, flags = NAMINGS[case]
    tree(tmp_path, images, labels)
    found = pairs(source(tmp_path, **flags))
    assert len(found) == len(images)
    assert sorted(found.values(), key=lambda pair: pair[1]) == [(i, i) for i in range(len(images))]


def test_the_endings_that_were_found_are_told_once(tmp_path, caplog):
    from ann_jax.data import files

    files._note.cache_clear()
    images, labels, _ = NAMINGS['both named']
    tree(tmp_path, images, labels)
    with caplog.at_level('INFO'):
        source(tmp_path)
        source(tmp_path)
    assert [r.getMessage() for r in caplog.records] == [
        'images and labels are paired as most are named: dataset.image_ending=_rgb.jpg, '
        'dataset.label_ending=_label.png'
    ]


def test_labels_are_not_guessed_from_numbers_or_among_several(tmp_path):
    tree(
        tmp_path / 'a',
        ['images/train/1.png', 'images/train/2.png'],
        ['labels/train/10.png', 'labels/train/20.png'],
    )
    refuse(['1.png has no label', 'or let --mode=setup find out'], source, tmp_path / 'a')
    tree(
        tmp_path / 'b',
        ['images/train/a_1.png', 'images/train/b_1.png'],
        ['labels/train/a_2.png', 'labels/train/b_2.png'],
    )
    refuse(['a_1.png has no label'], source, tmp_path / 'b')
    for kind in ('_color', '_labelIds'):
        tree(tmp_path / 'c', ['images/train/a.png'], [f'labels/train/a{kind}.png'])
    refuse(['label_ending=_color.png', 'label_ending=_labelIds.png'], source, tmp_path / 'c')
    matched(source(tmp_path / 'c', label_ending='_labelIds.png'), ['a'])
    # One plain name counts more than many others.
    tree(tmp_path / 'c', ['images/train/z.png'], ['labels/train/z.png'])
    refuse(['a.png has no label'], source, tmp_path / 'c')


def test_what_lies_there_instead_is_named(tmp_path):
    tree(tmp_path, [f'images/train/{n}.jpg' for n in 'abA'], [f'labels/train/{n}.png' for n in 'abA'])
    train = tmp_path / 'labels/train'
    (train / 'a.png').rename(train / 'a_mask.png')
    (train / 'b.png').rename(train / 'B.png')
    (train / 'A.png').rename(train / 'A.json')
    (tmp_path / 'images/train/c.dng').write_bytes(b'x')
    save(train / 'c.png', True)
    problems = '\n'.join(source(tmp_path, strict=False).problems)
    for words in (
        ['a.jpg has no label', 'there is', 'a_mask.png: set --config.dataset.label_ending=_mask.png'],
        ['b.jpg has no label', 'B.png, whose name differs in upper and lower case'],
        ['A.jpg has no label', 'A.json, which is no picture'],
        ['c.png has no image', 'c.dng: set --config.dataset.image_ending=.dng'],
    ):
        assert any(all(word in line for word in words) for line in problems.splitlines()), (words, problems)
    assert 'remove' not in problems and 'delete' not in problems


def test_two_images_of_one_name_are_not_to_be_removed(tmp_path):
    tree(tmp_path, ['images/train/a.jpg'], ['labels/train/a.png'])
    save(tmp_path / 'images/train/a.png')
    with pytest.raises(DataError) as caught:
        source(tmp_path)
    assert 'share a name: rename one of them' in str(caught.value) and 'remove' not in str(caught.value)


# --- Lists

LISTS = {
    'pairs': 'images/a.png masks/a.png\nimages/my photo.png masks/my photo.png',
    'a slash first': '/images/a.png /masks/a.png\n/images/b.png /masks/b.png',
    'absolute': '{root}/images/a.png {root}/masks/a.png\n{root}/images/b.png {root}/masks/b.png',
    'commas': 'images/a.png,masks/a.png\nimages/b.png, masks/b.png',
    'commas, semicolon file': 'images/a.png;masks/a.png\nimages/b.png;masks/b.png;',
    'tabs': 'images/a.png\tmasks/a.png\nimages/my photo.png\tmasks/my photo.png',
    'backslashes': 'images\\a.png masks\\a.png\nimages\\b.png masks\\b.png',
    'comments': '# x\n\n  images/a.png masks/a.png\n#images/x.png masks/x.png\nimages/b.png masks/b.png',
    'headings': 'image,label\nimages/a.png,masks/a.png\nimages/b.png,masks/b.png',
    'headings in another order': 'mask,filename\nmasks/a.png,images/a.png\nmasks/b.png,images/b.png',
    'headings of a table': ',filename,mask,width\n0,images/a.png,masks/a.png,3\n1,images/b.png,masks/b.png,3',
    'other headings': 'x,y\nimages/a.png,masks/a.png\nimages/b.png,masks/b.png',
    'quotes': '"images/a.png","masks/a.png"\n"images/my, photo.png","masks/my, photo.png"',
    'quotes and blanks': '"images/a.png" "masks/a.png"\n"images/my photo.png" "masks/my photo.png"',
    'names of files': 'a.png,a.png\nb.png,b.png',
    'of another computer': '/home/me/x/images/a.png C:\\x\\masks\\a.png\nimages/b.png masks/b.png # blurred',
    'bars': 'images/a.png|masks/a.png\nimages/b.png | masks/b.png',
    'dots': './images/a.png ./masks/a.png\n./images/../images/b.png masks/b.png',
    'names': 'a\nb',
    'names with endings': 'a.png\r\nmy photo.png\r\n',
    'names, headings': 'filename\na.png\nb.png',
    'names as paths': 'images/a.png\n{root}/images/b.png',
    'names and commas': 'a.png,\nb.png,',
}


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le'])
@pytest.mark.parametrize('case', LISTS)
def test_lists(case, encoding, tmp_path):
    second = next((n for n in ('my, photo', 'my photo') if n in LISTS[case]), 'b')
    names = ['a', second, 'rest']
    tree(tmp_path, [f'images/{n}.png' for n in names], [f'masks/{n}.png' for n in names])
    (tmp_path / 'lists').mkdir()
    text = LISTS[case].format(root=tmp_path)
    (tmp_path / 'lists/train.csv').write_text(text, encoding=encoding, newline='')
    found = pairs(source(tmp_path, images='images', labels='masks', lists='lists/{split}.csv'))
    assert [Path(name).name for name in found] == names[:2] and [*found.values()] == [(0, 0), (1, 1)]


def test_a_list_from_the_home_folder_and_beside_its_files(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    tree(tmp_path, ['data/deep/a.png', 'data/deep/b.png'], ['data/deep/a_l.png', 'data/deep/b_l.png'])
    (tmp_path / 'data/deep/train.txt').write_text('~/data/deep/a.png ~/data/deep/a_l.png\nb.png b_l.png\n')
    matched(source(tmp_path / 'data', lists='deep/{split}.txt'), ['deep/a', 'deep/b'])


def test_lists_that_cannot_be_used(tmp_path):
    tree(tmp_path, ['i/a.png', 'i/a.jpg'], ['l/a.png', 'l/a_jpg.png'])
    write = lambda text, **kwargs: (tmp_path / 'train.txt').write_text(text, **kwargs)
    flags = {'lists': '{split}.txt'}
    write('i/a.png l/a.png\n\ni/a.jpg l/a_jpg.png l/a.png\n')
    refuse(['line 3 of', 'train.txt', '3 columns'], source, tmp_path, **flags)
    write('i/a.png l/a.png\ni/a.jpg\n')
    refuse(['line 2 of', 'i/a.jpg and no label'], source, tmp_path, **flags)
    write('i/a.png l/a.png\ni/a.jpg l/q.png\n')
    refuse(['line 2 of', 'names', 'l/q.png, which does not exist'], source, tmp_path, **flags)
    write('i/a.png l/ä.png\n', encoding='latin-1')
    refuse(['train.txt', 'UTF-8'], source, tmp_path, **flags)
    write('i/a.png l/a.png\ni/a.jpg l/a_jpg.png\ni/a.png l/a.png\n')  # one name, two files; one line twice
    assert [source(tmp_path, **flags)[i]['name'] for i in range(3)] == ['i/a', 'i/a.jpg', 'i/a']


def test_lists_that_name_the_label_first(tmp_path, caplog):
    """As what exists says or, if all files do, as what the pictures look like."""
    rng = np.random.default_rng(0)
    for number in range(3):
        for folder, many in (('i', 256), ('l', 3)):
            path = tmp_path / folder / f'{number}.png'
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, many, (40, 40), np.uint8)).save(path)
    write = lambda line: (tmp_path / 'train.txt').write_text(''.join(line.format(n) for n in range(3)))
    flags = {'lists': '{split}.txt', 'images': 'i', 'labels': 'l'}
    for line, turned in (
        ('i/{0}.png l/{0}.png\n', False),
        ('l/{0}.png i/{0}.png\n', True),
        ('l/{0}.png,i/{0}.png\n', True),
        ('{0}.png,{0}.png\n', False),
    ):
        write(line)
        with caplog.at_level('INFO'):
            caplog.clear()
            found = source(tmp_path, **flags)
        assert all(found[n]['label'].max() < 3 and len(np.unique(found[n]['image'])) > 99 for n in range(3))
        assert ('the label before the image' in caplog.text) == turned
    for number in range(3):
        (tmp_path / f'i/{number}.png').rename(tmp_path / f'i/{number}.bmp')
    write('{0}.png {0}.bmp\n')
    assert source(tmp_path, **flags)[0]['label'].max() < 3
    for number in range(3):  # scans of few values tell nothing, and the usual order is kept
        (tmp_path / f'i/{number}.bmp').write_bytes((tmp_path / f'l/{number}.png').read_bytes())
    write('i/{0}.bmp l/{0}.png\n')
    assert source(tmp_path, **flags).image_files()[0].endswith('i/0.bmp')


def test_files_of_lists_that_are_named_otherwise(tmp_path):
    tree(tmp_path, ['i/a.jpg'], ['l/a.png'])
    for line, near in (
        ('i/a.JPG l/a.png', 'i/a.jpg'),
        ('a.jpg A.PNG', 'l/a.png'),
        ('i/a.jpeg a.png', 'i/a.jpg'),
    ):
        (tmp_path / 'train.txt').write_text(line)
        words = ['line 1', 'does not exist: there is ' + str(tmp_path / near), 'write that instead']
        refuse(words, source, tmp_path, lists='{split}.txt', images='i', labels='l')


def test_images_without_folders_of_splits(tmp_path):
    tree(tmp_path, [f'images/{i}.png' for i in range(9)], [f'labels/{i}.png' for i in range(9)])
    flags = {'images': 'images', 'labels': 'labels', 'val_share': 0.1}
    settings = [f'--config.dataset.{key}={value}' for key, value in flags.items()]
    refuse([*settings, '--mode=setup'], source, tmp_path)
    assert len(source(tmp_path, **flags)) > 5
    (tmp_path / 'images/train').mkdir()
    (tmp_path / 'labels/train').mkdir()
    (tmp_path / 'images/train/a.npy').write_bytes(b'x')
    refuse(['no samples in', '.npy (1)'], source, tmp_path)


# --- A share for validation


def test_a_share_of_train_is_held_out(tmp_path):
    names = [f'{i:03d}' for i in range(100)]
    for root in (tmp_path / 'x', tmp_path / 'some/where'):
        tree(root, [f'images/train/{n}.png' for n in names], [f'labels/train/{n}.png' for n in names])
    splits = lambda root, **flags: [
        [s[0] for s in source(root, split, val_share=0.2, classes='100', **flags)._samples]
        for split in ('train', 'val')
    ]
    train, val = splits(tmp_path / 'x')
    assert sorted(train + val) == names and 10 < len(val) < 30
    assert splits(tmp_path / 'some/where') == [train, val]
    for i in range(100, 150):
        tree(tmp_path / 'x', [f'images/train/{i}.png'], [f'labels/train/{i}.png'])
    more_train, more_val = splits(tmp_path / 'x')
    assert set(train) < set(more_train) and set(val) < set(more_val)
    # Folders without {split} have the files of train.
    assert splits(tmp_path / 'some/where', images='images', labels='labels')[1]
    assert val[:3] == ['000', '010', '015']  # the same on every machine


def test_a_share_that_cannot_be_held_out(tmp_path):
    tree(tmp_path, ['images/train/a.png'], ['labels/train/a.png'])
    refuse(['no folder', 'val_share=0.1 holds out', 'eval_split=train'], source, tmp_path, 'val')
    refuse(['val_share=0.01 leaves none of the 1', 'above 0.'], source, tmp_path, 'val', val_share=0.01)
    refuse(['another name'], source, tmp_path, val_share=0.1, splits=('train', 'train'), error=ConfigError)
    refuse(['val_share=0.1'], source, tmp_path, images='a', labels='b', error=ConfigError)
    tree(tmp_path, ['images/valid/a.png'], ['labels/valid/a.png'])
    words = ['For val there is valid: set --config.dataset.eval_split']
    refuse(words, source, tmp_path, 'val')
    tree(tmp_path, ['images/val/a.png'], ['labels/val/a.png'])
    refuse(['1 images of val', 'val_share=0'], source, tmp_path, 'val', val_share=0.1)
    assert len(source(tmp_path, 'val')) == 1


def test_a_problem_is_told_in_one_of_the_two_splits(tmp_path):
    names = [f'{i:03d}' for i in range(40)]
    tree(tmp_path, [f'images/train/{n}.png' for n in names], [f'labels/train/{n}.png' for n in names])
    for name in names[::4]:
        (tmp_path / f'labels/train/{name}.png').unlink()
    problems = [
        source(tmp_path, s, strict=False, val_share=0.5, classes='40').problems for s in ('train', 'val')
    ]
    assert all(problems) and len(problems[0]) + len(problems[1]) == 10


# --- Files of classes

COLORS = ((128, 64, 128), (0, 0, 0))
CLASSES = {
    'R G B name': ('128 64 128 road\n0 0 0 the rest', COLORS, None),
    'R G B tab name': ('128 64 128\troad\n0 0 0\t\tthe rest\n', COLORS, None),
    'name R G B': ('road 128 64 128\nthe rest,0,0,0', COLORS, None),
    'name #hex': ('# comment\nroad #804080\nthe rest #000000', COLORS, None),
    '#hex name': ('#804080 road\n#000000 the rest', COLORS, None),
    'CVAT': ('# label:color_rgb:parts:actions\nroad:128,64,128::\nthe rest:0,0,0:a,b:c', COLORS, None),
    'CVAT, no heading': ('road:128,64,128::\nthe rest:0,0,0::', COLORS, None),
    'CVAT, no colours': ('# label:color_rgb:parts:actions\nroad:::\nthe rest:::', (), None),
    'quotes': ('"road","128","64","128"\n"the rest","0","0","0"', COLORS, None),
    'R G B A': ('road 128 64 128 255\nthe rest 0 0 0 255', COLORS, None),
    'FreeSurfer': (
        '#No. Label Name: R G B A\n0 road 128 64 128 0\n4 the rest 0 0 0 0',
        COLORS,
        {0: 0, 4: 1, 255: IGNORE},
    ),
    '3D Slicer': ('# Color table file x\n0 road 128 64 128 255\n1 the rest 0 0 0 0', COLORS, None),
    'ITK-SNAP': (
        '# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL\n'
        '    0   128   64  128        0  0  0    "road"\n    1     0    0    0     0.85  1  1    "the rest"',
        COLORS,
        None,
    ),
    'code': ("('road', 'the rest')", (), None),
    'one line': ('road, the rest\n', (), None),
    'Segments.ai': (
        {
            'task_attributes': {
                'format_version': '0.1',
                'categories': [
                    {'name': 'road', 'id': 1, 'color': [128, 64, 128]},
                    {'name': 'the rest', 'id': 2, 'color': [0, 0, 0]},
                ],
            }
        },
        COLORS,
        {1: 0, 2: 1, 255: IGNORE},
    ),
    'Encord': ({'objects': [{'name': 'road', 'shape': 'x'}, {'name': 'the rest'}]}, (), None),
    'comments': ('// x\nroad\nthe rest', (), None),
    'hex without #': ('road 804080\nthe rest 000000', COLORS, None),
    'columns that are not needed': (
        'id,trainId,name,color\n7,0,road,"128,64,128"\n0,255,"the rest",#000000',
        COLORS,
        {7: 0, 0: 1, 255: IGNORE},
    ),
    'bullets': ('- road\n- the rest', (), None),
    'headings and blanks': ('name r g b\nroad 128 64 128\nthe rest 0 0 0', COLORS, None),
    'mmsegmentation': ({'classes': ['road', 'the rest'], 'palette': COLORS}, COLORS, None),
    'names': ('road\n"the rest"\n\n', (), None),
    'LabelMe': ('__ignore__\nroad\nthe rest', (), None),
    'csv': ('name,r,g,b\nroad,128,64,128\nthe rest,0,0,0', COLORS, None),
    'csv with an id': ('id;name;r;g;b\n0;road;128;64;128\n1;the rest;0;0;0', COLORS, None),
    'csv, plurals': ('Classes,Red,Green,Blue\nroad,128,64,128\nthe rest,0,0,0', COLORS, None),
    'csv with other ids': ('name,id\nroad,7\nthe rest,0', (), {7: 0, 0: 1, 255: IGNORE}),
    'Roboflow': ('Pixel Value, Class\n0, road\n1, the rest', (), None),
    'csv, quoted': ('"name","color"\n"road","#804080"\n"the rest","#000000"', COLORS, None),
    'id name': ('0 road\n1 the rest', (), None),
    'id: name': ('1: road\n2: the rest', (), {1: 0, 2: 1, 255: IGNORE}),
    'name id': ('road 3\nthe rest 1', (), {3: 0, 1: 1, 255: IGNORE}),
    'id name R G B': ('5 road 128 64 128\n1 the rest 0 0 0', COLORS, {5: 0, 1: 1, 255: IGNORE}),
    'id R G B name': ('0 128 64 128 road\n1 0 0 0 the rest', COLORS, None),
    'id,name,#hex': ('0,road,#804080\n1,the rest,#000000', COLORS, None),
    'Supervisely': (
        {
            'classes': [
                {'title': 'road', 'shape': 'polygon', 'color': '#804080', 'id': 12},
                {'title': 'the rest', 'color': '#000000', 'id': 3},
            ]
        },
        COLORS,
        None,
    ),
    'Labelbox': (
        {
            'tools': [
                {'tool': 'superpixel', 'name': 'road', 'color': '#804080'},
                {'tool': 'superpixel', 'name': 'the rest', 'color': '#000000'},
            ]
        },
        COLORS,
        None,
    ),
    'COCO': (
        {'categories': [{'id': 1, 'name': 'road', 'supercategory': 'x'}, {'id': 2, 'name': 'the rest'}]},
        (),
        {1: 0, 2: 1, 255: IGNORE},
    ),
    'id2label': ({'0': 'road', '1': 'the rest'}, (), None),
    'colours by name': ({'road': [128, 64, 128], 'the rest': [0, 0, 0]}, COLORS, None),
    'a list': (['road', 'the rest'], (), None),
}  # fmt: skip


@pytest.mark.parametrize('case', CLASSES)
def test_files_of_classes(case, tmp_path):
    text, colors, label_map = CLASSES[case]
    ending = 'txt' if isinstance(text, str) else 'json'
    (tmp_path / f'names.{ending}').write_text(
        text if ending == 'txt' else json.dumps(text), encoding='utf-8-sig'
    )
    assert parse_classes(f'names.{ending}', str(tmp_path)) == (('road', 'the rest'), colors, label_map)


def test_yaml_names_the_package_to_install(tmp_path, monkeypatch):
    (tmp_path / 'data.yaml').write_text('names: [road, car]')
    monkeypatch.setitem(sys.modules, 'yaml', None)  # cannot be imported
    with pytest.raises(ConfigError, match='pip install pyyaml'):  # `yaml` is no package
        parse_classes('data.yaml', str(tmp_path))


def test_yaml(tmp_path):
    pytest.importorskip('yaml')
    for text in ('train: x\nnames: [road, the rest]\nnc: 2\n', 'names:\n  0: road\n  1: the rest\n'):
        (tmp_path / 'data.yaml').write_text(text)
        assert parse_classes('data.yaml', str(tmp_path)) == (('road', 'the rest'), (), None)


def test_values_of_a_class_file_are_those_of_labels(tmp_path):
    tree(tmp_path, [f'images/train/{i}.png' for i in range(3)], [f'labels/train/{i}.png' for i in range(3)])
    (tmp_path / 'names.csv').write_text('name,id\nroad,2\nrest,0\nsky,1\n')
    samples = source(tmp_path, classes='names.csv')
    assert [int(samples[i]['label'][0, 0]) for i in range(3)] == [1, 2, 0]
    samples = source(tmp_path, classes='names.csv', label_map='0:sky,1:sky,2:sky')  # counts more
    assert [int(samples[i]['label'][0, 0]) for i in range(3)] == [2, 2, 2]


@pytest.mark.parametrize(
    'text',
    [
        'class,frequency\nroad,0.3\ncar,0.7',
        'name,part of\nroad,street\ncar,street',
        'category;weight\nroad;1\ncar;2',
    ],
)
def test_headings_of_what_is_not_used(text, tmp_path):
    (tmp_path / 'names.txt').write_text(text)
    assert parse_classes('names.txt', str(tmp_path)) == (('road', 'car'), (), None)


def test_first_lines_that_are_no_headings(tmp_path):
    for first, second in (('label: a', 'label: b'), ('object, a', 'object, b'), ('class,0', 'road,1')):
        (tmp_path / 'names.txt').write_text(f'{first}\n{second}\n')
        assert len(parse_classes('names.txt', str(tmp_path)).names) == 2
    for shares in ('road,0.3\ncar,0.7', 'road 0.3\ncar 0.7'):
        (tmp_path / 'names.txt').write_text(shares)
        refuse(['is not understood'], parse_classes, 'names.txt', str(tmp_path), error=ConfigError)


@pytest.mark.parametrize('between', [': ', ', ', ' | ', ' ; ', ' = ', ' -> ', ' ', ':', '->'])
def test_values_after_names(between, tmp_path):
    (tmp_path / 'names.txt').write_text(f'road{between}10\ncar (red){between}11\n')
    found = parse_classes('names.txt', str(tmp_path))
    assert found == (('road', 'car (red)'), (), {10: 0, 11: 1, 255: 255})


def test_names_with_numbers_stay_names(tmp_path):
    for line in ('zone%d', '%d zone%d', '%d zone %d'):
        lines = [
            f'{line % ((i,) * line.count("%"))} {c}' for i, c in enumerate(('255 0 0', '0 255 0', '0 0 255'))
        ]
        (tmp_path / 'zones.txt').write_text('\n'.join(lines))
        found = parse_classes('zones.txt', str(tmp_path))
        assert found.colors == ((255, 0, 0), (0, 255, 0), (0, 0, 255)), found
        assert found.names[1].replace(' ', '') == 'zone1'
    (tmp_path / 'names.txt').write_text('class 0\nclass 1\n')
    assert parse_classes('names.txt', str(tmp_path)).names == ('class 0', 'class 1')
    (tmp_path / 'names.txt').write_text('wall, walls\nlane 2 128 64 128\n')
    refuse(['no colour'], parse_classes, 'names.txt', str(tmp_path), error=ConfigError)


def test_files_of_classes_that_cannot_be_used(tmp_path):
    wrong = lambda words, text: refuse(
        [repr(text), *words], parse_classes, text, str(tmp_path), error=ConfigError
    )
    for absent in ('names.csv', 'a/names', 'C:\\x\\names', 'labels.names', '../names.txt', 'meta.json'):
        wrong(['no such file'], absent)
    for text, word in (
        ('item {\n  id: 1\n  name: "road"\n}\n', 'not understood'),
        ('0 0 0\n128 64 128\n', 'not understood'),
        ('#FF0000\n#00FF00\n', 'not understood'),
        ('road 0.5 0.25 0.5\nsky 0 0 0.55\n', 'not understood'),
        ('name,r,g,b\nroad,0.5,0.2,0.5\n', 'numbers from 0 to 255'),
        ('value, class\n0, road, wet\n', '3 columns, but there are 2 headings'),
        ('images/a.png\nimages/b.png\n', "'images/a.png' is the name of a picture"),
        ('<annotations>\n</annotations>\n', 'not understood'),
        ('road 1 2 3\nsky\n', "'sky' has no colour"),
        ('name,id\nroad,1\nsky,1\n', 'the value 1 appears twice'),
        ('name,id\nroad,1\nsky,\n', "'sky' has no value"),
    ):
        (tmp_path / 'names.txt').write_text(text)
        wrong([word], 'names.txt')
    (tmp_path / 'names.json').write_text('{"classes": [')
    wrong(['not understood'], 'names.json')


# --- VOC and Cityscapes


def test_voc_aug_of_a_converter_that_writes_only_labels_of_sbd(tmp_path):
    """SBD's labels lack some of the list; then VOC's own count, which are better, wherever there are."""
    files = write_tree('voc', tmp_path, num_train=3)['train']
    names = [image.stem for image, _, _ in files]
    (tmp_path / 'SegmentationClassAug').mkdir()
    ours = np.full((24, 32), 7, np.uint8)
    Image.fromarray(ours).save(tmp_path / f'SegmentationClassAug/{names[0]}.png')
    (tmp_path / 'ImageSets/Segmentation/trainaug.txt').write_text('\n'.join(names))
    samples = open_source('voc', root=tmp_path, split='trainaug')
    for i, (_, _, raw) in enumerate(files):
        np.testing.assert_array_equal(samples[i]['label'], raw)
    for name in names:  # as most write it, with all of them
        Image.fromarray(ours).save(tmp_path / f'SegmentationClassAug/{name}.png')
    samples = open_source('voc', root=tmp_path, split='trainaug')
    assert all((samples[i]['label'] == 7).all() for i in range(3))
    (tmp_path / 'ImageSets/Segmentation/train.txt').write_text(names[0])
    (tmp_path / 'ImageSets/Segmentation/aug.txt').write_text('\n'.join(names[1:]))
    assert len(open_source('voc', root=tmp_path, split='train+aug')) == 3


def test_coarse_labels_of_cityscapes(tmp_path):
    files = write_tree('cityscapes', tmp_path)
    for samples in files.values():
        for _, label, raw in samples:
            coarse = Path(str(label).replace('gtFine', 'gtCoarse'))
            coarse.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(raw * 0 + 7).save(coarse)
    for split in ('train', 'val'):
        fine, coarse = (open_source('cityscapes', root=tmp_path, split=s) for s in (split, f'coarse_{split}'))
        assert [s[:2] for s in fine._samples] == [s[:2] for s in coarse._samples]
        assert (coarse[0]['label'] == 0).all() and not (fine[0]['label'] == 0).all()
    assert DATASETS['cityscapes'].splits['coarse'] == ('coarse_train', 'train_extra')
