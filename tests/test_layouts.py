"""Every layout in which a dataset is handed out, written as its makers do, with what is odd about it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import open_source, write_tree

from ann_jax.data.archives import Masks, runs
from ann_jax.data.classes import DATASETS
from ann_jax.data.names import PASCAL_CONTEXT_459, PASCAL_CONTEXT_NAMES
from ann_jax.errors import DataError
from ann_jax.typing import IGNORE

RNG = np.random.default_rng(0)
SIZE = (12, 20)


def picture(size=SIZE):
    return RNG.integers(0, 256, (*size, 3), np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def listed(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(names) + '\n')


def labels_of(source):
    return [source[i]['label'] for i in range(len(source))]


def expect(words, function, *args, **kwargs):
    with pytest.raises(DataError) as caught:
        function(*args, **kwargs)
    for word in words:
        assert str(word) in str(caught.value)


def encode_runs(mask):
    """Run lengths of a mask as COCO's tools write them, by their definition, from columns of a 0-1 matrix."""
    flat = mask.T.ravel().astype(int)
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), len(flat)]
    lengths = np.diff(edges).tolist()
    if flat[0]:
        lengths.insert(0, 0)
    text = ''
    for i, value in enumerate(lengths):
        value -= lengths[i - 2] if i > 2 else 0
        while True:
            group, value = value & 31, value >> 5
            last = value == (-1 if group & 16 else 0)
            text += chr(48 + group + (0 if last else 32))
            if last:
                break
    return text


# --- Cityscapes


def test_cityscapes_train_ids(tmp_path):
    written = write_tree('cityscapes', tmp_path)
    dataset = DATASETS['cityscapes']
    truth = labels_of(open_source('cityscapes', root=tmp_path, split='train'))
    for _, path, raw in written['train']:
        train_ids = path.with_name(path.name.replace('labelIds', 'labelTrainIds'))
        Image.fromarray(dataset.lut[raw]).save(train_ids)
    both = labels_of(open_source('cityscapes', root=tmp_path, split='train'))
    for _, path, _ in written['train']:
        path.unlink()
    alone = labels_of(open_source('cityscapes', root=tmp_path, split='train'))
    for a, b, c in zip(truth, both, alone, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_cityscapes_coarse_labels_are_for_train_extra_only(tmp_path):
    write_tree('cityscapes', tmp_path, num_train=1)
    stem = 'train_extra/augsburg/augsburg_000000_000000'
    raw = np.full(SIZE, 26, np.uint8)  # car
    save(tmp_path / f'leftImg8bit/{stem}_leftImg8bit.png', picture())
    save(tmp_path / f'gtCoarse/{stem}_gtCoarse_labelIds.png', raw)
    coarse = 'train/aachen/aachen_000000_000019'
    save(tmp_path / f'gtCoarse/{coarse}_gtCoarse_labelIds.png', raw)
    (label,) = labels_of(open_source('cityscapes', root=tmp_path, split='train_extra'))
    assert (label == 13).all()
    (fine,) = labels_of(open_source('cityscapes', root=tmp_path, split='train'))
    assert len(np.unique(fine)) > 10
    both = open_source('cityscapes', root=tmp_path, split='train+extra')
    assert [both[i]['name'] for i in range(2)] == [f'train/{coarse[6:]}', f'train_extra/{stem[12:]}']
    (tmp_path / 'gtCoarse').rename(tmp_path / 'moved')
    expect(['gtCoarse/train_extra'], open_source, 'cityscapes', root=tmp_path, split='train_extra')
    (tmp_path / 'moved').rename(tmp_path / 'gtCoarse')
    # Without fine labels, train is not read from coarse ones in silence.
    for path in (tmp_path / 'gtFine/train').rglob('*.png'):
        path.unlink()
    expect(['has no label', 'gtFine'], open_source, 'cityscapes', root=tmp_path, split='train')


def test_cityscapes_test_labels_are_blank(tmp_path):
    stem = 'test/berlin/berlin_000000_000019'
    save(tmp_path / f'leftImg8bit/{stem}_leftImg8bit.png', picture())
    save(tmp_path / f'gtFine/{stem}_gtFine_labelIds.png', np.full(SIZE, 3, np.uint8))  # out of roi
    (label,) = labels_of(open_source('cityscapes', root=tmp_path, split='test'))
    assert (label == IGNORE).all()


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


# --- CamVid


def test_camvid_as_segnet_lays_it_out(tmp_path):
    raw = RNG.integers(0, 12, SIZE).astype(np.uint8)
    for part in ('train', 'val', 'test'):
        save(tmp_path / part / '0001TP_006690.png', picture())
        save(tmp_path / f'{part}annot' / '0001TP_006690.png', raw)
    listed(tmp_path / 'train.txt', ['/SegNet/CamVid/train/a.png /SegNet/CamVid/trainannot/a.png'])  # not read
    for split in ('train', 'val', 'test'):
        (label,) = labels_of(open_source('camvid', root=tmp_path, split=split))
        np.testing.assert_array_equal(label, np.where(raw == 11, IGNORE, raw))


def test_camvid_original_colours_and_split(tmp_path):
    names = {
        'train': ['0001TP_006690', '0001TP_008520', '0006R0_f00930', '0016E5_00390', '0016E5_08640'],
        'val': ['0016E5_07959', '0016E5_08159'],
        'test': ['0001TP_008550', '0001TP_010380', 'Seq05VD_f00000', 'Seq05VD_f05100'],
    }
    colors = {'Animal': (64, 128, 64), 'Sky': (128, 128, 128), 'Wall': (64, 192, 0), 'Void': (0, 0, 0)}
    raw = np.zeros((*SIZE, 3), np.uint8)
    raw[:3], raw[3:6], raw[6:9] = colors['Animal'], colors['Sky'], colors['Wall']
    for name in sum(names.values(), []):
        save(tmp_path / f'701_StillsRaw_full/{name}.png', picture())
        save(tmp_path / f'LabeledApproved_full/{name}_L.png', raw)
    classes = DATASETS['camvid32'].classes
    for split, expected in names.items():
        source = open_source('camvid32', root=tmp_path, split=split)
        assert [source[i]['name'] for i in range(len(source))] == expected
        rows = source[0]['label'][::3, 0].tolist()
        assert rows == [classes.index('Animal'), classes.index('Sky'), classes.index('Wall'), IGNORE]
    raw[5, 5] = (1, 2, 3)
    path = tmp_path / 'LabeledApproved_full/0016E5_07959_L.png'
    save(path, raw)
    source = open_source('camvid32', root=tmp_path, split='val')
    expect([path, 'rgb(1, 2, 3) (1 pixels)'], source.__getitem__, 0)


# --- PASCAL Context


def context_tree(root):
    """Images of VOC 2010, the lists of its main task, and more images that have no context labels."""
    names = {'train': ['2008_000002', '2010_000010'], 'val': ['2008_000003']}
    for name in ('2007_000001', *sum(names.values(), [])):
        save(root / f'JPEGImages/{name}.jpg', picture())
    for part, stems in names.items():
        listed(root / f'ImageSets/Main/{part}.txt', stems)
    return names


def test_the_59_classes_are_in_the_order_of_the_459():
    assert len(PASCAL_CONTEXT_459) == 59 == len(PASCAL_CONTEXT_NAMES) - 1
    assert list(PASCAL_CONTEXT_459) == sorted(set(PASCAL_CONTEXT_459)) and max(PASCAL_CONTEXT_459) < 460
    at = dict(zip(PASCAL_CONTEXT_NAMES[1:], PASCAL_CONTEXT_459, strict=True))
    assert (at['aeroplane'], at['person'], at['sky'], at['wood']) == (2, 284, 360, 458)


@pytest.mark.parametrize('name', ['pascal_context', 'pascal_context_59'])
def test_context_from_the_459_class_files(name, tmp_path):
    scipy_io = pytest.importorskip('scipy.io')
    names = context_tree(tmp_path)
    raw = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint16) + 219  # 219 .. 458
    (tmp_path / 'trainval').mkdir()
    for stem in sum(names.values(), []):
        scipy_io.savemat(tmp_path / f'trainval/{stem}.mat', {'LabelMap': raw})
    source = open_source(name, root=tmp_path, split='train')
    assert [source[i]['name'] for i in range(2)] == names['train']
    label, first = source[0]['label'], 60 - len(source.dataset.classes)
    other = 0 if first == 0 else IGNORE
    for value in range(219, 459):
        index = PASCAL_CONTEXT_459.index(value) + 1 - first if value in PASCAL_CONTEXT_459 else other
        assert (label[raw == value] == index).all(), value


def test_context_from_the_masks_of_the_json_file(tmp_path):
    names = context_tree(tmp_path)
    ground, person = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    ground[6:], person[2:9, 5:9] = True, True
    images = [
        {'image_id': int(stem.replace('_', '')), 'file_name': f'{stem}.jpg', 'phase': part}
        | {'height': SIZE[0], 'width': SIZE[1]}
        for part, stems in names.items()
        for stem in stems
    ]
    segments = [
        {'image_id': image['image_id'], 'category_id': category}
        | {'segmentation': {'size': list(SIZE), 'counts': encode_runs(mask)}}
        for image in images
        for category, mask in ((189, ground), (284, person))
    ]
    content = {'images': images, 'annos_segmentation': segments, 'categories': []}
    file = tmp_path / 'trainval_merged.json'
    file.write_text(json.dumps(content))
    source = open_source('pascal_context', root=tmp_path, split='train')
    assert [source[i]['name'] for i in range(len(source))] == names['train']
    at = source.dataset.classes.index
    expected = np.where(person, at('person'), np.where(ground, at('ground'), 0))
    np.testing.assert_array_equal(source[0]['label'], expected)
    (without_background,) = labels_of(open_source('pascal_context_59', root=tmp_path, split='val'))
    np.testing.assert_array_equal(without_background, np.where(expected, expected - 1, IGNORE))

    segments[0]['segmentation']['counts'] = encode_runs(ground)[:-1]
    file.write_text(json.dumps(content | {'more': 1}))
    source = open_source('pascal_context', root=tmp_path, split='train')
    expect([file, names['train'][0], 'category 189'], source.__getitem__, 0)
    file.write_text(json.dumps(content)[:-40])
    expect([file, 'download'], open_source, 'pascal_context', root=tmp_path, split='train')


def test_runs_as_coco_writes_them():
    # By pycocotools: a rectangle of rows 1 .. 3 and columns 2 .. 5 of 5 x 7; noise of 40 x 30.
    mask = np.zeros((5, 7), int)
    mask[1:4, 2:6] = 1
    assert encode_runs(mask) == ';32000004'
    np.testing.assert_array_equal(Masks('f', 'n', 5, 7, ((9, ';32000004'),)).raw(), 9 * mask)
    noise = (np.random.default_rng(1).random((40, 30)) < 0.02).astype(int)
    text = 'n01;0l10QN040N080P40SL0S90SH0[O0X10K0dN0i0050o2'
    np.testing.assert_array_equal(Masks('f', 'n', 40, 30, ((1, text),)).raw(), noise)
    assert sum(runs(text)) == 40 * 30


# --- COCO-Stuff


def test_coco_stuff_ids(tmp_path):
    dataset = DATASETS['coco_stuff']
    at = dict(zip(dataset.classes, dataset.class_to_raw.tolist(), strict=True))
    assert at['person'] == 1 and at['toothbrush'] == 90 and at['banner'] == 92 and at['wood'] == 182
    assert 'street sign' not in at and 'hair brush' not in at
    assert sorted(at.values()) == list(at.values()) and len(at) == 171
    pytest.importorskip('scipy.io')
    written = write_tree('coco_stuff', tmp_path)
    _, path, raw = written['train'][0]
    from scipy.io import savemat

    savemat(path, {'S': np.where(raw == 1, 12, raw).astype(np.uint8)})  # 12: street sign, never drawn
    expect([path, '12 ('], open_source('coco_stuff', root=tmp_path, split='train').__getitem__, 0)
    savemat(path, {'T': raw})
    expect([path, 'it has no S'], open_source('coco_stuff', root=tmp_path, split='train').__getitem__, 0)
    path.write_bytes(path.read_bytes()[:200])
    expect([path, 'cannot read'], open_source('coco_stuff', root=tmp_path, split='train').__getitem__, 0)


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    pytest.importorskip('scipy.io')
    write_tree('coco_stuff', tmp_path)
    source = open_source('coco_stuff', root=tmp_path, split='train')
    monkeypatch.setitem(__import__('sys').modules, 'scipy.io', None)
    expect(['pip install scipy', '.mat'], source.__getitem__, 0)


# --- NYU Depth V2


def nyud_tree(root, count=6):
    """The makers' file, whose axes MATLAB reverses, with its split and the mapping to 40 classes."""
    h5py, scipy_io = pytest.importorskip('h5py'), pytest.importorskip('scipy.io')
    images = RNG.integers(0, 256, (count, 12, 20, 3), np.uint8)
    labels = RNG.integers(0, 895, (count, 12, 20)).astype(np.uint16)
    with h5py.File(root / 'nyu_depth_v2_labeled.mat', 'w') as file:
        file['images'] = images.transpose(0, 3, 2, 1)
        file['labels'] = labels.transpose(0, 2, 1)
    mapping = RNG.integers(1, 41, 894)
    scipy_io.savemat(root / 'classMapping40.mat', {'mapClass': mapping[None]})
    split = {'trainNdxs': np.array([[2], [3], [6]]), 'testNdxs': np.array([[1], [4], [5]])}
    scipy_io.savemat(root / 'splits.mat', split)
    return images, labels, np.array([0, *mapping])


def test_nyud_from_the_makers_file(tmp_path):
    images, labels, mapping = nyud_tree(tmp_path)
    for split, indices in (('train', [1, 2, 5]), ('test', [0, 3, 4])):
        source = open_source('nyud_v2', root=tmp_path, split=split)
        assert len(source) == 3
        for i, index in enumerate(indices):
            sample = source[i]
            assert sample['name'] == f'{index + 1:04d}'
            np.testing.assert_array_equal(sample['image'], images[index])
            forty = mapping[labels[index]]
            np.testing.assert_array_equal(sample['label'], np.where(forty == 0, IGNORE, forty - 1))
    file = tmp_path / 'nyu_depth_v2_labeled.mat'
    file.write_bytes(file.read_bytes()[:1000])
    expect([file, 'cannot read'], source.__getitem__, 0)
    (tmp_path / 'classMapping40.mat').unlink()
    expect(['classMapping40.mat', 'beside'], open_source, 'nyud_v2', root=tmp_path, split='test')


def test_nyud_from_pictures_and_lists(tmp_path):
    raw = RNG.integers(0, 41, SIZE).astype(np.uint8)
    for name in ('5001', '5002', '5003'):
        save(tmp_path / f'images/{name}.jpg', picture())
        save(tmp_path / f'labels/{name}.png', raw)
    listed(tmp_path / 'train.txt', ['5001', '5003'])
    listed(tmp_path / 'test.txt', ['5002'])
    source = open_source('nyud_v2', root=tmp_path, split='train')
    assert [source[i]['name'] for i in range(2)] == ['5001', '5003']
    np.testing.assert_array_equal(source[0]['label'], np.where(raw == 0, IGNORE, raw - 1.0))


# --- PASCAL VOC


@pytest.mark.parametrize('lists', ['Segmentation', 'SegmentationAug'])
@pytest.mark.parametrize('form', ['{0}', '/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png'])
def test_voc_aug(lists, form, tmp_path):
    write_tree('voc', tmp_path, num_train=1, size=SIZE)
    names = ['2008_000000', '2011_003276']
    for name in names:
        save(tmp_path / f'JPEGImages/{name}.jpg', picture())
        save(tmp_path / f'SegmentationClassAug/{name}.png', np.full(SIZE, 20, np.uint8))
    listed(tmp_path / f'ImageSets/{lists}/trainaug.txt', [form.format(name) for name in names])
    source = open_source('voc', root=tmp_path, split='trainaug')
    assert len(source) == 2 and all((label == 20).all() for label in labels_of(source))
    (label,) = labels_of(open_source('voc', root=tmp_path, split='train'))
    assert set(np.unique(label)) == {*range(21), IGNORE}


def test_voc_with_sbd_as_its_makers_hand_it_out(tmp_path):
    scipy_io = pytest.importorskip('scipy.io')
    written = write_tree('voc', tmp_path, num_train=1, num_val=1)
    sbd = tmp_path / 'benchmark_RELEASE/dataset'
    (sbd / 'cls').mkdir(parents=True)
    raw = RNG.integers(0, 21, SIZE).astype(np.uint8)
    of_voc = [files[0][0].stem for files in written.values()]
    for name in ('2011_003276', *of_voc):  # SBD holds images of VOC's train and val too
        save(sbd / f'img/{name}.jpg', picture())
        truth = {'Segmentation': raw, 'Boundaries': np.zeros((20, 1), object), 'CategoriesPresent': [1]}
        scipy_io.savemat(sbd / f'cls/{name}.mat', {'GTcls': truth}, do_compression=True)
    source = open_source('voc', root=tmp_path, split='train+sbd')
    assert [source[i]['name'] for i in range(len(source))] == [f'train/{of_voc[0]}', 'sbd/2011_003276']
    np.testing.assert_array_equal(source[1]['label'], raw)
    (tmp_path / 'ImageSets/Segmentation/val.txt').unlink()
    expect(['val.txt'], open_source, 'voc', root=tmp_path, split='train+sbd')


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


# --- All


@pytest.mark.parametrize('name', sorted(DATASETS))
def test_a_root_that_holds_something_else_is_told_every_layout(name, tmp_path):
    Path(tmp_path / 'README').touch()
    dataset = DATASETS[name]
    split = next(iter(dataset.splits))
    with pytest.raises(DataError) as caught:
        open_source(name, root=tmp_path, split=split)
    for layout in dataset.layouts:
        assert (layout.archive or layout.images.split('/')[0].replace('{part}', 'train')) in str(caught.value)
    assert 'it holds README' in str(caught.value)
