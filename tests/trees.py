"""Writes small random datasets, laid out and named exactly as their makers do, and opens them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ann_jax.data.classes import DATASETS
from ann_jax.data.datasets import FolderSource
from ann_jax.data.names import CAMVID32_CLASSES, voc_colors

CITIES = ('aachen', 'bochum', 'ulm')
# split -> folder, where the two differ
ADE20K_PARTS = {'train': 'training', 'val': 'validation'}
COCO_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}  # street sign, hat, shoe, eye glasses, plate, ...
RAW_VALUES = {
    'camvid': range(12),
    'camvid32': [*range(31), 255],  # 255 stands for Void, which is black
    'cityscapes': range(34),
    'ade20k': range(151),
    'pascal_context': range(60),
    'pascal_context_59': range(60),
    'coco_stuff': [raw for raw in range(183) if raw not in COCO_UNUSED],
    'nyud_v2': range(41),
    'voc': [*range(21), 255],
}
LISTS = {
    'pascal_context': 'ImageSets/SegmentationContext/{}.txt',
    'pascal_context_59': 'ImageSets/SegmentationContext/{}.txt',
    'coco_stuff': 'imageLists/{}.txt',
    'voc': 'ImageSets/Segmentation/{}.txt',
}
EVAL_SPLITS = {'coco_stuff': 'test', 'nyud_v2': 'test'}  # others: val


def paths(name, root, split, index):
    """Returns the paths of the image and the label of a sample."""
    root, train = Path(root), split == 'train'
    if name == 'camvid':
        stem = f'0001TP_{index:06d}'
        return root / f'images/{split}/{stem}.jpg', root / f'labels/{split}/{stem}.png'
    if name == 'camvid32':
        stem = f'0001TP_{6690 + 30 * index:06d}' if train else f'0016E5_{7959 + 2 * index:05d}'
        return root / f'701_StillsRaw_full/{stem}.png', root / f'LabeledApproved_full/{stem}_L.png'
    if name == 'cityscapes':
        city = CITIES[index % len(CITIES)]
        stem = f'{split}/{city}/{city}_{index:06d}_000019'
        return root / f'leftImg8bit/{stem}_leftImg8bit.png', root / f'gtFine/{stem}_gtFine_labelIds.png'
    if name == 'ade20k':
        stem = f'{ADE20K_PARTS[split]}/ADE_{split}_{index + 1:08d}'
        return root / f'images/{stem}.jpg', root / f'annotations/{stem}.png'
    if name == 'coco_stuff':
        stem = f'COCO_train2014_{index + (0 if train else 500):012d}'
        return root / f'images/{stem}.jpg', root / f'annotations/{stem}.mat'
    if name == 'nyud_v2':
        stem = f'{split}/{index:04d}'
        return root / f'images/{stem}.png', root / f'labels/{stem}.png'
    stem = f'2008_{index + (0 if train else 500):06d}'
    folder = 'SegmentationClass' if name == 'voc' else 'SegmentationClassContext'
    return root / f'JPEGImages/{stem}.jpg', root / f'{folder}/{stem}.png'


def write_label(name, path, raw):
    """Writes a label (H, W) of raw values as the makers of a dataset do."""
    if name == 'coco_stuff':
        scipy_io = pytest.importorskip('scipy.io', reason='MATLAB files take scipy')
        names = np.array(['unlabeled', 'person'], object)
        scipy_io.savemat(path, {'S': raw, 'names': names, 'captions': names}, do_compression=True)
    elif name == 'camvid32':
        colors = np.zeros((256, 3), np.uint8)
        colors[:31] = [color for _, color in CAMVID32_CLASSES]
        Image.fromarray(colors[raw]).save(path)
    elif name == 'voc':
        label = Image.fromarray(raw)
        label.putpalette([channel for color in voc_colors(256) for channel in color])
        label.save(path)
    else:
        Image.fromarray(raw).save(path)


def write_tree(name, root, num_train=3, num_val=2, size=(24, 32), seed=0):
    """Writes a dataset under `root`: images of height x width `size`, labels with every raw value in turn.

    Returns:
      {split: [(image path, label path, raw label (H, W) uint8)]}, in the order of the paths.
    """
    rng = np.random.default_rng(seed)
    values = np.array(RAW_VALUES[name], np.uint8)
    written = {}
    for split, count in (('train', num_train), (EVAL_SPLITS.get(name, 'val'), num_val)):
        written[split] = []
        for index in range(count):
            image_path, label_path = paths(name, root, split, index)
            image_path.parent.mkdir(parents=True, exist_ok=True)
            label_path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(image_path)
            raw = values[rng.permutation(np.arange(size[0] * size[1]) % len(values))].reshape(size)
            write_label(name, label_path, raw)
            written[split].append((image_path, label_path, raw))
        written[split].sort(key=lambda item: item[0])
        if name in LISTS:
            listed = Path(root) / LISTS[name].format(split)
            listed.parent.mkdir(parents=True, exist_ok=True)
            listed.write_text(''.join(f'{image.stem}\n' for image, _, _ in written[split]))
    return written


def open_source(name, *, root, split, strict=True):
    return FolderSource(DATASETS[name], root, split, strict=strict)
