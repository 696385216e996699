"""Writes small random datasets, laid out and named exactly as their makers do."""

from pathlib import Path

import numpy as np
from PIL import Image

CITIES = ('aachen', 'bochum', 'ulm')
# split -> folder, where the two differ
ADE20K_PARTS = {'train': 'training', 'val': 'validation'}
RAW_VALUES = {'camvid': 12, 'cityscapes': 34, 'ade20k': 151, 'pascal_context': 60, 'pascal_context_59': 60}


def paths(name, root, split, index):
    """Returns the paths of the image and the label of a sample."""
    root = Path(root)
    if name == 'camvid':
        stem = f'0001TP_{index:06d}'
        return root / f'images/{split}/{stem}.jpg', root / f'labels/{split}/{stem}.png'
    if name == 'cityscapes':
        city = CITIES[index % len(CITIES)]
        stem = f'{split}/{city}/{city}_{index:06d}_000019'
        return root / f'leftImg8bit/{stem}_leftImg8bit.png', root / f'gtFine/{stem}_gtFine_labelIds.png'
    if name == 'ade20k':
        stem = f'{ADE20K_PARTS[split]}/ADE_{split}_{index + 1:08d}'
        return root / f'images/{stem}.jpg', root / f'annotations/{stem}.png'
    stem = f'2008_{index + (0 if split == "train" else 500):06d}'
    return root / f'JPEGImages/{stem}.jpg', root / f'SegmentationClassContext/{stem}.png'


def write_tree(name, root, num_train=3, num_val=2, size=(24, 32), seed=0):
    """Writes a dataset under `root`: images of height x width `size`, labels with every raw value in turn.

    Returns:
      {split: [(image path, label path, raw label (H, W) uint8)]}, in the order of the paths.
    """
    rng = np.random.default_rng(seed)
    written = {}
    for split, count in (('train', num_train), ('val', num_val)):
        written[split] = []
        for index in range(count):
            image_path, label_path = paths(name, root, split, index)
            image_path.parent.mkdir(parents=True, exist_ok=True)
            label_path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(image_path)
            raw = (
                rng.permutation(np.arange(size[0] * size[1]) % RAW_VALUES[name])
                .astype(np.uint8)
                .reshape(size)
            )
            Image.fromarray(raw).save(label_path)
            written[split].append((image_path, label_path, raw))
        written[split].sort(key=lambda item: item[0])
        if name.startswith('pascal_context'):
            listed = Path(root) / f'ImageSets/SegmentationContext/{split}.txt'
            listed.parent.mkdir(parents=True, exist_ok=True)
            listed.write_text(''.join(f'{image.stem}\n' for image, _, _ in written[split]))
    return written
