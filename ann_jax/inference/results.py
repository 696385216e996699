"""What a segmenter gives for an image."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from PIL import Image

from ann_jax.data.rasters import Raster, whole
from ann_jax.errors import ConfigError
from ann_jax.files import replacing
from ann_jax.inference import pictures


class Network(Protocol):
    """What a result asks the segmenter that made it."""

    def run(self, image: np.ndarray) -> np.ndarray:
        """(H, W, N) uint8 -> (H, W, classes) probabilities."""

    def softmax(self, logits: jax.Array, height: int, width: int) -> np.ndarray:
        """(1, h, w, classes) logits -> (height, width, classes) probabilities."""


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The class map of one image.

    It can be pickled, without the network that made it.

    Attributes:
        path: of the file; None if the image was not a file.
        ids: (H, W) uint8 class indices.
        classes: names of the classes.
        colors: RGB colours of the classes.
    """

    path: Path | None
    ids: np.ndarray
    classes: tuple[str, ...]
    colors: tuple[pictures.Color, ...]
    _levels: np.ndarray | Raster  # (H, W, N) uint8, what the network takes
    _segmenter: Network | None
    _logits: list[jax.Array] = field(default_factory=list)  # (1, h, w, classes), until the next result

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8, RGB or the first three of the bands that the network takes; a copy."""
        return np.array(pictures.shown(whole(self._levels)))

    def probabilities(self) -> np.ndarray:
        """(H, W, classes) float32.

        Of the latest result of a segmenter, they come from the logits that it keeps. Of an earlier one, or of
        a large image, the network runs again.

        Raises:
            ConfigError: the result was pickled, so that the network is not there.
        """
        if self._segmenter is None:
            raise ConfigError(
                'a result that was pickled has lost its network: call probabilities() before, or segment '
                'result.image again'
            )
        kept = self._logits[:1]  # another thread may clear it
        if kept:
            return self._segmenter.softmax(kept[0], *self.ids.shape)
        return self._segmenter.run(whole(self._levels))

    def colored(self, path: str | Path | None = None) -> np.ndarray:
        """(H, W, 3) uint8 class colours; written to a file if a path is given."""
        return _write(pictures.colorize(self.ids, self.colors), path)

    def overlay(self, path: str | Path | None = None, opacity: float = 0.6) -> np.ndarray:
        """(H, W, 3) uint8 class colours over the image; written to a file if a path is given."""
        return _write(pictures.overlay(whole(self._levels), self.ids, self.colors, opacity), path)

    def __repr__(self):
        height, width = self.ids.shape
        name = f'{self.path.name}, ' if self.path else ''
        seen = np.count_nonzero(np.bincount(self.ids.ravel(), minlength=1))
        return f'Result({name}{width} x {height}, {seen} of {len(self.classes)} classes)'

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {'_segmenter': None, '_logits': []}


def _write(picture, path):
    if path is not None:
        with replacing(path) as draft:
            Image.fromarray(picture).save(draft)
    return picture
