"""Using a trained network from Python: images in, class maps out."""

import functools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from ann_jax.data.canvases import Canvases, pad
from ann_jax.data.datasets import read_image
from ann_jax.data.decode.images import from_array, from_pillow
from ann_jax.data.decode.levels import to_levels
from ann_jax.data.decode.rasters import Raster, open_raster, whole
from ann_jax.data.decode.reading import check_size
from ann_jax.errors import ConfigError, DataError
from ann_jax.inference.attention import BlockAttention, block_attention, stage_maps
from ann_jax.inference.batching import in_batches
from ann_jax.inference.intake import Picture, is_one, is_path, kept, listed
from ann_jax.inference.protocols import Canvas, check_protocol, make_protocol, whole_image
from ann_jax.inference.results import Result
from ann_jax.inference.strips import segment_in_strips
from ann_jax.models.fold import fold
from ann_jax.parallel.arrays import put_weights
from ann_jax.parallel.mesh import make_mesh
from ann_jax.parallel.programs import jit
from ann_jax.ranges import shown
from ann_jax.typing import Backbone
from ann_jax.weights.folder import Weights
from ann_jax.weights.inputs import for_channels, normalizer
from ann_jax.weights.opening import open_network

logger = logging.getLogger(__name__)

READ_AHEAD = 4
LARGE = 1 << 26  # logits; images with more are segmented in strips if there are windows
PROTOCOL_SETTINGS = ('scales', 'flip', 'crop', 'stride', 'average')
READING_SETTINGS = ('image_range', 'bands', 'page', 'max_pixels')


def load(
    path: str | Path,
    *,
    dtype: str = 'float32',
    space: int = 1,
    device: jax.Device | None = None,
    backbone: Backbone | None = None,
    prefer: str = '',
    **settings: Any,
) -> 'Segmenter':
    """Opens a run, one of its checkpoints, or a folder of converted or exported weights.

    Args:
        path: the workdir of a run, for its best checkpoint; RUN/checkpoints/STEP; or a folder with a
            model.json, or hf://OWNER/NAME[@REVISION], such a folder on a hub.
        dtype: what the network computes in, 'float32' or 'bfloat16'.
        space: number of devices that share the rows of an image, for images too large for one; -1 for all.
        device: the device to compute on, one of jax.local_devices(); None for the first.
        backbone: the backbone that the weights were trained with, if it is not part of this package.
        prefer: of a run with a moving average of its weights, 'ema' or 'weights'; '' for the average.
        **settings: settings of the test protocol, like `config.eval`: scales, flip, crop, stride, average;
            and of the reading of images, like `config.dataset`: page, max_pixels and, if the weights do not
            determine them, image_range and bands.

    Raises:
        ConfigError: there are no weights, or a setting is unknown.
        DataError: the weights are damaged.
    """
    return Segmenter(
        open_network(path, prefer), dtype=dtype, space=space, device=device, backbone=backbone, **settings
    )


class Segmenter:
    """A network with its test protocol.

    It can be pickled, and used by several threads at a time. Processes that were forked after one was made
    cannot use it, because JAX would hang: start them by spawning.

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
        device: jax.Device | None = None,
        backbone: Backbone | None = None,
        **settings: Any,
    ):
        """Prepares without compiling anything; takes the arguments of `load`.

        Raises:
            ConfigError: a setting cannot be used, or this process was forked from one with a segmenter.
            DataError: the weights do not fit their network.
        """
        if not isinstance(weights, Weights):
            raise ConfigError(f'weights={shown(weights)}: must be a `Weights`; ann_jax.load opens a path')
        known = PROTOCOL_SETTINGS + READING_SETTINGS
        if unknown := settings.keys() - {*known}:
            raise ConfigError(f'unknown settings {sorted(unknown)}: known are {", ".join(known)}')
        if not (device is None or isinstance(device, jax.Device)):
            raise ConfigError(f'device={shown(device)}: must be one of jax.local_devices(), or None')
        if not isinstance(space, int):
            raise ConfigError(f'space={shown(space)}: must be a number of devices, or -1 for all')
        if dtype not in ('float32', 'bfloat16'):
            raise ConfigError(f'dtype={dtype!r}: takes float32 or bfloat16')
        if device is not None and space != 1:
            raise ConfigError(f'device={device} and space={space}: name one device, or share the rows')
        _refuse_fork()
        model = weights.network(backbone, dtype=dtype).clone(folded=True)
        self._made = {'dtype': dtype, 'space': space, 'device': device, 'backbone': backbone, **settings}
        self._prepare(replace(weights, variables={}), fold(model, weights.variables), **self._made)

    def _prepare(self, weights, variables, *, dtype, space, device, backbone, **settings):
        """With folded variables."""
        self._weights = weights
        reading = {name: settings.pop(name) for name in READING_SETTINGS if name in settings}
        settings = check_protocol(**settings)
        self._reading = weights.reading(**reading)
        self.classes, self.colors = weights.classes, weights.colors
        devices = jax.local_devices() if device is None else [device]
        if space != -1 and not 1 <= space <= len(devices):
            raise ConfigError(f'space={space}: must be from 1 to {len(devices)}, the devices, or -1 for all')
        mesh = make_mesh(devices if space == -1 else devices[:space], data=1, space=space)
        model = weights.network(backbone, dtype=dtype).clone(folded=True)
        self._variables = put_weights(variables, mesh)
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
        self._block_attention = block_attention(model, normalize, mesh)
        self._stage_maps = stage_maps(model, normalize, mesh)
        self._canvases = Canvases(not model.takes_canvas)
        self._argmax = jit(lambda logits: logits.argmax(-1).astype(np.uint8), mesh)
        self._softmax = jit(lambda logits: jax.nn.softmax(logits), mesh)
        self._latest: list[jax.Array] = []  # logits of the latest result

    def __repr__(self):
        model, dtype = self._weights.model, self._made['dtype']
        backbone = self._weights.backbone or f'ResNet-{model["depth"]}'
        return f'Segmenter({model["variant"]} on {backbone}, {len(self.classes)} classes, {dtype})'

    def __getstate__(self) -> dict[str, Any]:
        device = self._made['device']
        number = None if device is None else jax.local_devices().index(device)
        variables = jax.device_get(self._variables)
        return {'weights': self._weights, 'variables': variables, 'made': {**self._made, 'device': number}}

    def __setstate__(self, state):
        _refuse_fork()
        number = state['made']['device']
        device = None if number is None else jax.local_devices()[number]
        self._made = {**state['made'], 'device': device}
        self._prepare(state['weights'], state['variables'], **self._made)

    def __call__(self, images: Picture | Sequence[Picture]) -> 'Result | list[Result]':
        """Segments one image, or several: a list, a batch, or a folder.

        Args:
            images: a path, an array (H, W, C) or (H, W), a Pillow image, a list of these, a batch (B, H, W,
                C), or a folder, whose images are taken in order of name. Arrays are RGB, RGBA, grey or, if
                the network picks bands, all bands; uint8, or another type that the image range of the network
                scales; of NumPy, JAX, torch or any library that NumPy can read.

        Returns:
            A `Result`, or a list of them.

        Raises:
            DataError: an image cannot be used; the message names it.
            ConfigError: the segmenter was made in another process.
        """
        several = list(self.stream(images))
        return several[0] if is_one(images) else several

    def stream(
        self,
        images: Picture | Iterable[Picture],
        errors: list[str] | None = None,
        *,
        ahead: int | None = None,
        batch_size: int = 1,
    ) -> Iterator[Result]:
        """Segments many images, in their order.

        Args:
            images: as in `__call__`, or an iterable, which may be endless, such as frames of a camera. Arrays
                are copied when they are taken, so that it may give the same one again.
            errors: a list to which messages about unusable images are appended, instead of raising.
            ahead: images that are taken before the result of one is given, and read while the device works.
                None for 4, but 0 for iterators: a frame is taken when the result of the last was used.
            batch_size: images that are computed together where their canvases are of one size, which keeps
                accelerators busy; up to three times as many are held.

        Raises:
            DataError: an image cannot be used, unless `errors` is given.
            ConfigError: the segmenter was made in another process, or a number cannot be used.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f'batch_size={shown(batch_size)}: must be a whole number of at least 1')
        if ahead is None:
            ahead = 0 if isinstance(images, Iterator) else max(READ_AHEAD, batch_size)
        if not isinstance(ahead, int) or ahead < 0:
            raise ConfigError(f'ahead={shown(ahead)}: must be a whole number of at least 0')
        if batch_size > 1:
            yield from self._stream_batches(
                self._read_ahead(listed(images), errors, ahead), errors, batch_size
            )
            return
        # Fetched one image late: the device works on this one while the host writes the previous one.
        late = min(ahead, 1)
        waiting = []
        for picture, image in self._read_ahead(listed(images), errors, ahead - late):
            try:
                waiting.append((picture, image, *self._ids(image)))
            except DataError as error:  # of a file that is read by rows
                if errors is None:
                    raise
                errors.append(str(error))
            if len(waiting) > late:
                yield self._result(*waiting.pop(0))
        for last in waiting:
            yield self._result(*last)

    def _stream_batches(self, images, errors, size):
        fit = lambda image: None if self._is_large(image) else self._canvases.fit(*image.shape[:2])
        fitted = ((picture, image, fit(image)) for picture, image in images)
        for (picture, image, _), result in in_batches(fitted, itemgetter(2), self._run_batch, size):
            if isinstance(result, DataError):
                if errors is None:
                    raise result
                errors.append(str(result))
            else:
                ids, logits, i = result
                yield self._result(picture, image, ids[i : i + 1], [each[i : i + 1] for each in logits])

    def _run_batch(self, items):
        """For each (picture, image, canvas): class ids and logits of all, and its index; or an error."""
        images = [image for _, image, _ in items]
        if len(images) == 1:
            try:
                return [(*self._ids(images[0]), 0)]
            except DataError as error:  # of a file that is read by rows
                return [error]
        logits = self._protocol(self._variables, _on_canvas(images, items[0][2])).array
        ids = self._argmax(logits)
        return [(ids, [logits], i) for i in range(len(images))]

    def probabilities(self, images: Picture | Iterable[Picture]) -> Iterator[np.ndarray]:
        """(H, W, classes) float32 of each image; takes what `stream` takes.

        Raises:
            DataError, ConfigError: as `stream`.
        """
        ahead = 0 if isinstance(images, Iterator) else READ_AHEAD
        for _, image in self._read_ahead(listed(images), None, ahead):
            yield self.run(whole(image))

    def run(self, image: np.ndarray) -> np.ndarray:
        """(H, W, N) uint8 as the network takes it -> (H, W, classes) float32 probabilities."""
        return self.softmax(self._logits(image), *image.shape[:2])

    def softmax(self, logits: jax.Array, height: int, width: int) -> np.ndarray:
        """(1, h, w, classes) logits of an image on a canvas -> (height, width, classes) probabilities."""
        return np.asarray(self._softmax(logits))[0, :height, :width]

    def attention(self, image: np.ndarray) -> dict[str, BlockAttention]:
        """(H, W, N) uint8 as the network takes it -> name of a block -> its attention."""
        return self._block_attention(self._variables, self._canvas(image))

    def stage_maps(self, image: np.ndarray) -> list[np.ndarray]:
        """(H, W, N) uint8 as the network takes it -> mean over the channels of each stage, (h, w) float32."""
        return self._stage_maps(self._variables, self._canvas(image))

    def _ids(self, image):
        """(1, h, w) uint8, at least the size of the image, and the logits unless they are many."""
        if self._strips and self._is_large(image):
            rows = image.rows if isinstance(image, Raster) else lambda top, bottom: image[top:bottom]
            return self._strips(rows, image.shape[:2])[None], []
        logits = self._logits(image)
        return self._argmax(logits), [] if self._is_large(image) else [logits]

    def _is_large(self, image):
        return image.shape[0] * image.shape[1] * len(self.classes) > LARGE

    def _logits(self, image):
        return self._protocol(self._variables, self._canvas(image)).array

    def _canvas(self, image):
        return _on_canvas([image], self._canvases.fit(*image.shape[:2]))

    def _result(self, picture, image, ids, logits):
        path = Path(picture).expanduser() if is_path(picture) else None
        ids = np.array(np.asarray(ids)[0, : image.shape[0], : image.shape[1]])
        self._latest.clear()  # only the latest result keeps its logits
        self._latest = logits
        return Result(path, ids, self.classes, self.colors, image, self, logits)

    def _read_ahead(self, images, errors, ahead):
        """Yields (picture, levels); `ahead` more are read meanwhile, in threads."""
        _refuse_fork()
        images = iter(images)
        with ThreadPoolExecutor(max(ahead, 1)) as pool:

            def submit(picture):
                try:
                    return picture, pool.submit(self._read, kept(picture))
                except DataError as problem:
                    future: Future[np.ndarray] = Future()
                    future.set_exception(problem)
                    return picture, future

            queue = [submit(picture) for picture in islice(images, 1)]
            while queue:
                picture, future = queue.pop(0)
                image = problem = None
                try:
                    image = future.result()
                except DataError as error:
                    problem = error
                # Of large images, few are held at a time.
                more = min(ahead, 1) if image is not None and self._is_large(image) else ahead
                queue += [submit(picture) for picture in islice(images, max(0, more - len(queue)))]
                if problem is None:
                    yield picture, image
                elif errors is None:
                    raise problem
                else:
                    errors.append(str(problem))
                queue = queue or [submit(picture) for picture in islice(images, 1)]

    def _read(self, picture):
        """The levels of a picture, (H, W, N) uint8."""
        if isinstance(picture, Path):
            raster = self._strips and open_raster(picture, self._reading, LARGE // len(self.classes))
            return raster or read_image(picture, self._reading)
        if isinstance(picture, Image.Image):
            if not all(picture.size):
                raise DataError(f'the Pillow image has no pixels: it is {picture.width}x{picture.height}')
            check_size(picture.width, picture.height, 'given', 'Pillow image', self._reading.max_pixels)
            try:
                values = from_pillow(picture, self._reading)
            except DataError:
                raise
            except Exception as e:  # of a file that was not read yet, or is damaged
                raise DataError(f'cannot read the image {picture}: {e}') from e
            return to_levels(values, self._reading.limits, 'the Pillow image')
        levels = from_array(picture, self._reading)
        limits = self._reading.limits
        if limits and np.ptp(levels) == 0 and picture.min() != picture.max():
            logger.warning(
                'an array with values from %g to %g is blank for the network, whose image_range is %g,%g: '
                'give values of that range',
                picture.min(), picture.max(), *limits,
            )  # fmt: skip
        return levels


def _on_canvas(images, canvas):
    array = pad(images, canvas, len(images), images[0].shape[2:])
    return Canvas(array, np.array([image.shape[:2] for image in images], np.int32))


_process = 0  # that made a segmenter: JAX hangs in processes that are forked from it


def _refuse_fork():
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        raise ConfigError(
            f'this process was forked from process {_process} after that had loaded a network, and JAX would '
            "hang in it: use threads, or multiprocessing.get_context('spawn')"
        )
