"""Using a trained network from Python: images in, class maps out."""

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
from ann_jax.data.images import to_rgb
from ann_jax.errors import ConfigError, DataError
from ann_jax.inference import pictures
from ann_jax.inference.protocols import Canvas, check_protocol, make_protocol
from ann_jax.models.fold import fold
from ann_jax.parallel.arrays import replicated
from ann_jax.parallel.mesh import make_mesh
from ann_jax.parallel.programs import jit
from ann_jax.typing import Backbone
from ann_jax.weights.folder import Weights
from ann_jax.weights.inputs import normalizer
from ann_jax.weights.opening import open_network

ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
READ_AHEAD = 4
PROTOCOL_SETTINGS = ('scales', 'flip', 'crop', 'stride', 'average')

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
            model.json.
        dtype: what the network computes in, 'float32' or 'bfloat16'.
        space: number of devices that share the rows of an image, for images too large for one; -1 for all.
        backbone: the backbone that the weights were trained with, if it is not part of this package.
        **settings: settings of the test protocol, like `config.eval`: scales, flip, crop, stride, average.

    Raises:
        ConfigError: there are no weights, or a setting is unknown.
        DataError: the weights are damaged.
    """
    unknown = settings.keys() - PROTOCOL_SETTINGS
    if unknown:
        raise ConfigError(f'unknown settings {sorted(unknown)}: known are {", ".join(PROTOCOL_SETTINGS)}')
    return Segmenter(
        open_network(Path(path).expanduser()), dtype=dtype, space=space, backbone=backbone, **settings
    )


@dataclass(frozen=True)
class Result:
    """The class map of one image.

    Attributes:
        path: of the file; None if the image was not a file.
        image: (H, W, 3) uint8 RGB.
        ids: (H, W) uint8 class indices.
        classes: names of the classes.
        colors: RGB colours of the classes.
    """

    path: Path | None
    image: np.ndarray
    ids: np.ndarray
    classes: tuple[str, ...]
    colors: tuple[pictures.Color, ...]
    _segmenter: 'Segmenter'

    def probabilities(self) -> np.ndarray:
        """(H, W, classes) float32, computed by this call."""
        return next(self._segmenter.probabilities([self.image]))

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
        settings = check_protocol(**settings)
        self.classes, self.colors = weights.classes, weights.colors
        devices = jax.local_devices()
        mesh = make_mesh(devices if space == -1 else devices[:space], data=1, space=space)
        model = weights.network(backbone, dtype=dtype).clone(folded=True)
        self._variables = jax.device_put(fold(model, weights.variables), replicated(mesh))
        self._protocol = make_protocol(model, normalizer(**weights.input), mesh, **settings)
        self._canvases = Canvases(not model.takes_canvas)
        self._argmax = jit(lambda logits: logits.argmax(-1).astype(np.uint8), mesh)
        self._softmax = jit(lambda logits: jax.nn.softmax(logits), mesh)

    def __call__(self, images: Picture | Sequence[Picture]) -> 'Result | list[Result]':
        """Segments one image, or several: a list, or a folder.

        Args:
            images: a path, an array (H, W, 3) or (H, W) uint8 (RGB or grey), a Pillow image, a list of these,
                or a folder, whose images are taken in order of name.

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
        for picture, image in _read_ahead(images, errors):
            ids, size = self._argmax(self._logits(image)), image.shape[:2]
            # Fetched one image late: the device works on this one while the host writes the previous one.
            if pending is not None:
                yield self._result(*pending)
            pending = picture, image, ids, size
        if pending is not None:
            yield self._result(*pending)

    def probabilities(self, images: Iterable[Picture]) -> Iterator[np.ndarray]:
        """(H, W, classes) float32 of each image."""
        for _, image in _read_ahead(images, None):
            height, width = image.shape[:2]
            yield np.asarray(self._softmax(self._logits(image)))[0, :height, :width]

    def _logits(self, image):
        array = pad([image], self._canvases.fit(*image.shape[:2]), 1, (3,))
        return self._protocol(self._variables, Canvas(array, np.array([image.shape[:2]], np.int32))).array

    def _result(self, picture, image, ids, size):
        path = Path(picture) if isinstance(picture, (str, Path)) else None
        ids = np.asarray(ids)[0, : size[0], : size[1]]
        return Result(path, image, ids, self.classes, self.colors, self)


def find_images(folder: str | Path) -> list[Path]:
    """The images of a folder and its subfolders, by name.

    Raises:
        DataError: there are none.
    """
    files = (Path(where, name) for where, names in walk(folder) for name in names)
    found = sorted(path for path in files if path.suffix.lower() in ENDINGS and path.is_file())
    if not found:
        raise DataError(f'{folder} holds no image ({", ".join(ENDINGS)})')
    return found


def _is_picture(images: object) -> TypeGuard[Picture]:
    """Whether this is a single picture; a folder is not."""
    if isinstance(images, (str, Path)):
        return not Path(images).expanduser().is_dir()
    return isinstance(images, (np.ndarray, Image.Image))


def _read_ahead(images, errors):
    """Yields (picture, RGB array); a few are read ahead, in threads."""
    images = iter(images)
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        queue = [(picture, pool.submit(_to_array, picture)) for picture in islice(images, READ_AHEAD)]
        while queue:
            picture, future = queue.pop(0)
            queue += [(more, pool.submit(_to_array, more)) for more in islice(images, 1)]
            try:
                image = future.result()
            except DataError as error:
                if errors is None:
                    raise
                errors.append(str(error))
                continue
            yield picture, image


def _to_array(picture):
    if isinstance(picture, (str, Path)):
        return read_image(Path(picture).expanduser())
    if isinstance(picture, Image.Image):
        try:
            return to_rgb(picture)
        except (OSError, SyntaxError, ValueError) as e:
            raise DataError(f'cannot read the image {picture}: {e}') from e
    array = np.asarray(picture)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, 2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        cure = 'the last axis is red, green and blue'
        if array.dtype.kind == 'f':
            cure = 'convert levels of 0 to 1 by (255 * image).round().astype("uint8")'
        raise DataError(
            f'an image is (H, W, 3) or (H, W) uint8, RGB or grey, not {array.shape} {array.dtype}: {cure}'
        )
    return array


def _write(picture, path):
    if path is not None:
        Image.fromarray(picture).save(path)
    return picture
