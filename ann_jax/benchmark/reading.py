"""How fast samples are read: images per second on one core, against decode, resize and crop by OpenCV."""

import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict

from ann_jax.benchmark.contest import Row
from ann_jax.data.augment.transforms import Augment
from ann_jax.data.datasets import FolderSource
from ann_jax.data.own.settings import own_dataset
from ann_jax.data.records import RecordSource, write
from ann_jax.data.scenes import SceneSource

CROP = 769
PAD = (124, 116, 104)
SIZE = 1024, 2048
COUNT = 16
Read = Callable[[int, np.random.Generator], Any]  # (index of a sample, generator) -> image and label


def input(config: ConfigDict, rates: Sequence[Row]) -> list[Row]:  # noqa: A001, the section's name
    """Reads 769 x 769 crops from 2048 x 1024 street scenes in one thread, and the same by hand with OpenCV.

    The baseline reads the same files alternately in the same run: it decodes image and label, resizes both by
    0.5 to 2, crops, pads and flips. 'decoded' leaves out reading and decoding of both.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    augment = Augment(crop=(CROP, CROP))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        classes = write_files(root, COUNT)
        readers: dict[tuple[str, str], Read] = {}
        for ending in ('png', 'jpg'):
            dataset = own_dataset(name=ending, classes=str(classes), images=f'{ending}/{{split}}')
            source = FolderSource(dataset, root, 'train')
            write(ending, {'train': source}, root / 'records')
            records = RecordSource(ending, root / 'records', 'train')
            files = sorted(map(str, (root / ending / 'train').iterdir()))
            labels = sorted(map(str, (root / 'labels' / 'train').iterdir()))
            readers[ending, 'OpenCV by hand'] = functools.partial(by_hand, files, labels)
            readers[ending, 'folder'] = functools.partial(ours, source, augment)
            readers[ending, 'ArrayRecord'] = functools.partial(ours, records, augment)
        samples = [source[i] for i in range(len(source))]
        readers['decoded', 'OpenCV by hand'] = functools.partial(decoded_by_hand, samples)
        readers['decoded', 'ours'] = functools.partial(ours, samples, augment)
        measured = measure(readers, config.benchmark.rounds)
    cv2.setNumThreads(threads)
    return [
        {
            'images': ending,
            'reader': kind,
            'images/s per core': rate,
            'times as fast': rate / measured[ending, 'OpenCV by hand'],
        }
        for (ending, kind), rate in measured.items()
    ]


def write_files(root: Path, count: int) -> int:
    """Writes scenes as root/{png,jpg}/train/*, labels as root/labels/train/*.png; returns the classes."""
    scenes = SceneSource(split='train', count=count, height=SIZE[0], width=SIZE[1], seed=0)
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


def ours(source, augment, index, rng):
    """A sample, read like in training."""
    sample = source[index % len(source)]
    return augment.apply(sample, augment.draw(rng, *sample['label'].shape))


def by_hand(images, labels, index, rng):
    """Image and label, read and cropped with OpenCV."""
    image = cv2.imread(images[index % len(images)], cv2.IMREAD_COLOR)
    label = cv2.imread(labels[index % len(labels)], cv2.IMREAD_UNCHANGED)
    assert image is not None, images[index % len(images)]
    return crop_by_hand(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), label, rng)


def decoded_by_hand(samples, index, rng):
    """A decoded sample, cropped with OpenCV."""
    sample = samples[index % len(samples)]
    return crop_by_hand(sample['image'], sample['label'], rng)


def crop_by_hand(image, label, rng):
    """Resizes the whole image, then crops."""
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


def measure(readers: dict[tuple[str, str], Read], rounds: int) -> dict[tuple[str, str], float]:
    """Runs the readers alternately, some images per round; returns images per second of CPU time."""
    rngs = {name: np.random.default_rng(0) for name in readers}  # the same seed, so the same scales
    rates: dict[tuple[str, str], list[float]] = {name: [] for name in readers}
    for number in range(rounds + 1):
        for name, read in readers.items():
            start = time.process_time()
            for index in range(COUNT):
                read(index, rngs[name])
            if number:  # the first round fills the system's file cache
                rates[name].append(COUNT / (time.process_time() - start))
    return {name: float(np.median(each)) for name, each in rates.items()}
