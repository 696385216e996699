"""Random images, and what reading them gives."""

import io

import numpy as np
import pytest
from PIL import Image

from ann_jax.data.decode.levels import Reading
from ann_jax.errors import DataError

SIZE = (12, 20)
RANGE = Reading.parse('100,4000')


def encoded(image, form, **kwargs):
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, form, **kwargs)
    return stream.getvalue()


def values(top, *shape, dtype=np.uint16, seed=0):
    return np.random.default_rng(seed).integers(0, top, (*SIZE, *shape)).astype(dtype)


def scaled(array, low=100.0, high=4000.0):
    """The rule by its definition, as three channels."""
    levels = np.rint(np.clip((array.astype(np.float64) - low) / (high - low) * 255, 0, 255)).astype(np.uint8)
    return levels if levels.ndim == 3 else np.stack([levels] * 3, -1)


def refused(words, function, *args, error=DataError, **kwargs):
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert all(str(word) in message for word in words) and '\n' not in message, message
