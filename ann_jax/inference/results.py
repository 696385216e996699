"""What a segmenter gives for an image."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from PIL import Image

from ann_jax.buckets.paths import place
from ann_jax.data.decode.rasters import Raster, has_place, whole, write_with_place
from ann_jax.errors import ConfigError, unknown
from ann_jax.files import replacing, write_csv, write_json
from ann_jax.inference import formats, pictures
from ann_jax.inference.attention import BlockAttention
from ann_jax.inference.lettering import Color

# What `Result.save` writes, and the ending of each.
KINDS = {
    'ids': '.png',
    'ids16': '.png',
    'colors': '.png',
    'overlay': '.png',
    'areas': '.csv',
    'coco': '.json',
    'polygons': '.geojson',
    'probabilities': '.npy',
}
AREA_HEADS = ('image', 'width', 'height')
_SHOWN = 1024  # pixels of the longer side in a notebook


class Network(Protocol):
    """What a result asks the segmenter that made it."""

    def run(self, image: np.ndarray) -> np.ndarray:
        """(H, W, N) uint8 -> (H, W, classes) probabilities."""

    def softmax(self, logits: jax.Array, height: int, width: int) -> np.ndarray:
        """(1, h, w, classes) logits -> (height, width, classes) probabilities."""

    def attention(self, image: np.ndarray) -> dict[str, BlockAttention]:
        """(H, W, N) uint8 -> name of a block -> its attention."""

    def stage_maps(self, image: np.ndarray) -> list[np.ndarray]:
        """(H, W, N) uint8 -> the mean over the channels of each stage, (h, w) float32."""


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
    colors: tuple[Color, ...]
    _levels: np.ndarray | Raster  # (H, W, N) uint8, what the network takes
    _segmenter: Network | None
    _logits: list[jax.Array] = field(default_factory=list)  # (1, h, w, classes), until the next result
    _attention: dict[str, BlockAttention] = field(default_factory=dict)  # once it was asked for

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
        segmenter = self._network('probabilities')
        kept = self._logits[:1]  # another thread may clear it
        if kept:
            return segmenter.softmax(kept[0], *self.ids.shape)
        return segmenter.run(whole(self._levels))

    def attention(self) -> dict[str, BlockAttention]:
        """What every pixel attends to, in each block: 'AFNB stage4' and 'APNB' of the paper's network.

        The first call runs the network once more, on the whole image at its own scale whatever the test
        protocol. A variant without attention gives an empty dict.

        Raises:
            ConfigError: the result was pickled, so that the network is not there.
            DataError: the image has too many weights, as NB and FNB soon have: one per pair of cells.
        """
        if not self._attention:
            self._attention.update(self._network('attention').attention(whole(self._levels)))
        return dict(self._attention)

    def stage_maps(self) -> list[np.ndarray]:
        """The mean over the channels of Stage1 to Stage5, each (h, w) float32; runs the network once more.

        Raises:
            ConfigError: the result was pickled, so that the network is not there.
        """
        return self._network('stage_maps').stage_maps(whole(self._levels))

    def _network(self, method):
        if self._segmenter is None:
            raise ConfigError(
                f'a result that was pickled has lost its network: call {method}() before, or segment '
                'result.image again'
            )
        return self._segmenter

    def colored(self, path: str | Path | None = None) -> np.ndarray:
        """(H, W, 3) uint8 class colours; written to a file if a path is given.

        Raises:
            ConfigError: no picture format has the ending of the path.
            SaveError: the file cannot be written.
        """
        return _write(pictures.colorize(self.ids, self.colors), path)

    def overlay(
        self, path: str | Path | None = None, opacity: float = 0.6, legend: bool = False
    ) -> np.ndarray:
        """(H, W, 3) uint8 class colours over the image; written to a file if a path is given.

        With a legend of the classes present, it is higher and at least 320 pixels wide.

        Raises:
            ConfigError: the opacity of the colours is not from 0 to 1, or no picture format has the ending of
                the path.
            SaveError: the file cannot be written.
        """
        if not 0 <= opacity <= 1:
            raise ConfigError(f'opacity={opacity}: must be from 0, the image alone, to 1, the colours alone')
        picture = pictures.overlay(whole(self._levels), self.ids, self.colors, opacity)
        if legend:
            picture = pictures.with_legend(picture, self.ids, self.classes, self.colors)
        return _write(picture, path)

    def areas(self) -> dict[str, int]:
        """The number of pixels of every class."""
        counts = np.bincount(self.ids.ravel(), minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=False))

    def coco(self) -> dict[str, Any]:
        """The class map as COCO annotations, with run-length encoded masks: see `formats.coco`.

        Raises:
            DataError: pycocotools is missing.
        """
        return formats.coco(self.ids, self.classes, self._name)

    def polygons(self) -> dict[str, Any]:
        """The class map as GeoJSON, a polygon per connected region: see `formats.polygons`.

        Raises:
            DataError: rasterio is missing.
        """
        return formats.polygons(self.ids, self.classes, self.path)

    def save(
        self, folder: str | Path, write: str | Sequence[str] = 'ids,overlay,areas', name: str = ''
    ) -> list[Path]:
        """Writes files into a folder, which is made if it is missing; returns their paths.

        Args:
            folder: gets one file per kind, such as street_ids.png of street.jpg.
            write: some of ids, ids16, colors, overlay (with its legend), areas, coco, polygons and
                probabilities.
            name: the start of their names; '' for that of the image file, without its ending, or 'image' for
                an array. Files that are there are replaced: name the results of several arrays.

        Raises:
            ConfigError: a kind is unknown.
            DataError: pycocotools or rasterio is missing.
            SaveError: a file cannot be written.
        """
        kinds = [each.strip() for each in (write.split(',') if isinstance(write, str) else write)]
        for kind in kinds:
            if kind not in KINDS:
                raise ConfigError(unknown('kind of file', kind, KINDS))
        stem = name or Path(self._name).stem
        return [self.write(kind, place(folder) / f'{stem}_{kind}') for kind in kinds]

    def write(self, kind: str, path: Path) -> Path:
        """Writes one of the kinds that `save` knows; returns `path` with the ending of the kind.

        Ids of a GeoTIFF become one, with its place.

        Raises:
            DataError, SaveError: as `save`.
        """
        file = path.with_name(path.name + KINDS[kind])
        match kind:
            case 'ids' if self.path and has_place(self.path):
                file = path.with_name(f'{path.name}.tif')
                write_with_place(file, self.ids, self.colors, self.path)
            case 'ids':
                _write(self.ids, file)
            case 'ids16':
                _write(self.ids.astype(np.uint16), file)
            case 'colors':
                self.colored(file)
            case 'overlay':
                self.overlay(file, legend=True)
            case 'areas':
                write_csv(file, AREA_HEADS + self.classes, [self.area_row(self._name)])
            case 'coco':
                write_json(file, self.coco(), indent=None)
            case 'polygons':
                write_json(file, self.polygons(), indent=None)
            case 'probabilities':
                with replacing(file) as draft:
                    np.save(draft, self.probabilities().astype(np.float16))
        return file

    def area_row(self, name: str) -> list[str | int]:
        """The row of an image in a table of areas, whose first columns are `AREA_HEADS`."""
        return [name, *reversed(self.ids.shape), *self.areas().values()]

    @property
    def _name(self):
        return self.path.name if self.path else 'image'

    def _repr_png_(self) -> bytes:
        """What a notebook shows: the overlay and its legend, at most 1024 pixels wide and high."""
        image = pictures.small(pictures.shown(whole(self._levels)), _SHOWN)
        ids = pictures.small(self.ids, _SHOWN)
        picture = pictures.overlay(image, ids, self.colors)
        buffer = io.BytesIO()
        Image.fromarray(pictures.with_legend(picture, ids, self.classes, self.colors)).save(buffer, 'PNG')
        return buffer.getvalue()

    def __repr__(self):
        height, width = self.ids.shape
        name = f'{self.path.name}, ' if self.path else ''
        seen = np.count_nonzero(np.bincount(self.ids.ravel(), minlength=1))
        return f'Result({name}{width} x {height}, {seen} of {len(self.classes)} classes)'

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {'_segmenter': None, '_logits': []}


def _write(picture, path):
    if path is not None:
        ending = os.path.splitext(path)[1].lower()
        if Image.registered_extensions().get(ending) not in Image.SAVE:
            raise ConfigError(f'{path}: no picture format has the ending {ending!r}; use .png, for example')
        with replacing(path) as draft:
            Image.fromarray(picture).save(draft)
    return picture
