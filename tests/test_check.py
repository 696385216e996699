"""--mode=check and --mode=browse on every dataset, whole and damaged."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import EVAL_SPLITS, open_source, write_label, write_tree

from ann_jax.config import validate
from ann_jax.data.classes import DATASETS
from ann_jax.errors import ConfigError, DataError
from ann_jax.modes.browse import browse, sheet
from ann_jax.modes.check import check
from ann_jax.typing import IGNORE

CONFIGS = Path(__file__).parent.parent / 'configs'
ARGUMENTS = {'camvid32': ('camvid', 'classes=32'), 'pascal_context_59': ('pascal_context', 'classes=59')}


def get_config(name, root, **settings):
    file, argument = ARGUMENTS.get(name, (name, None))
    spec = importlib.util.spec_from_file_location(file, CONFIGS / f'{file}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(argument)
    config.dataset.update(root=str(root), **settings)
    validate(config)
    assert config.dataset.name == name
    return config


@pytest.mark.parametrize('name', sorted(DATASETS))
def test_whole_and_damaged_copies_of_every_dataset(name, tmp_path, capsys):
    files = write_tree(name, tmp_path, num_train=5)
    config = get_config(name, tmp_path)
    assert check(config) == 0
    out = capsys.readouterr().out
    assert 'train: 5 images' in out and '0 problems' in out and '32x24' in out and 'absent' not in out
    assert all(class_name in out for class_name in DATASETS[name].classes)

    damaged = files['train']
    (image, _, _), (_, label, _), (_, values, raw), (_, lonely, _) = damaged[:4]
    image.write_bytes(image.read_bytes()[:-60])
    label.write_bytes(label.read_bytes()[: label.stat().st_size // 2])
    if name == 'camvid32':
        Image.fromarray(np.full((*raw.shape, 3), 7, np.uint8)).save(values)
    else:
        write_label(name, values, np.full_like(raw, 221))
    lonely.unlink()
    narrow = files[EVAL_SPLITS.get(name, 'val')][0][1]
    write_label(name, narrow, raw[:, 1:])
    assert check(config) == 1
    out = capsys.readouterr().out
    for words in (
        [image, 'cannot read the image'],
        [label, 'cannot read the label'],
        [values, 'rgb(7, 7, 7) (768 pixels)' if name == 'camvid32' else '221 (768 pixels)'],
        [lonely, 'has no label'],
        [narrow, '31x24', 'same size'],
    ):
        assert any(all(str(word) in line for word in words) for line in out.splitlines()), words
    assert 'train: 4 images' in out and '5 problems' in out


@pytest.mark.parametrize('damage', ['hole', 'deleted', 'whole'])
def test_jpegs_damaged_in_the_middle(damage, tmp_path, capfd):
    """They decode, so training would take them; what libjpeg says about them is caught, file by file."""
    files = write_tree('camvid', tmp_path, num_train=8, size=(96, 128))
    path = files['train'][2][0]
    data = path.read_bytes()
    half = len(data) // 2
    new = {
        'hole': data[:half] + bytes(1500) + data[half + 1500 :],
        'deleted': data[:half] + data[half + 500 :],
    }
    path.write_bytes(new.get(damage, data))
    assert open_source('camvid', root=tmp_path, split='train')[2]['image'].shape == (96, 128, 3)
    capfd.readouterr()
    assert check(get_config('camvid', tmp_path)) == (damage != 'whole')
    out, err = capfd.readouterr()
    found = [line for line in out.splitlines() if 'Corrupt JPEG data' in line]
    assert [str(path) in line for line in found] == ([] if damage == 'whole' else [True])
    assert 'JPEG' not in err and '8/8' in err


def test_check_tells_sizes_absent_classes_blank_labels_and_published_counts(tmp_path, capsys):
    files = write_tree('camvid', tmp_path, num_train=2)
    first, second = (item[1] for item in files['train'])
    Image.fromarray(np.full((24, 32), 3, np.uint8)).save(first)
    Image.fromarray(np.full((40, 20), 11, np.uint8)).save(second)
    Image.fromarray(np.zeros((40, 20, 3), np.uint8)).save(files['train'][1][0])
    assert check(get_config('camvid', tmp_path)) == 0
    out = capsys.readouterr().out
    train = out[: out.index('val: 2')]
    assert 'train: 2 images (published: 367), 0 problems' in train
    assert '2 sizes, 20 .. 32 wide, 24 .. 40 high' in train and '1 images are portrait' in train
    (sky,) = (line for line in train.splitlines() if 'Sky' in line)
    (road,) = (line for line in train.splitlines() if 'Road' in line)
    assert 'absent' in sky and '48.98 % of the pixels, in 1 images' in road and 'absent' not in road
    assert f'1 images have no pixel with a class: {second.stem}' in train


def test_an_own_folder(tmp_path, capsys):
    write_tree('camvid', tmp_path, num_train=1)
    flags = {'classes': 'sky,rest', 'label_map': '0:sky,11:ignore,others:rest'}
    assert check(get_config('folder', tmp_path, **flags)) == 0
    assert 'rest' in capsys.readouterr().out
    with pytest.raises(ConfigError, match='dataset.classes'):
        check(get_config('folder', tmp_path))
    with pytest.raises(ConfigError, match='configs/folder.py'):
        get_config('camvid', tmp_path, classes='sky')
    with pytest.raises(ConfigError, match="dataset.format='tfd'"):
        get_config('camvid', tmp_path, format='tfd')
    with pytest.raises(DataError, match="did you mean 'camvid'"):
        config = get_config('camvid', tmp_path)
        config.dataset.name = 'camvd'
        check(config)


def test_check_reads_records_and_scenes(tmp_path, capsys):
    pytest.importorskip('tensorflow_datasets', reason="pip install '.[datasets]'")
    from ann_jax import build
    from ann_jax.data.records import write

    config = get_config('scenes', '')
    config.dataset.scenes.update(train_count=3, eval_count=2, height=64, width=128)
    assert check(config) == 0
    drawn = capsys.readouterr().out
    write('scenes', {split: build.source(config, split) for split in ('train', 'val')}, tmp_path)
    config = get_config('scenes', tmp_path, format='tfds')
    assert check(config) == 0
    assert capsys.readouterr().out[-len(drawn) :] == drawn
    (file,) = (tmp_path / 'scenes/1.0.0').glob('scenes-val.array_record*')
    file.write_bytes(file.read_bytes()[:70_000])
    assert check(config) == 1
    assert 'cannot read record 0 of val' in capsys.readouterr().out


def test_browse_draws_augmented_samples(tmp_path, capsys):
    write_tree('camvid', tmp_path / 'data')
    config = get_config('camvid', tmp_path / 'data')
    config.augment.crop = (48, 64)
    file = browse(config, tmp_path / 'run')
    count = len(list((tmp_path / 'data').glob('images/train/*')))
    assert capsys.readouterr().out.startswith(f'16 crops of {count} images') and count < 16
    with Image.open(file) as picture:
        width, height = picture.size
    assert width == 4 * (2 * 64 + 8) and height > 4 * (48 + 8)


def test_browse_draws_from_the_samples_of_an_epoch(tmp_path, monkeypatch):
    """Of 16 images, the only one with the rare class comes sqrt(1 / (1 / 16)) = 4 times; one is damaged."""
    for folder in ('images', 'labels'):
        (tmp_path / 'data' / folder / 'train').mkdir(parents=True)
    for i in range(16):
        label = np.full((32, 32), int(i == 3), np.uint8)
        Image.fromarray(np.stack([90 * label] * 3, -1)).save(tmp_path / f'data/images/train/{i:02d}.png')
        Image.fromarray(label).save(tmp_path / f'data/labels/train/{i:02d}.png')
    (tmp_path / 'data/images/train/07.png').write_bytes(b'damaged')
    config = get_config('folder', tmp_path / 'data', classes='common,rare', repeat_threshold=1.0)
    config.loader.bad_samples = 'skip'
    config.augment.crop = (32, 32)
    drawn = []
    monkeypatch.setattr(
        'ann_jax.modes.browse.sheet', lambda images, labels, *_: drawn.append(labels) or images[0]
    )
    browse(config, tmp_path / 'run')
    (labels,) = drawn
    assert (labels == 1).any((1, 2)).sum() > 1


def test_sheet_shows_image_label_and_legend():
    images = np.full((5, 10, 20, 3), 100, np.uint8)
    labels = np.full((5, 10, 20), IGNORE, np.uint8)
    labels[:, :, 10:] = 1
    picture = sheet(images, labels, ('sky', 'road'), ((0, 0, 0), (255, 0, 0)))
    assert picture.dtype == np.uint8 and picture.shape[1] == 320  # of the legend; the grid has 4 * 48
    assert (picture[: 2 * 18, 4 * 48 :] == 255).all()
    cell = picture[4:14, 4:44]
    assert (cell[:, :30] == 100).all()  # the image, and what is ignored
    assert (cell[:, 30:] == (193, 40, 40)).all()  # the label over it
    legend = picture[2 * 18 :]
    assert (legend == (255, 0, 0)).all(-1).any() and not (legend[6:10, 8:16] == (0, 0, 0)).all(-1).any()
