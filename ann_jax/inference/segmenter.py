"""Using a trained network from Python: images in, class maps out."""

import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard

import jax
import numpy as np
from PIL import Image

from ann_jax.data.canvases import Canvases, pad
from ann_jax.data.datasets import read_image
from ann_jax.data.disk import walk
from ann_jax.data.images import IMAGE_ENDINGS, from_array, from_pillow, unseen
from ann_jax.data.levels import to_levels
from ann_jax.data.rasters import Raster, open_raster
from ann_jax.data.reading import DECODER_ERRORS
from ann_jax.errors import ConfigError, DataError
from ann_jax.inference import pictures
from ann_jax.inference.protocols import Canvas, check_protocol, make_protocol, whole_image
from ann_jax.inference.strips import segment_in_strips
from ann_jax.models.fold import fold
from ann_jax.parallel.arrays import replicated
from ann_jax.parallel.mesh import make_mesh
from ann_jax.parallel.programs import jit
from ann_jax.typing import Backbone
from ann_jax.weights.folder import Weights
from ann_jax.weights.inputs import for_channels, normalizer
from ann_jax.weights.opening import open_network

logger = logging.getLogger(__name__)

READ_AHEAD = 4
LARGE = 1 << 26  # logits; images with more are segmented in strips if there are windows
PROTOCOL_SETTINGS = ('scales', 'flip', 'crop', 'stride', 'average')
READING_SETTINGS = ('image_range', 'bands', 'page', 'max_pixels')

Picture = str | Path | np.ndarray | Image.Image


def load(
    path: str | Path,
    *,
    dtype: str = 'float32',
    space: int = 1,
    backbone: Backbone | None = None,
    **settings: Any,
) -> 'Segmenter':
    """Opens a run, one of its checkpoints, or a folder of converted or exported weights.

    Args:
        path: the workdir of a run, for its best checkpoint; RUN/checkpoints/STEP; or a folder with a
            model.json, or hf://OWNER/NAME[@REVISION], such a folder on a hub.
        dtype: what the network computes in, 'float32' or 'bfloat16'.
        space: number of devices that share the rows of an image, for images too large for one; -1 for all.
        backbone: the backbone that the weights were trained with, if it is not part of this package.
        **settings: settings of the test protocol, like `config.eval`: scales, flip, crop, stride, average;
            and of the reading of images, like `config.dataset`: page, max_pixels and, if the weights do not
            determine them, image_range and bands.

    Raises:
        ConfigError: there are no weights, or a setting is unknown.
        DataError: the weights are damaged.
    """
    known = PROTOCOL_SETTINGS + READING_SETTINGS
    if unknown := settings.keys() - {*known}:
        raise ConfigError(f'unknown settings {sorted(unknown)}: known are {", ".join(known)}')
    return Segmenter(open_network(path), dtype=dtype, space=space, backbone=backbone, **settings)


@dataclass(frozen=True)
class Result:
    """The class map of one image.

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
    _segmenter: 'Segmenter'
    _levels: np.ndarray | Raster  # (H, W, N) uint8, what the network takes

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8, RGB or the first three of the bands that the network takes."""
        return pictures.shown(_whole(self._levels))

    def probabilities(self) -> np.ndarray:
        """(H, W, classes) float32, computed by this call."""
        return self._segmenter._probabilities(_whole(self._levels))

    def colored(self, path: str | Path | None = None) -> np.ndarray:
        """(H, W, 3) uint8 class colours; written to a file if a path is given."""
        return _write(pictures.colorize(self.ids, self.colors), path)

    def overlay(self, path: str | Path | None = None, opacity: float = 0.6) -> np.ndarray:
        """(H, W, 3) uint8 class colours over the image; written to a file if a path is given."""
        return _write(pictures.overlay(self.image, self.ids, self.colors, opacity), path)


class Segmenter:
    """A network with its test protocol.

    Attributes:
        classes: names of the classes.
        colors: RGB colours of the classes.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        dtype: str = 'float32',
        space: int = 1,
        backbone: Backbone | None = None,
        **settings: Any,
    ):
        """Prepares without compiling anything; takes the arguments of `load`.

        Raises:
            ConfigError: a setting cannot be used.
            DataError: the weights do not fit their network.
        """
        if dtype not in ('float32', 'bfloat16'):
            raise ConfigError(f'dtype={dtype!r}: takes float32 or bfloat16')
        reading = {name: settings.pop(name) for name in READING_SETTINGS if name in settings}
        settings = check_protocol(**settings)
        self._reading = weights.reading(**reading)
        self.classes, self.colors = weights.classes, weights.colors
        devices = jax.local_devices()
        mesh = make_mesh(devices if space == -1 else devices[:space], data=1, space=space)
        model = weights.network(backbone, dtype=dtype).clone(folded=True)
        self._variables = jax.device_put(fold(model, weights.variables), replicated(mesh))
        normalize = normalizer(**for_channels(weights.input, weights.in_channels))
        self._protocol = make_protocol(model, normalize, mesh, **settings)
        self._strips = None
        single = tuple(settings['scales']) == (1.0,) and not settings['flip'] and mesh.size == 1
        if settings['crop'] and single:
            self._strips = functools.partial(
                segment_in_strips,
                whole_image(model, normalize, mesh),
                self._variables,
                crop=settings['crop'],
                stride=settings['stride'],
            )
        self._canvases = Canvases(not model.takes_canvas)
        self._argmax = jit(lambda logits: logits.argmax(-1).astype(np.uint8), mesh)
        self._softmax = jit(lambda logits: jax.nn.softmax(logits), mesh)

    def __call__(self, images: Picture | Sequence[Picture]) -> 'Result | list[Result]':
        """Segments one image, or several: a list, or a folder.

        Args:
            images: a path, an array (H, W, C) or (H, W), a Pillow image, a list of these, or a folder, whose
                images are taken in order of name. Arrays are RGB, RGBA, grey or, if the network picks bands,
                all bands; uint8, or another type that the image range of the network scales.

        Returns:
            A `Result`, or a list of them.

        Raises:
            DataError: an image cannot be used; the message names it.
        """
        several = list(self.stream(images))
        return several[0] if _is_picture(images) else several

    def stream(
        self, images: Picture | Iterable[Picture], errors: list[str] | None = None
    ) -> Iterator[Result]:
        """Segments many images, one by one; the next ones are read while the device works.

        Args:
            images: as in `__call__`, or an iterable, which may be endless.
            errors: a list to which messages about unusable images are appended, instead of raising.

        Raises:
            DataError: an image cannot be used, unless `errors` is given.
        """
        pending = None
        if _is_picture(images):
            images = [images]
        elif isinstance(images, (str, Path)):
            images = find_images(Path(images).expanduser())
        elif isinstance(images, bytes) or not isinstance(images, Iterable):
            raise DataError(f'an image is a path, an array or a Pillow image, not {type(images).__name__}')
        for picture, image in self._read_ahead(images, errors):
            # Fetched one image late: the device works on this one while the host writes the previous one.
            ids = self._ids(image)
            if pending is not None:
                yield self._result(*pending)
            pending = picture, image, ids
        if pending is not None:
            yield self._result(*pending)

    def probabilities(self, images: Iterable[Picture]) -> Iterator[np.ndarray]:
        """(H, W, classes) float32 of each image."""
        for _, image in self._read_ahead(images, None):
            yield self._probabilities(image)

    def _ids(self, image):
        """(1, h, w) uint8, at least the size of the image."""
        if self._strips and self._is_large(image):
            rows = image.rows if isinstance(image, Raster) else lambda top, bottom: image[top:bottom]
            return self._strips(rows, image.shape[:2])[None]
        return self._argmax(self._logits(image))

    def _is_large(self, image):
        return image.shape[0] * image.shape[1] * len(self.classes) > LARGE

    def _probabilities(self, image):
        height, width = image.shape[:2]
        return np.asarray(self._softmax(self._logits(image)))[0, :height, :width]

    def _logits(self, image):
        array = pad([image], self._canvases.fit(*image.shape[:2]), 1, image.shape[2:])
        return self._protocol(self._variables, Canvas(array, np.array([image.shape[:2]], np.int32))).array

    def _result(self, picture, image, ids):
        path = Path(picture) if isinstance(picture, (str, Path)) else None
        ids = np.asarray(ids)[0, : image.shape[0], : image.shape[1]]
        return Result(path, ids, self.classes, self.colors, self, image)

    def _read_ahead(self, images, errors):
        """Yields (picture, levels); a few are read ahead, in threads."""
        images = iter(images)
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            submit = lambda picture: (picture, pool.submit(self._read, picture))
            queue = [submit(picture) for picture in islice(images, 1)]
            while queue:
                picture, future = queue.pop(0)
                image = problem = None
                try:
                    image = future.result()
                except DataError as error:
                    problem = error
                # Of large images, few are held at a time.
                ahead = 1 if image is not None and self._is_large(image) else READ_AHEAD
                queue += [submit(more) for more in islice(images, max(0, ahead - len(queue)))]
                if problem is None:
                    yield picture, image
                elif errors is None:
                    raise problem
                else:
                    errors.append(str(problem))

    def _read(self, picture):
        """The levels of a picture, (H, W, N) uint8."""
        if isinstance(picture, (str, Path)):
            path = Path(picture).expanduser()
            raster = self._strips and open_raster(path, self._reading, LARGE // len(self.classes))
            return raster or read_image(path, self._reading)
        if isinstance(picture, Image.Image):
            try:
                values = from_pillow(picture, self._reading)
            except DECODER_ERRORS as e:
                if isinstance(e, DataError):
                    raise
                raise DataError(f'cannot read the image {picture}: {e}') from e
            return to_levels(values, self._reading.limits, 'the Pillow image')
        return from_array(picture, self._reading)


def find_images(folder: str | Path) -> list[Path]:
    """The images of a folder and its subfolders, by name.

    Raises:
        DataError: there are none.
    """
    files = [Path(where, name) for where, names in walk(folder) for name in names]
    others = unseen(files)
    found = sorted(path for path in files if path.suffix.lower() in IMAGE_ENDINGS and path.is_file())
    if not found:
        raise DataError(
            f'{folder} holds no image ({", ".join(IMAGE_ENDINGS)}){"; " if others else ""}{others}'
        )
    if others:
        logger.warning('%s: %s', folder, others)
    return found


def _is_picture(images: object) -> TypeGuard[Picture]:
    """Whether this is a single picture; a folder is not."""
    if isinstance(images, (str, Path)):
        return not Path(images).expanduser().is_dir()
    return isinstance(images, (np.ndarray, Image.Image))


def _whole(image):
    return image.rows(0, image.shape[0]) if isinstance(image, Raster) else image


def _write(picture, path):
    if path is not None:
        Image.fromarray(picture).save(path)
    return picture
