"""ArrayRecord files: the same samples and batches as the folders they were written from, and damage."""

import importlib.metadata
import os
import pickle
import re
import resource
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import open_source, write_tree

from ann_jax.data.augment.transforms import Augment
from ann_jax.data.classes import DATASETS
from ann_jax.data.datasets import FolderSource
from ann_jax.data.decode.levels import Reading
from ann_jax.data.own.settings import own_dataset
from ann_jax.data.own.survey import survey
from ann_jax.data.pipeline import eval_batches, train_batches
from ann_jax.data.scenes import SceneSource
from ann_jax.errors import DataError, SaveError

tfds = pytest.importorskip('tensorflow_datasets', reason="pip install '.[datasets]'")
from ann_jax.data.records import RecordSource, write  # noqa: E402
from ann_jax.tools import write_tfds  # noqa: E402

REPOSITORY = Path(__file__).parent.parent
RUN = """
import atexit, runpy, sys
atexit.register(lambda: print('TensorFlow:', 'tensorflow' in sys.modules))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""
CAMVID = REPOSITORY.parent / 'shared/data/camvid'


def parts(name, root, splits):
    """{part: samples} of the splits of a dataset in a folder."""
    dataset = DATASETS[name]
    names = [part for split in splits for part in dataset.splits[split]]
    alone = replace(dataset, splits={part: (part,) for part in names})
    return {part: FolderSource(alone, root, part) for part in names}


def same(one, other, indices=None):
    assert len(one) == len(other)
    for i in range(len(one)) if indices is None else indices:
        a, b = one[i], other[i]
        assert a['name'] == b['name']
        np.testing.assert_array_equal(a['image'], b['image'])
        np.testing.assert_array_equal(a['label'], b['label'])


def expect(words, function, *args):
    with pytest.raises(DataError) as caught:
        function(*args)
    for word in words:
        assert str(word) in str(caught.value)


@pytest.fixture
def written(tmp_path):
    """CamVid of five random images and its records."""
    write_tree('camvid', tmp_path / 'data', size=(40, 60))
    write('camvid', parts('camvid', tmp_path / 'data', ('train', 'val')), tmp_path / 'records')
    return tmp_path / 'data', tmp_path / 'records'


@pytest.mark.parametrize('name', sorted(DATASETS))
def test_records_are_the_folders(name, tmp_path):
    splits = list(write_tree(name, tmp_path / 'data'))
    folder = write(name, parts(name, tmp_path / 'data', splits), tmp_path / 'records')
    assert folder == tmp_path / 'records' / name / '1.0.0'
    for split in (*splits, *(['trainval'] if 'trainval' in DATASETS[name].splits else [])):
        source = open_source(name, root=tmp_path / 'data', split=split)
        records = RecordSource(name, tmp_path / 'records', split)
        same(source, records)
        for key in ('name', 'classes', 'colors', 'categories'):
            assert getattr(records.dataset, key) == getattr(DATASETS[name], key)


def test_images_keep_their_bytes(written):
    data, records = written
    builder = tfds.builder_from_directory(str(records / 'camvid/1.0.0'))
    raw = tfds.decode.SkipDecoding()
    (first, *_) = builder.as_data_source('train', decoders={'image': raw, 'label': raw})
    assert first['image'] == (data / f'images/train/{first["name"].decode()}.jpg').read_bytes()


def test_orientation_survives(tmp_path):
    """An image drawn on as stored, although its orientation says otherwise, and one drawn on upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, size in (('a', (16, 32)), ('b', (32, 16))):
        for folder in ('images/train', 'labels/train'):
            (tmp_path / 'data' / folder).mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(0).integers(0, 256, (16, 32, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / f'data/images/train/{name}.jpg', exif=exif)
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / f'data/labels/train/{name}.png')
    dataset = own_dataset(name='folder', classes='2', root=str(tmp_path / 'data'))
    source = FolderSource(dataset, tmp_path / 'data', 'train')
    write('folder', {'train': source}, tmp_path / 'records')
    records = RecordSource('folder', tmp_path / 'records', 'train')
    same(source, records)
    assert records.dataset.classes == ('class 0', 'class 1') and records[0]['image'].shape == (16, 32, 3)


def test_two_datasets_of_ones_own_in_one_folder(tmp_path, capsys):
    """They are told apart by the names of their folders, or by one that is given."""
    for name, classes in (('My photos', 'sky,road'), ('more', 'sky,road,car')):
        for split in ('train', 'val'):
            for kind, shape in (('images', (8, 9, 3)), ('labels', (8, 9))):
                (tmp_path / name / kind / split).mkdir(parents=True)
                array = np.full(shape, len(classes) % 2, np.uint8)
                Image.fromarray(array).save(tmp_path / name / kind / split / 'a.png')
        flags = [f'--config.dataset.root={tmp_path / name}', f'--config.dataset.classes={classes}']
        write_tfds.main(['--config=folder', *flags, f'--out={tmp_path / "records"}'])
        root = re.search(r'--config.dataset.root=(.*)', capsys.readouterr().out)[1]
        records = RecordSource('folder', root, 'val')
        assert records.dataset.classes == tuple(classes.split(',')) and len(records) == 1
    both = 'folder_more/1.0.0', 'folder_my_photos/1.0.0'
    expect(['several datasets', *both], RecordSource, 'folder', tmp_path / 'records', 'val')
    one = RecordSource('folder', tmp_path / 'records/folder_my_photos', 'train')
    assert one.dataset.classes == ('sky', 'road')
    write_tfds.main(['--config=folder', *flags, '--name=third', f'--out={tmp_path / "other"}'])
    assert len(RecordSource('folder', tmp_path / 'other', 'train')) == 1  # the only one


def test_records_of_images_of_16_bits(tmp_path):
    """They are read as the config says, here and from the records; a part of a split is written whole."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in ('a', 'b'):
            for kind in ('images', 'labels'):
                (tmp_path / kind / split).mkdir(parents=True, exist_ok=True)
            deep = rng.integers(0, 4096, (8, 9)).astype(np.uint16)
            Image.fromarray(deep).save(tmp_path / 'images' / split / f'{name}.png')
            Image.fromarray(rng.integers(0, 2, (8, 9)).astype(np.uint8)).save(
                tmp_path / 'labels' / split / f'{name}.png'
            )
    flags = [f'--config.dataset.root={tmp_path}', '--config.dataset.classes=sky,road']
    flags += ['--config.dataset.image_range=0,4095', '--config.dataset.train_split=train[!b*]']
    write_tfds.main(['--config=folder', *flags, f'--out={tmp_path / "records"}'])
    (root,) = (tmp_path / 'records').iterdir()
    records = RecordSource('folder', root, 'train', Reading.parse('0,4095'))
    assert len(records) == 2
    with Image.open(tmp_path / 'images/train/a.png') as image:
        levels = np.rint(np.asarray(image) / 4095 * 255)
    np.testing.assert_array_equal(records[0]['image'][..., 0], levels)


def test_the_embedded_scenes(tmp_path):
    source = SceneSource(split='val', count=3, height=64, width=128, seed=0)
    write('scenes', {'val': source}, tmp_path)
    records = RecordSource('scenes', tmp_path, 'val')
    same(source, records)
    assert records.dataset.classes == source.dataset.classes


@pytest.mark.parametrize('workers', [0, 1])
def test_the_same_batches(written, workers):
    data, root = written
    batches = []
    for source in (open_source('camvid', root=data, split='train'), RecordSource('camvid', root, 'train')):
        stream = train_batches(source, Augment(crop=(32, 48)), batch_size=2, seed=3, num_workers=workers)
        batches.append([next(stream) for _ in range(4)])
        stream.close()
    for one, other in zip(*batches, strict=True):
        np.testing.assert_array_equal(one['image'], other['image'])
        np.testing.assert_array_equal(one['label'], other['label'])


@pytest.mark.skipif(not CAMVID.is_dir(), reason='CamVid is not beside the repository (../shared/data/camvid)')
def test_camvid_itself(tmp_path):
    write('camvid', parts('camvid', CAMVID, ('val',)), tmp_path)
    folder, records = open_source('camvid', root=CAMVID, split='val'), RecordSource('camvid', tmp_path, 'val')
    assert len(records) == 101
    same(folder, records, range(0, 101, 10))
    for (a, names), (b, others) in zip(
        *(eval_batches(s, batch_size=8) for s in (folder, records)), strict=True
    ):
        assert names == others
        np.testing.assert_array_equal(a['image'], b['image'])
        np.testing.assert_array_equal(a['label'], b['label'])


def test_pickles_small(written):
    source = RecordSource('camvid', written[1], 'trainval')
    again = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 20_000
    same(source, again)


@pytest.fixture
def stock_cityscapes(tmp_path, monkeypatch):
    """The `cityscapes` builder of TFDS over a small tree; of TensorFlow it takes two functions on files."""
    from tensorflow_datasets.datasets.cityscapes import cityscapes_dataset_builder as stock

    files = types.SimpleNamespace(exists=os.path.exists, listdir=os.listdir)
    monkeypatch.setattr(stock, 'tf', types.SimpleNamespace(io=types.SimpleNamespace(gfile=files)))
    monkeypatch.setattr(tfds.download.DownloadManager, 'extract', lambda _, path: path.removesuffix('.zip'))
    for part, city in (('train', 'aachen'), ('val', 'ulm'), ('test', 'bonn'), ('train_extra', 'erfurt')):
        for zipped, folder, ending in (
            ('leftImg8bit_trainvaltest', 'leftImg8bit', 'leftImg8bit'),
            ('leftImg8bit_trainextra', 'leftImg8bit', 'leftImg8bit'),
            ('gtFine_trainvaltest', 'gtFine', 'gtFine_labelIds'),
            ('gtCoarse', 'gtCoarse', 'gtCoarse_labelIds'),
        ):
            file = tmp_path / 'zips' / zipped / folder / part / city / f'{city}_000000_000019_{ending}.png'
            file.parent.mkdir(parents=True)
            (tmp_path / 'zips' / f'{zipped}.zip').touch()
            level = len(part) if folder == 'leftImg8bit' else 7 if folder == 'gtFine' else 33
            size = (1024, 2048, 3) if folder == 'leftImg8bit' else (1024, 2048)
            array = np.full(size, level, np.uint8)
            array[:34] = np.arange(34).reshape(34, *[1] * (len(size) - 1))
            Image.fromarray(array).save(file)

    def prepare(config):
        builder = stock.Builder(data_dir=tmp_path / 'tfds', file_format='array_record', config=config)
        downloads = tfds.download.DownloadConfig(manual_dir=tmp_path / 'zips')
        builder.download_and_prepare(download_dir=tmp_path / 'downloads', download_config=downloads)
        return tmp_path / 'tfds'

    return prepare


@pytest.mark.parametrize('config', ['semantic_segmentation', 'semantic_segmentation_extra'])
def test_the_cityscapes_builder_of_tfds(config, stock_cityscapes, tmp_path):
    """Its output has other features and names of splits, and raw label ids; `extra` is coarse throughout."""
    root = stock_cityscapes(config)
    fine = config == 'semantic_segmentation'
    for split, city in (
        ('train', 'aachen'),
        ('val', 'ulm'),
        ('test', 'bonn') if fine else ('train_extra', 'erfurt'),
    ):
        records = RecordSource('cityscapes', root, split)
        assert len(records) == 1
        sample = records[0]
        assert sample['name'] == f'{city}_000000_000019'
        assert (
            sample['image'].shape == (1024, 2048, 3) and sample['image'][-1, -1].tolist() == [len(split)] * 3
        )
        assert sample['label'][-1, -1] == (0 if fine else 18)
        np.testing.assert_array_equal(sample['label'][:34, 0], DATASETS['cityscapes'].lut[:34])
    assert len(RecordSource('cityscapes', root, 'trainval' if fine else 'train+extra')) == 2


def test_files_without_random_access_are_told_the_cure(written):
    """TFDS writes TFRecord unless told otherwise."""
    info = written[1] / 'camvid/1.0.0/dataset_info.json'
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    expect(['tfrecord', "file_format='array_record'"], RecordSource, 'camvid', written[1], 'train')


def test_what_cannot_be_opened(written, tmp_path, monkeypatch):
    _, records = written
    expect(['no records', 'ann_jax.tools.write_tfds'], RecordSource, 'camvid', tmp_path / 'absent', 'train')
    expect(['no records'], RecordSource, 'ade20k', records, 'train')
    monkeypatch.chdir(records)
    expect(["--config.dataset.root='' holds no records"], RecordSource, 'camvid', '', 'train')
    expect(['test', 'train'], RecordSource, 'camvid', records, 'test')
    same(RecordSource('camvid', records, 'val'), RecordSource('camvid', records / 'camvid/1.0.0', 'val'))
    (records / 'camvid/1.0.0').rename(records / 'camvid/0.9.0')
    write('camvid', parts('camvid', written[0], ('val',)), records)
    expect(['several versions', '0.9.0'], RecordSource, 'camvid', records, 'val')
    expect(['exists already'], write, 'camvid', parts('camvid', written[0], ('val',)), records)


def test_a_missing_library_is_named(written, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
    command = 'pip install tensorflow-datasets'
    expect([command], RecordSource, 'camvid', written[1], 'val')
    expect([command], write, 'camvid', parts('camvid', written[0], ('val',)), written[1] / 'more')


def test_a_bad_file_stops_writing(tmp_path):
    files = write_tree('camvid', tmp_path / 'data')
    bad = files['train'][1][1]
    Image.fromarray(np.full((24, 32), 77, np.uint8)).save(bad)
    expect([bad, '77'], write, 'camvid', parts('camvid', tmp_path / 'data', ('train',)), tmp_path / 'records')
    expect(['no records'], RecordSource, 'camvid', tmp_path / 'records', 'train')


def test_a_full_disk_ends_writing_in_one_line(tmp_path):
    """array_record, which writes, raises no OSError."""
    write_tree('camvid', tmp_path / 'data', num_train=1, size=(64, 64))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(SaveError, match='records: Failed .*File too large.*Free space'):
            write('camvid', parts('camvid', tmp_path / 'data', ('train',)), tmp_path / 'records')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [path for path in (tmp_path / 'records').rglob('*') if path.is_file()]


@pytest.mark.parametrize('damage', ['flipped', 'cut', 'empty', 'gone'])
def test_damaged_files(written, damage):
    _, records = written
    (file,) = (records / 'camvid/1.0.0').glob('camvid-val.array_record*')
    data = bytearray(file.read_bytes())
    where = data.index(b'JFIF') + 300
    data[where] ^= 0xFF
    file.write_bytes({'flipped': data, 'cut': data[: len(data) // 2], 'empty': b'', 'gone': b''}[damage])
    if damage == 'gone':
        file.unlink()
    found = survey(RecordSource('camvid', records, 'val'))
    assert found.errors and all('of val in' in error and str(records) in error for error in found.errors)
    assert not survey(RecordSource('camvid', records, 'train')).errors


def test_without_tensorflow_from_the_command(tmp_path):
    """Writes, checks and reads; nothing imports TensorFlow although it may be installed."""
    write_tree('camvid', tmp_path / 'data', size=(40, 60))
    flags = ['--config=configs/camvid.py', f'--config.dataset.root={tmp_path / "data"}']
    command = [
        sys.executable,
        '-c',
        RUN,
        'scripts/write_tfds.py',
        *flags,
        f'--out={tmp_path / "records"}',
    ]
    environment = {'PATH': '', 'PYTHONPATH': str(REPOSITORY), 'JAX_PLATFORMS': 'cpu', 'HOME': str(tmp_path)}
    run = lambda command: subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )
    result = run(command)
    assert result.returncode == 0 and 'wrote 3 of train, 2 of val' in result.stdout, result.stderr
    assert 'TensorFlow: False' in result.stdout
    same(
        open_source('camvid', root=tmp_path / 'data', split='trainval'),
        RecordSource('camvid', tmp_path / 'records', 'trainval'),
    )


def test_the_extra_declares_what_tfds_forgets():
    """TFDS imports importlib_resources for a builder in a package, and array_record."""
    extra = re.search(r"'datasets': \[(.*?)\]", (REPOSITORY / 'setup.py').read_text(), re.S)[1]
    for package in ('tensorflow-datasets', 'importlib_resources', 'array_record', 'scipy', 'h5py'):
        assert package in extra
    assert importlib.metadata.version('importlib_resources')
