"""What would be learned wrong is told by --mode=check and before the first step, with what helps."""

import logging
import re

import numpy as np
import pytest
from PIL import Image
from test_check import get_config
from trees import write_tree

import ann_jax
from ann_jax import build
from ann_jax.config import defaults
from ann_jax.data.datasets import FolderSource, Subset
from ann_jax.errors import DataError
from ann_jax.modes.check import check
from ann_jax.modes.first_look import first_look
from ann_jax.modes.train import train
from ann_jax.typing import IGNORE

SIZE = (12, 20)
RNG = np.random.default_rng(0)


def save(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path)


def photo(levels=256):
    return RNG.integers(0, levels, (*SIZE, 3)).astype(np.uint8)


def raw(*values):
    """A label (H, W) with these values, in as many pixels each."""
    return np.array(values, np.uint8)[np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % len(values)]


def folder(root, train=((0, 1, 2), (0, 1, 2)), val=((0, 1, 2),)):
    """Images, and labels of the given values, or the given pictures."""
    for split, labels in (('train', train), ('val', val)):
        for number, label in enumerate(labels):
            save(root / f'images/{split}/{split}{number}.png', photo())
            save(
                root / f'labels/{split}/{split}{number}.png',
                raw(*label) if isinstance(label, tuple) else label,
            )
    return root


def settings(root, **dataset):
    return get_config('folder', root, **{'classes': 'sky,road,car'} | dataset)


def at_start(config):
    """The first look of a training run."""
    first_look(
        config,
        build.source(config, config.dataset.train_split),
        build.source(config, config.dataset.eval_split),
    )


def told(config, caplog, capsys):
    """What the start of training and --mode=check say, in this order; neither finds an error."""
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        at_start(config)
        first = '\n'.join(caplog.messages)
    assert check(config) == 0
    config.check.strict = True
    all_of_it = capsys.readouterr().out
    assert check(config) == ('warning: ' in all_of_it)
    assert capsys.readouterr().out == all_of_it
    config.check.strict = False
    return first, all_of_it


def both_tell(config, caplog, capsys, *words):
    for text in told(config, caplog, capsys):
        lines = [line for line in text.splitlines() if all(word in line for word in words)]
        assert lines, text
    assert 'usable, with ' in text


def test_nothing_is_told_about_good_data(tmp_path, caplog, capsys):
    first, text = told(settings(folder(tmp_path)), caplog, capsys)
    assert not first and text.endswith('usable: no problems\n') and 'warning' not in text


@pytest.mark.parametrize('classes', ['background,object', 'background,object,third'])
def test_masks_of_0_and_255(classes, tmp_path, capsys):
    masks = ((0, 255), (0, 0, 255))
    config = settings(folder(tmp_path, masks, masks), classes=classes)
    with pytest.raises(DataError, match=r'only 0 and 255.* object.*dataset\.label_map=0:0,255:1'):
        at_start(config)
    assert check(config) == 1
    out = capsys.readouterr().out
    assert 'error: train: ' in out and 'warning: val: ' in out and 'label_map=0:0,255:1' in out
    config.dataset.update(classes='background,object', label_map='0:0,255:1')
    at_start(config)
    assert check(config) == 0 and 'usable: no problems' in capsys.readouterr().out


def test_training_stops_before_the_first_step(tmp_path):
    config = settings(folder(tmp_path / 'data', ((0, 255),), ((0, 255),)), classes='background,object')
    with pytest.raises(DataError, match='label_map=0:0,255:1'):
        train(config, tmp_path / 'run')
    assert not list((tmp_path / 'run').glob('checkpoints/*'))


def test_masks_of_0_and_255_among_others(tmp_path, caplog, capsys):
    root = folder(tmp_path, ((0, 255), (0, 1)), ((0, 1),))
    config = settings(root, classes='background,object')
    both_tell(config, caplog, capsys, 'train: 1 of the 2', 'train0', 'label_map=0:0,1:1,255:1')
    config.dataset.label_map = '0:0,1:1,255:1'
    assert told(config, caplog, capsys)[0] == ''
    save(root / 'labels/train/train2.png', raw(0, 1, 2))
    save(root / 'images/train/train2.png', photo())
    config.dataset.update(classes='background,object,third', label_map='')
    both_tell(config, caplog, capsys, 'train: 1 of the 3', 'train0', 'label_map=0-2:0-2,255:ignore')
    config.dataset.label_map = '0-2:0-2,255:ignore'  # which says that it is meant so
    assert 'hold only' not in told(config, caplog, capsys)[0]


def test_a_class_that_may_be_255(tmp_path, caplog, capsys):
    config = settings(folder(tmp_path, ((0, 1, 255),), ((0, 1, 255),)))
    words = 'no pixel', 'car', 'if 255'
    both_tell(config, caplog, capsys, 'train: ', *words)
    text = re.search(r'label_map=(\S+)', told(config, caplog, capsys)[0])[1]
    config.dataset.label_map = text.replace('ignore', 'car')
    assert told(config, caplog, capsys)[0] == ''


@pytest.mark.parametrize('values', [(0,), (1,), (0, 1)])
def test_classes_that_no_label_has(values, tmp_path, caplog, capsys):
    config = settings(folder(tmp_path, (values, values)))
    names = ', '.join(name for i, name in enumerate(('sky', 'road', 'car')) if i not in values)
    both_tell(config, caplog, capsys, 'train: no pixel', names)


def test_classes_absent_from_val(tmp_path, caplog, capsys):
    config = settings(folder(tmp_path, val=((0, 2),)))
    both_tell(config, caplog, capsys, 'val: no pixel', 'road', 'not scored')


def test_mostly_ignored(tmp_path, caplog, capsys):
    config = settings(folder(tmp_path, train=((0, 1, 2, 255, 255, 255, 255, 255),)))
    both_tell(config, caplog, capsys, 'train: 62 %', 'ignored', 'label_map')


def test_a_split_without_a_labelled_pixel(tmp_path, capsys):
    for split, labels in (('train', {'train': ((255,), (255,))}), ('val', {'val': ((255,),)})):
        config = settings(folder(tmp_path / split, **labels))
        with pytest.raises(DataError, match=f'{split}: every pixel of .* is ignored.*label_map'):
            at_start(config)
        assert check(config) == 1 and f'error: {split}: every pixel' in capsys.readouterr().out
    files = write_tree('cityscapes', tmp_path / 'cities', num_val=3)  # its test split has such labels
    for _, label, values in files['val']:
        Image.fromarray(np.zeros_like(values)).save(label)
    with pytest.raises(DataError, match='val: every pixel of the 3 labels is ignored.*another split'):
        at_start(get_config('cityscapes', tmp_path / 'cities'))


def test_the_sample_is_even_and_grows_before_it_ends_a_run(tmp_path, caplog):
    """One label of 150 has a class, and not one of those sampled first."""
    config = settings(tmp_path, classes='2')
    folder(tmp_path, [(255,)] * 150, ((0, 1),))
    save(tmp_path / 'labels/train/train1.png', raw(0, 1))
    source, evaluated = build.source(config, 'train'), build.source(config, 'val')
    read = []
    look = source.look
    source.look = lambda index, **options: read.append(index) or look(index, **options)
    with caplog.at_level(logging.WARNING):
        first_look(config, source, evaluated)
    first, rest = read[:64], read[64:]
    assert sorted(rest) == list(range(150)) and len(set(first)) == 64
    gaps = np.diff(sorted(first))
    assert set(gaps) == {2, 3} and {0, 149} < set(first)
    (message,) = caplog.messages
    assert 'train: 99 %' in message
    save(tmp_path / 'labels/train/train0.png', raw(1))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        first_look(config, build.source(config, 'train'), evaluated)
    assert any(
        'class 0' in m and 'the 64 labels sampled' in m and '--mode=check' in m for m in caplog.messages
    )


@pytest.mark.parametrize('image', [np.full((*SIZE, 3), 200, np.uint8), photo(2), photo(31)])
def test_images_of_few_levels(image, tmp_path, caplog, capsys):
    config = settings(folder(tmp_path))
    save(tmp_path / 'images/train/train1.png', image)
    both_tell(config, caplog, capsys, '1 of 2 images', f'train1 ({image.min()} to {image.max()})', 'scaled')


@pytest.mark.parametrize('bits', [8, 16])
def test_images_that_all_use_few_levels(bits, tmp_path, caplog, capsys):
    config = settings(folder(tmp_path))
    for file in tmp_path.glob('images/*/*.png'):
        save(file, photo(16) if bits == 8 else photo()[..., 0].astype(np.uint16) * 28)
    first, _ = told(config, caplog, capsys)
    assert '2 of 2 images' in first and '1 of 1 images' in first
    config.dataset.image_range = re.search(r'image_range=([\w,]+)', first)[1]
    assert told(config, caplog, capsys)[0] == ''


def test_palettes_that_differ(tmp_path, caplog, capsys):
    colors = [(70, 130, 180), (128, 64, 128), (0, 0, 142)]
    pictures = []
    for order in ((0, 1, 2), (2, 1, 0)):
        picture = Image.fromarray(raw(*np.argsort(order)))
        picture.putpalette([channel for i in order for channel in colors[i]])
        pictures.append(picture)
    config = settings(folder(tmp_path, pictures))
    both_tell(config, caplog, capsys, 'value 0', 'train0', 'train1', 'class file')
    other = settings(folder(tmp_path / 'other', pictures[:1], pictures[1:]))
    both_tell(other, caplog, capsys, 'value 0', 'train/train0', 'val/val0')
    (tmp_path / 'names.txt').write_text('sky 70 130 180\nroad 128 64 128\ncar 0 0 142\n')
    config.dataset.classes = 'names.txt'
    assert told(config, caplog, capsys)[0] == ''
    pictures[1].putpalette([channel for i in (0, 1) for channel in colors[i]] + [1, 2, 3])
    same = folder(tmp_path / 'same', [pictures[0], Image.fromarray(raw(0, 1, 2))])  # grey has no palette
    assert told(settings(same), caplog, capsys)[0] == ''


def test_black_that_the_class_file_does_not_list(tmp_path, caplog, capsys):
    colors = np.array([(0, 0, 0), (128, 64, 128), (0, 0, 142)], np.uint8)
    painted = colors[raw(0, 0, 1, 2)]
    root = folder(tmp_path, [painted], [painted])
    (root / 'names.txt').write_text('road 128 64 128\ncar 0 0 142\n')
    config = settings(root, classes='names.txt')
    both_tell(config, caplog, capsys, 'train: 50.0 %', 'black', "'background 0 0 0'")
    for line in ('background 0 0 0', 'ignore 0 0 0'):
        (root / 'names.txt').write_text(f'{line}\nroad 128 64 128\ncar 0 0 142\n')
        assert told(config, caplog, capsys)[0] == ''


def test_jpeg_labels_that_ranges_make_usable(tmp_path, caplog, capsys):
    root = folder(tmp_path)
    for label in list((root / 'labels').glob('*/*.png')):
        mask = Image.open(label).point(lambda value: 255 * (value > 0))
        label.unlink()
        save(label.with_suffix('.jpg'), mask)
    config = settings(root, classes='a,b', label_map='0-127:0,128-255:1', label_ending='.jpg')
    both_tell(config, caplog, capsys, '2 labels are JPEG', 'train0')


def test_images_that_are_there_twice(tmp_path, caplog, capsys):
    root = folder(tmp_path, train=((0, 1, 2),) * 3)
    image = root / 'images/train/train0.png'
    (root / 'images/train/train2.png').write_bytes(image.read_bytes())
    both_tell(settings(root), caplog, capsys, 'train: 1 images', 'train0 = train2')
    (root / 'images/train/train2.png').unlink()
    (root / 'labels/train/train2.png').unlink()
    (root / 'images/val/val0.png').write_bytes(image.read_bytes())
    both_tell(settings(root), caplog, capsys, 'in train and in val', 'train0 = val0')


def test_files_that_are_listed_twice(tmp_path, caplog, capsys):
    for name in 'abc':
        save(tmp_path / f'images/{name}.png', photo())
        save(tmp_path / f'labels/{name}.png', raw(0, 1, 2))
    lists = {'images': 'images', 'labels': 'labels', 'lists': '{split}.txt'}
    (tmp_path / 'train.txt').write_text('a\nb\na\n')
    (tmp_path / 'val.txt').write_text('c\n')
    both_tell(settings(tmp_path, **lists), caplog, capsys, 'train: 1 images are there twice', 'a', 'list')
    (tmp_path / 'train.txt').write_text('a\nb\nc\n')
    both_tell(settings(tmp_path, **lists), caplog, capsys, 'in train and in val', 'such as ', 'c')


def test_unusable_labels_end_training_at_the_start(tmp_path):
    config = settings(folder(tmp_path, train=((0, 1, 2, 7),)))
    with pytest.raises(DataError, match='7 .*label_map='):
        at_start(config)
    config.loader.bad_samples = 'skip'
    folder(tmp_path, train=((0, 1, 2, 7), (0, 1, 2)))
    at_start(config)


class Own:
    """A source of the user."""

    problems = ()
    dataset = ann_jax.Dataset('own', classes=('a', 'b'), colors=((1, 1, 1), (2, 2, 2)))

    def __init__(self, *values, count=100):
        self.values, self.count, self.read = values, count, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read.append(index)
        return {'name': str(index), 'image': photo(), 'label': raw(*self.values)}


def test_sources_of_the_user_are_sampled(caplog):
    config = defaults()
    ours = Own(0)
    with caplog.at_level(logging.WARNING):
        first_look(config, ours, Own(0, 1))
    assert caplog.messages and all(
        word in caplog.messages[0] for word in ('train: ', 'the 16 labels sampled', 'b')
    )
    assert len(ours.read) == 16
    with pytest.raises(DataError, match='eval: every pixel of the 100 labels is ignored'):
        first_look(config, Own(0, 1), Own(IGNORE))


def test_splits_of_one_name_are_both_looked_at_unless_they_are_the_same(tmp_path, caplog):
    config = settings(folder(tmp_path, val=((0, 1),)), train_split='val', eval_split='val')
    with caplog.at_level(logging.INFO):
        at_start(config)
    assert 'looked at 1 of 1 val labels' in caplog.text
    ours, theirs = Own(0, 1), Own(IGNORE)
    ours.split = theirs.split = 'mine'
    with pytest.raises(DataError, match='mine to evaluate: every pixel'):
        first_look(config, ours, theirs)


def test_labels_of_the_user_that_are_no_classes():
    with pytest.raises(DataError, match='has the label 7'):
        first_look(defaults(), Own(0, 7), Own(0, 1))


@pytest.mark.parametrize('first', [True, False])
def test_an_error_of_one_process_ends_all(first, monkeypatch):
    """Process 0 alone looks; the others hear what it decides."""
    agreed = []
    monkeypatch.setattr('ann_jax.modes.first_look.is_main', lambda: first)
    monkeypatch.setattr('ann_jax.modes.first_look.all_agree', lambda good: agreed.append(good))
    source = Own(IGNORE)
    with pytest.raises(DataError, match='every pixel' if first else 'process 0'):
        first_look(defaults(), source, Own(0, 1))
    assert agreed == [not first] and bool(source.read) == first


def test_a_part_of_the_evaluation_split(tmp_path, caplog):
    config = settings(folder(tmp_path, val=((0, 1, 2), (0,))))
    source = build.source(config, 'train')
    part = Subset(build.source(config, 'val'), [0])
    assert isinstance(source, FolderSource) and part.split == 'val' and len(part.image_files()) == 1
    with caplog.at_level(logging.WARNING):
        first_look(config, source, part)
    assert not caplog.messages
