"""The dataset table, the folder source, and every way in which the files can be wrong."""

import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import open_source, write_tree

from ann_jax import build
from ann_jax.config import defaults
from ann_jax.data.classes import DATASETS
from ann_jax.data.datasets import FolderSource, InRegions, Subset, read_image
from ann_jax.data.layout import INVALID
from ann_jax.data.names import voc_colors
from ann_jax.data.own.survey import survey
from ann_jax.errors import ConfigError, DataError
from ann_jax.typing import IGNORE
from configs import camvid, scenes

CAMVID = Path(__file__).parents[2] / 'shared/data/camvid'
NAMES = sorted(DATASETS)

# Label ids 0..33 -> train ids, from the table of cityscapesScripts; -- is not scored.
CITYSCAPES_TABLE = (
    '-- -- -- -- -- -- -- 0 1 -- -- 2 3 4 -- -- -- 5 -- 6 7 8 9 10 11 12 13 14 15 -- -- 16 17 18'
)
CITYSCAPES_TRAIN_IDS = [255 if word == '--' else int(word) for word in CITYSCAPES_TABLE.split()]


def write_jpeg(path, image, **kwargs):
    Image.fromarray(image).save(path, quality=95, **kwargs)


def one_sample(tmp_path, name='camvid'):
    """Writes a tree with one training sample; returns (source, image path, label path)."""
    ((image, label, _),) = write_tree(name, tmp_path, num_train=1, num_val=1)['train']
    return open_source(name, root=tmp_path, split='train'), image, label


def expect(words, function, *args, **kwargs):
    with pytest.raises(DataError) as caught:
        function(*args, **kwargs)
    for word in words:
        assert str(word) in str(caught.value)


def test_cityscapes_ids():
    lut = DATASETS['cityscapes'].lut
    assert lut[:34].tolist() == CITYSCAPES_TRAIN_IDS
    assert lut[255] == IGNORE  # licence plate: id -1, as a byte
    assert (lut[34:255] == INVALID).all()
    ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert DATASETS['cityscapes'].class_to_raw.tolist() == ids
    named = dict(zip(DATASETS['cityscapes'].classes, DATASETS['cityscapes'].colors, strict=True))
    assert named['rider'] == (255, 0, 0) and named['train'] == (0, 80, 100) and len(named) == 19


def test_label_maps():
    camvid, ade = DATASETS['camvid'].lut, DATASETS['ade20k'].lut
    assert camvid[:12].tolist() == [*range(11), IGNORE] and (camvid[12:] == INVALID).all()
    assert ade[:151].tolist() == [IGNORE, *range(150)] and (ade[151:] == INVALID).all()
    context, context_59 = DATASETS['pascal_context'].lut, DATASETS['pascal_context_59'].lut
    assert context[:60].tolist() == list(range(60)) and context[255] == IGNORE
    assert context_59[:60].tolist() == [IGNORE, *range(59)]
    assert (context[60:255] == INVALID).all() and (context_59[60:255] == INVALID).all()


@pytest.mark.parametrize(
    ('name', 'count'), list(zip(NAMES, [150, 11, 31, 19, 171, 40, 60, 59, 21], strict=True))
)
def test_table(name, count):
    dataset = DATASETS[name]
    assert dataset.name == name and dataset.num_classes == count
    assert len(set(dataset.classes)) == len(set(dataset.colors)) == count
    assert dataset.lut[dataset.class_to_raw].tolist() == list(range(count))


def test_names_at_known_places():
    ade = DATASETS['ade20k'].classes
    places = {
        0: 'wall',
        12: 'person',
        20: 'car',
        58: 'screen door',
        89: 'television',
        124: 'microwave',
        149: 'flag',
    }
    assert {i: ade[i] for i in places} == places
    context = DATASETS['pascal_context'].classes
    assert context[0] == 'background' and list(context[1:]) == sorted(context[1:])
    assert DATASETS['pascal_context_59'].classes == context[1:]


def test_voc_colors():
    known = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    assert list(voc_colors(7)) == known
    assert voc_colors(2, first=20) == ((0, 64, 128), (128, 64, 128))  # VOC: tvmonitor, and the next


@pytest.mark.parametrize('name', NAMES)
def test_reads_what_was_written(name, tmp_path):
    written = write_tree(name, tmp_path)
    dataset = DATASETS[name]
    for split in written:
        source = open_source(name, root=tmp_path, split=split)
        assert source.dataset is dataset
        assert len(source) == len(written[split])
        assert len({source[i]['name'] for i in range(len(source))}) == len(source)
        for i, (image_path, _, raw) in enumerate(written[split]):
            sample = source[i]
            assert sample['image'].dtype == sample['label'].dtype == np.uint8
            np.testing.assert_array_equal(sample['image'], np.array(Image.open(image_path).convert('RGB')))
            expected = [IGNORE if dataset.lut[v] == IGNORE else dataset.lut[v] for v in raw.ravel()]
            assert sample['label'].ravel().tolist() == expected
            assert (sample['label'] < dataset.num_classes).any()
            assert sample['name'] in str(image_path)


@pytest.mark.parametrize('name', [name for name in NAMES if 'trainval' in DATASETS[name].splits])
def test_trainval_is_both(name, tmp_path):
    write_tree(name, tmp_path)
    source = open_source(name, root=tmp_path, split='trainval')
    parts = [open_source(name, root=tmp_path, split=split) for split in ('train', 'val')]
    images = [sample['image'] for part in parts for sample in (part[i] for i in range(len(part)))]
    assert len(source) == len(images) == 5
    for i, image in enumerate(images):
        np.testing.assert_array_equal(source[i]['image'], image)
    assert len({source[i]['name'] for i in range(5)}) == 5


@pytest.mark.parametrize('name', ['camvid', 'voc', 'nyud_v2'])
def test_several_splits_are_joined(name, tmp_path):
    write_tree(name, tmp_path)
    other = 'test' if name == 'nyud_v2' else 'val'
    joined = open_source(name, root=tmp_path, split=f'train+{other}+train')
    each = [open_source(name, root=tmp_path, split=split) for split in ('train', other)]
    assert joined.image_files() == [file for source in each for file in source.image_files()]
    with pytest.raises(DataError, match=f"unknown {name} split 'train\\+vall'"):
        open_source(name, root=tmp_path, split='train+vall')


def test_samples_chosen_by_name(tmp_path):
    written = write_tree('camvid', tmp_path)['train']
    first, *others = (image.stem for image, _, _ in written)
    config = camvid.get_config()
    config.dataset.update(root=str(tmp_path), train_split=f'train[!{first}*]', eval_split=f'train[{first}*]')
    left, held = build.source(config, config.dataset.train_split), build.source(config, f'train[{first}*]')
    names = lambda source: [Path(source[i]['name']).stem for i in range(len(source))]
    assert (names(left), names(held)) == (others, [first])
    assert names(build.source(config, f'train[!{first}*]', limit=1)) == others[:1]
    whole = build.source(config, 'train')
    for source, start in ((held, 0), (left, 1)):
        source = pickle.loads(pickle.dumps(source))
        assert source.split == 'train' and source.image_files()[0] == whole.image_files()[start]
        np.testing.assert_array_equal(source.label(0), whole[start]['label'])
        np.testing.assert_array_equal(source.look(0).sample()['image'], whole[start]['image'])
        np.testing.assert_array_equal(InRegions(source)[0]['image'], whole[start]['image'])
    for pattern, text in (
        ('x*', r'train\[x\*\] is none of the'),
        ('*', r'train\[\*\] is all'),
        ('!*', 'is none'),
    ):
        with pytest.raises(ConfigError, match=text):
            build.source(config, f'train[{pattern}]')
    for split in (f'train[{first}*', 'train[]', 'train['):
        with pytest.raises(ConfigError, match='a pattern in brackets is missing or not closed'):
            build.source(config, split)
    with pytest.raises(ConfigError, match='only the samples of a folder'):
        build.source(scenes.get_config(), 'train[0*]')
    repeated = Subset(whole, [0, 1, 1])
    assert [repeated[i]['name'] for i in range(3)] == [whole[i]['name'] for i in (0, 1, 1)]


@pytest.mark.parametrize('name', [name for name in NAMES if 'val' not in DATASETS[name].splits])
def test_datasets_without_val_say_so(name, tmp_path):
    write_tree(name, tmp_path)
    for split in ('trainval', 'train+val'):
        with pytest.raises(DataError, match='known: train, test; it has no val: train on train alone'):
            open_source(name, root=tmp_path, split=split)


def test_cityscapes_ignores_the_other_files_of_gt_fine(tmp_path):
    _, _, label = one_sample(tmp_path, 'cityscapes')
    for ending in ('_color.png', '_instanceIds.png', '_polygons.json'):
        label.with_name(label.name.replace('_labelIds.png', ending)).write_bytes(b'x')
    label.with_name('._' + label.name).write_bytes(b'x')
    assert len(open_source('cityscapes', root=tmp_path, split='train')) == 1


def test_pickles_small_without_looking_again(tmp_path):
    write_tree('camvid', tmp_path, num_train=20, size=(8, 8))
    source = open_source('camvid', root=tmp_path, split='train')
    before = source[3]
    data = pickle.dumps(source)
    (tmp_path / 'labels/train/0001TP_000000.png').unlink()
    again = pickle.loads(data)
    assert len(data) < 20 * 200 + 3000
    np.testing.assert_array_equal(again[3]['label'], before['label'])


@pytest.mark.parametrize('mode', ['L', 'P', 'I;16'])
def test_label_modes(mode, tmp_path):
    source, _, path = one_sample(tmp_path)
    label = Image.open(path)
    raw = np.array(label)
    if mode == 'P':
        label = label.copy()
        label.putpalette([255, 0, 0] * 256)  # one colour for all: only the indices tell them apart
    elif mode == 'I;16':
        label = Image.fromarray(raw.astype(np.uint16))
    label.save(path)
    np.testing.assert_array_equal(source[0]['label'], np.where(raw == 11, IGNORE, raw))


def test_one_bit_label(tmp_path):
    source, _, path = one_sample(tmp_path)
    raw = np.arange(24 * 32).reshape(24, 32) % 3 == 0
    Image.fromarray(raw).save(path)
    with Image.open(path) as label:
        assert label.mode == '1'
    np.testing.assert_array_equal(source[0]['label'], raw)


def test_grey_and_transparent_images(tmp_path):
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(grey).save(tmp_path / 'grey.png')
    np.testing.assert_array_equal(read_image(tmp_path / 'grey.png'), np.stack([grey] * 3, -1))
    clear = np.dstack([grey, grey + 1, grey + 2, grey * 0 + 255])
    Image.fromarray(clear).save(tmp_path / 'clear.png')
    np.testing.assert_array_equal(read_image(tmp_path / 'clear.png'), clear[..., :3])


@pytest.mark.parametrize('tail', [b'', b'trailing bytes'])  # the second goes to Pillow
def test_exif_orientation(tail, tmp_path):
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, :16] = (250, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to view
    write_jpeg(tmp_path / 'a.jpg', image, exif=exif)
    with open(tmp_path / 'a.jpg', 'ab') as file:
        file.write(tail)
    got = read_image(tmp_path / 'a.jpg')
    assert got.shape == (32, 16, 3)
    assert got[4, 8, 0] > 200 > 50 > got[28, 8, 0]


@pytest.mark.parametrize('format', ['jpeg', 'png'])
@pytest.mark.parametrize('keep', [0.0, 0.3, 0.9])
def test_truncated_image(format, keep, tmp_path):
    source, path, _ = one_sample(tmp_path)
    stream = io.BytesIO()
    Image.open(path).save(stream, format=format)
    data = stream.getvalue()
    path.write_bytes(data[: int(keep * len(data))])
    expect(['cannot read the image', path, 'again'], source.__getitem__, 0)


def test_opencv_is_not_trusted_with_truncated_streams(monkeypatch, tmp_path):
    source, path, _ = one_sample(tmp_path)
    monkeypatch.setattr('cv2.imdecode', lambda *_: np.full((24, 32, 3), 128, np.uint8))
    assert (source[0]['image'] == 128).all()
    path.write_bytes(path.read_bytes()[:-2])
    expect(['cannot read the image', path], source.__getitem__, 0)


def test_damaged_png_image(tmp_path):
    source, path, _ = one_sample(tmp_path)
    stream = io.BytesIO()
    Image.open(path).save(stream, format='png')
    data = bytearray(stream.getvalue())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    expect(['cannot read the image', path], source.__getitem__, 0)


def test_not_an_image(tmp_path):
    source, path, label = one_sample(tmp_path)
    path.write_text('<html>404</html>')
    expect(['cannot read the image', path], source.__getitem__, 0)


@pytest.mark.parametrize('keep', [0.0, 0.3, 0.9])
def test_truncated_label(keep, tmp_path):
    source, _, path = one_sample(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    expect(['cannot read the label', path, 'again'], source.__getitem__, 0)


def test_label_removed_after_listing(tmp_path):
    source, _, path = one_sample(tmp_path)
    path.unlink()
    expect(['cannot read the label', path], source.__getitem__, 0)


def test_sizes_differ(tmp_path):
    source, image, label = one_sample(tmp_path)
    Image.fromarray(np.zeros((24, 31), np.uint8)).save(label)
    expect([image, label, '32x24', '31x24', 'same size'], source.__getitem__, 0)


def test_colour_label(tmp_path):
    source, _, label = one_sample(tmp_path)
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(label)
    expect([label, 'RGB', 'greyscale or palette PNG'], source.__getitem__, 0)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_values_outside_the_map(dtype, tmp_path):
    source, _, label = one_sample(tmp_path)
    raw = np.zeros((24, 32), dtype)
    raw[0, :3], raw[1, :2] = 12, 200
    Image.fromarray(raw).save(label)
    expect(
        [label, 'camvid', '12 (3 pixels)', '200 (2 pixels)', 'relabel', 'Known: 0, 1'], source.__getitem__, 0
    )


def test_values_beyond_a_byte_do_not_wrap_around(tmp_path):
    source, _, label = one_sample(tmp_path)
    Image.fromarray(np.full((24, 32), 256, np.uint16)).save(label)
    expect([label, '256 (768 pixels)'], source.__getitem__, 0)


def test_unknown_names(tmp_path):
    config = defaults()
    config.dataset.name = 'cityscape'
    expect(['cityscape', "'cityscapes'", 'ade20k', 'camvid'], build.dataset, config)
    expect(["'vall'", "'val'", 'train'], open_source, 'camvid', root=tmp_path, split='vall')


@pytest.mark.parametrize('root', ['', None, 'nowhere'])
def test_missing_root(root):
    expect(['--config.dataset.root', 'camvid'], open_source, 'camvid', root=root, split='train')


@pytest.mark.parametrize(
    ('name', 'folder'),
    [
        ('camvid', 'labels/train'),
        ('cityscapes', 'leftImg8bit'),
        ('ade20k', 'annotations'),
        ('pascal_context', 'ImageSets'),
    ],
)
def test_missing_folder(name, folder, tmp_path):
    write_tree(name, tmp_path)
    (tmp_path / folder).rename(tmp_path / 'moved')
    words = [tmp_path / folder, '--config.dataset.root', DATASETS[name].layout]
    expect(words, open_source, name, root=tmp_path, split='train')


def test_layout_names_the_real_folders():
    assert (
        DATASETS['ade20k'].layout
        == 'images/training|validation/**/*.jpg and annotations/training|validation/**/*.png'
    )


def test_a_part_that_no_layout_has(tmp_path):
    """What `write_tfds --splits=vall` asks for."""
    write_tree('cityscapes', tmp_path)
    alone = replace(DATASETS['cityscapes'], splits={'vall': ('vall',)})
    expect(["'vall'", "did you mean 'val'", 'train_extra'], FolderSource, alone, tmp_path, 'vall')


def test_empty_split(tmp_path):
    write_tree('camvid', tmp_path, num_train=0)
    (tmp_path / 'images/train').mkdir()
    (tmp_path / 'labels/train').mkdir()
    expect([tmp_path / 'images/train', 'expected'], open_source, 'camvid', root=tmp_path, split='train')


@pytest.mark.parametrize('name', NAMES)
def test_image_without_label(name, tmp_path):
    _, image, label = one_sample(tmp_path, name)
    label.unlink()
    expect([image, label, 'add'], open_source, name, root=tmp_path, split='train')


def test_label_without_image(tmp_path):
    written = write_tree('cityscapes', tmp_path)
    image, label, _ = written['train'][1]
    image.unlink()
    expect([image, label, 'add'], open_source, 'cityscapes', root=tmp_path, split='train')


def test_listed_without_image(tmp_path):
    written = write_tree('pascal_context', tmp_path)
    image, _, _ = written['train'][0]
    image.unlink()
    expect([image, 'add'], open_source, 'pascal_context', root=tmp_path, split='train')


def test_two_images_of_one_name(tmp_path):
    _, image, _ = one_sample(tmp_path)
    Image.open(image).save(image.with_suffix('.png'))
    expect([image, image.with_suffix('.png'), 'rename'], open_source, 'camvid', root=tmp_path, split='train')


def test_check_collects_everything_and_counts(tmp_path):
    written = write_tree('camvid', tmp_path, num_train=6)['train']
    written[0][1].unlink()
    written[1][0].unlink()
    written[2][0].write_bytes(b'')
    Image.fromarray(np.full((24, 32), 77, np.uint8)).save(written[3][1])
    walked = []

    def progress(items):
        walked.append(len(items))
        return items

    found = survey(open_source('camvid', root=tmp_path, split='train', strict=False), progress)
    errors, counts = found.errors, found.pixels
    assert walked == [4]
    assert len(errors) == 4
    for error, path in zip(errors, [written[0][1], written[1][1], written[2][0], written[3][1]], strict=True):
        assert str(path) in error
    assert counts.shape == (12,) and counts.dtype == np.int64
    good = np.concatenate([raw.ravel() for _, _, raw in written[4:]])
    assert counts.tolist() == np.bincount(good, minlength=12).tolist()
    expect(['no label', '1 more'], FolderSource, DATASETS['camvid'], tmp_path, 'train')


@pytest.mark.skipif(not CAMVID.is_dir(), reason='CamVid is not beside the repository (../shared/data/camvid)')
def test_camvid_itself():
    train, val = (open_source('camvid', root=CAMVID, split=split) for split in ('train', 'val'))
    assert (len(train), len(val)) == (367, 101)
    sample = train[0]
    assert sample['image'].shape == (360, 480, 3) and sample['label'].shape == (360, 480)
    # The first classes by their looks: the sky lies above the road, and is brighter.
    rows = np.arange(360)[:, None] * np.ones(480)
    sky, road = sample['label'] == 0, sample['label'] == 3
    assert rows[sky].mean() < rows[road].mean()
    assert sample['image'][sky].mean() > sample['image'][road].mean()
