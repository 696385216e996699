r"""Measures how fast samples are read: images per second and core, against OpenCV's decode, resize and crop.

    python scripts/read_speed.py --seconds=5

Writes random street scenes of 2048 x 1024 as PNGs, JPEGs and ArrayRecords to a temporary folder, and reads
each with this project's source and augmentation (crops of 769) in one thread. The yardstick reads the same
files by hand in the same run, taking turns: decode image and label, resize both by a scale from 0.5 to 2,
crop, pad, flip.
"""

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from ann_jax.data.datasets import FolderSource
from ann_jax.data.own import own_dataset
from ann_jax.data.records import RecordSource, write
from ann_jax.data.scenes import SceneSource
from ann_jax.data.transforms import Augment

CROP = 769
PAD = (124, 116, 104)


def write_files(root, count):
    """Writes `count` scenes as root/{png,jpg}/train/*, their labels as root/labels/train/*.png."""
    scenes = SceneSource(split='train', count=count, height=1024, width=2048, seed=0)
    for index in range(count):
        sample = scenes[index]
        bgr = cv2.cvtColor(sample['image'], cv2.COLOR_RGB2BGR)
        for folder, array, ending in (
            ('png', bgr, 'png'),
            ('jpg', bgr, 'jpg'),
            ('labels', sample['label'], 'png'),
        ):
            file = root / folder / 'train' / f'{index:03d}.{ending}'
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), array)
    return scenes.dataset.num_classes


def ours(source, augment, rng, index):
    """A sample as training reads it."""
    sample = source[index % len(source)]
    return augment.apply(sample, augment.draw(rng, *sample['label'].shape))


def by_hand(images, labels, rng, index):
    """The same with OpenCV alone: resize the whole, then crop."""
    image = cv2.imread(images[index % len(images)], cv2.IMREAD_COLOR)
    label = cv2.imread(labels[index % len(labels)], cv2.IMREAD_UNCHANGED)
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    scale = rng.uniform(0.5, 2)
    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    image = cv2.resize(image, size)
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    bottom, right = (max(CROP - length, 0) for length in label.shape)
    if bottom or right:
        image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=PAD)
        label = cv2.copyMakeBorder(label, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=255)
    top, left = (rng.integers(length - CROP + 1) for length in label.shape)
    window = slice(top, top + CROP), slice(left, left + CROP)
    image, label = image[window], label[window]
    if rng.random() < 0.5:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    return np.ascontiguousarray(image), np.ascontiguousarray(label)


def measure(readers, seconds):
    """Reads with each in turn until each has had its seconds; returns images per second of CPU time."""
    spent, done = dict.fromkeys(readers, 0.0), dict.fromkeys(readers, 0)
    for read in readers.values():
        read(0)  # files into the cache of the system
    while min(spent.values()) < seconds:
        for name, read in readers.items():
            start = time.process_time()
            for _ in range(4):
                read(done[name])
                done[name] += 1
            spent[name] += time.process_time() - start
    return {name: done[name] / spent[name] for name in readers}


def main():
    """Writes, measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, default=5, help='CPU time for each line of the table')
    parser.add_argument('--count', type=int, default=16, help='images to write')
    options = parser.parse_args()
    cv2.setNumThreads(0)
    augment = Augment(crop=(CROP, CROP))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        classes = write_files(root, options.count)
        readers = {}
        for ending in ('png', 'jpg'):
            dataset = own_dataset(name=ending, classes=str(classes), images=f'{ending}/{{split}}')
            source = FolderSource(dataset, root, 'train')
            write(ending, {'train': source}, root / 'records')
            records = RecordSource(ending, root / 'records', 'train')
            files = sorted(map(str, (root / ending / 'train').iterdir()))
            labels = sorted(map(str, (root / 'labels' / 'train').iterdir()))
            for kind, read in (
                ('files', lambda i, rng, source=source: ours(source, augment, rng, i)),
                ('ArrayRecord', lambda i, rng, records=records: ours(records, augment, rng, i)),
                ('OpenCV by hand', lambda i, rng, f=files, lb=labels: by_hand(f, lb, rng, i)),
            ):
                rng = np.random.default_rng(0)
                readers[ending, kind] = lambda i, read=read, rng=rng: read(i, rng)
        rates = measure(readers, options.seconds)
    for (ending, kind), rate in rates.items():
        ratio = rate / rates[ending, 'OpenCV by hand']
        print(f'{ending}  {kind:<16} {rate:6.1f} images/s per core, {ratio:.2f} x')


if __name__ == '__main__':
    main()
