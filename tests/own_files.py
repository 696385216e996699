"""Writes and opens small datasets of a user's own, in which a wrong pair shows."""

import numpy as np
import pytest
from PIL import Image

from ann_jax.data.datasets import FolderSource
from ann_jax.data.own.settings import own_dataset
from ann_jax.errors import DataError

IMAGE = np.zeros((2, 3, 3), np.uint8)


def save(path, label=False, value=0, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((IMAGE[..., 0] if label else IMAGE) + np.uint8(value)).save(path, **kwargs)


def tree(root, images, labels):
    """Writes images of level i and labels of value i, so that a wrong pair shows."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        save(root / image, value=i)
        save(root / label, True, i)


def source(root, split='train', strict=True, **flags):
    flags = {'classes': '9', 'root': str(root)} | flags
    return FolderSource(own_dataset(name='folder', **flags), root, split, strict=strict)


def pairs(samples):
    """{name: (level of the image, value of the label)}."""
    found = (samples[i] for i in range(len(samples)))
    return {s['name']: (int(s['image'][0, 0, 0]), int(s['label'][0, 0])) for s in found}


def matched(samples, names):
    """Whether the samples are those of `tree`, image i with label i."""
    found = pairs(samples)
    assert list(found) == list(names)
    assert all(abs(image - label) <= 1 for image, label in found.values())  # JPEG
    assert sorted(label for _, label in found.values()) == list(range(len(found)))


def refuse(words, function, *args, error=DataError, **kwargs):
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    for word in words:
        assert str(word) in str(caught.value), caught.value
