"""Folders as people and tools leave them."""

import itertools
import unicodedata

import pytest
from own_files import matched, pairs, refuse, save, source, tree

from ann_jax.data.disk import walk
from ann_jax.errors import ConfigError, DataError
from ann_jax.inference.intake import find_images
from ann_jax.modes.inputs import input_files

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
