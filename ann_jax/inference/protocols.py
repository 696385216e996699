"""Test protocols of the paper as composable functions (variables, images) -> logits.

whole = whole_image(model, normalize, mesh)
windows = sliding_window(whole, (864, 864), (576, 576), mesh)
test_of_the_paper = multi_scale(windows, (0.75, 1, 1.25), flip=True, average='logits', mesh=mesh)
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from ann_jax.data.canvases import Canvases
from ann_jax.errors import ConfigError, unknown
from ann_jax.kernels.masking import pair
from ann_jax.kernels.resizing import resize_images
from ann_jax.models.ann import ANN
from ann_jax.models.feature_map import FeatureMap
from ann_jax.parallel.arrays import split_batch
from ann_jax.parallel.mesh import shares_images
from ann_jax.parallel.processes import largest
from ann_jax.parallel.programs import jit, on_devices, per_device
from ann_jax.ranges import check
from ann_jax.weights.inputs import Normalize

AVERAGES = ('logits', 'probabilities')


class Canvas(NamedTuple):
    """Images of several sizes in one array, each at the top left.

    Attributes:
        array: (B, H, W, C); logits may have more rows than the images' array if rows are split.
        size: (B, 2) int32, heights and widths of the images, on the host.
    """

    array: jax.Array | np.ndarray
    size: np.ndarray


# (variables, images as RGB float32 or uint8) -> logits of the images' sizes, on canvases of the same size
TestProtocol = Callable[[Any, Canvas], Canvas]


def check_protocol(
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    crop: Sequence[int] = (),
    stride: Sequence[int] = (),
    average: str = 'logits',
) -> dict[str, Any]:
    """Checks settings of `make_protocol`, and returns them unchanged.

    Raises:
        ConfigError: names the setting, its value and what is allowed.
    """
    for name, value in (('scales', scales), ('crop', crop), ('stride', stride)):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f'{name!r}={value!r}: scales, crop and stride are tuples, such as (0.75, 1.0)')
        check(f'eval.{name}', tuple(value))
    if len(crop) != len(stride) or any(step > side for step, side in zip(stride, crop, strict=True)):
        raise ConfigError(
            f'eval.crop={tuple(crop)} and eval.stride={tuple(stride)}: each takes two numbers, eval.stride '
            'at most eval.crop; or both are ()'
        )
    if not isinstance(flip, bool):
        raise ConfigError(f'eval.flip={flip!r}: must be True or False')
    if average not in AVERAGES:
        raise ConfigError(unknown('average', average, AVERAGES))
    return {'scales': scales, 'flip': flip, 'crop': crop, 'stride': stride, 'average': average}


def make_protocol(
    model: ANN,
    normalize: Normalize,
    mesh: Mesh,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    crop: Sequence[int] = (),
    stride: Sequence[int] = (),
    average: str = 'logits',
) -> TestProtocol:
    """Builds a test protocol: whole images or windows, at one scale or several.

    Args:
        model, normalize, mesh: see `whole_image`.
        scales, flip, average: see `multi_scale`.
        crop, stride: see `sliding_window`; () for the whole image.
    """
    result = whole_image(model, normalize, mesh)
    if crop:
        result = sliding_window(result, crop, stride, mesh)
    if tuple(scales) != (1.0,) or flip:
        canvases = Canvases(not model.takes_canvas)
        result = multi_scale(result, tuple(scales), flip, average, mesh, canvases)
    return result


def whole_image(model: ANN, normalize: Normalize, mesh: Mesh) -> TestProtocol:
    """Processes the whole image at once, at its own scale.

    Args:
        model: the network, folded or not.
        normalize: maps pixels to the network's input.
        mesh: the images of a batch are split over its `data` axis, the rows of each over `space`.

    Raises:
        ConfigError: raised by the protocol for padded images, if the network does not support them.
    """

    def run(variables, array, size):
        image = FeatureMap.of(normalize(array), size if model.takes_canvas else None)
        logits: Any = model.apply(variables, image, full_size=True)
        return logits.main.array

    logits = jit(run, mesh) if shares_images(mesh) else per_device(mesh)(run)
    put = on_devices(mesh)

    def protocol(variables, images):
        if not model.takes_canvas and (images.size != images.array.shape[1:3]).any():
            raise ConfigError(
                'model.sampling=max and random, and backbones that give arrays, need images of one size in a '
                'batch, and none below eval.crop: use --config.eval.batch_size=1, or a smaller crop'
            )
        return Canvas(logits(variables, *map(put, images)), images.size)

    return protocol


def sliding_window(
    protocol: TestProtocol, crop: Sequence[int], stride: Sequence[int], mesh: Mesh | None
) -> TestProtocol:
    """Averages a protocol's logits over overlapping windows; images are not resized.

    A window starts every `stride` pixels; the last ones end at the far edges, so every pixel is covered, and
    windows are only padded if the image itself is smaller.

    Args:
        protocol: returns the logits of a window.
        crop: height and width of the windows.
        stride: distance between windows, at most `crop`.
        mesh: as in `whole_image`; None for the device of the images.
    """

    @functools.cache
    def grow(height, width):
        more = lambda x: ((0, 0), (0, height - x.shape[1]), (0, width - x.shape[2]), (0, 0))
        return per_device(mesh)(lambda array: jnp.pad(array, more(array)))

    @per_device(mesh)
    def cut(array, start):
        window = lambda image, at: jax.lax.dynamic_slice(image, (*at, 0), (*crop, image.shape[-1]))
        return jax.vmap(window)(array, start)

    @per_device(mesh, donate=(0, 1))
    def add(total, count, logits, start, size, weight):
        rows, columns = (jnp.arange(n) < size[:, i, None] for i, n in enumerate(crop))
        inside = (rows[:, :, None] & columns[:, None])[..., None] * weight[:, None, None, None]

        def put(canvas, window, at):
            old = jax.lax.dynamic_slice(canvas, (*at, 0), window.shape)
            return jax.lax.dynamic_update_slice(canvas, old + window, (*at, 0))

        total = jax.vmap(put)(total, jnp.where(inside > 0, logits[:, : crop[0]], 0), start)
        return total, jax.vmap(put)(count, inside.astype(jnp.float32), start)

    @functools.cache
    def divide(height, width):
        mean = lambda total, count: (total / jnp.maximum(count, 1))[:, :height, :width]
        return per_device(mesh)(mean)

    def logits(params, images):
        height, width = np.maximum(images.array.shape[1:3], crop)
        array = grow(int(height), int(width))(images.array)
        size = np.minimum(images.size, crop).astype(np.int32)
        starts = [
            [
                (y, x)
                for y in window_starts(h, crop[0], stride[0])
                for x in window_starts(w, crop[1], stride[1])
            ]
            for h, w in images.size
        ]
        total = count = None
        # Every process takes part in every step, regardless of the sizes of its own images.
        for number in range(int(largest(max(map(len, starts)), mesh))):
            start = np.array([each[min(number, len(each) - 1)] for each in starts], np.int32)
            weight = np.array([number < len(each) for each in starts], np.float32)
            window = protocol(params, Canvas(cut(array, start), size)).array
            if total is None:
                total = _zeros(mesh, (*array.shape[:3], window.shape[-1]))
                count = _zeros(mesh, (*array.shape[:3], 1))
            total, count = add(total, count, window, start, size, weight)
        mean = divide(*images.array.shape[1:3])(total, count)
        return Canvas(mean, images.size)

    return logits


def multi_scale(
    protocol: TestProtocol,
    scales: Sequence[float],
    flip: bool,
    average: str,
    mesh: Mesh | None,
    canvases: Canvases | None = None,
) -> TestProtocol:
    """Averages over scales of the image and, with `flip`, mirror images.

    Memory does not grow with the number of scales.

    Args:
        protocol: returns the logits of a scaled image.
        scales: factors on height and width; sizes are rounded half up.
        flip: whether to include mirror images.
        average: 'logits' (the authors), or 'probabilities' (mmsegmentation), whose logarithm is returned.
        mesh: as in `sliding_window`.
        canvases: sizes of the canvases for scaled images.

    Raises:
        ConfigError: unknown `average`.
    """
    if average not in AVERAGES:
        raise ConfigError(unknown('average', average, AVERAGES))
    canvases = canvases or Canvases()

    @functools.cache
    def scale_to(canvas, mirror):
        return per_device(mesh)(
            lambda array, size, target: resize_images(array, pair(size), canvas, pair(target), False, mirror)
        )

    @functools.cache
    def add_from(mirror):
        def add(total, logits, size, target):
            logits = resize_images(logits, pair(size), total.shape[1:3], pair(target), False, mirror)
            return total + (nn.softmax(logits) if average == 'probabilities' else logits)

        return per_device(mesh, donate=(0,))(add)

    @per_device(mesh, donate=(0,))
    def finish(total):
        total = total / (len(scales) * (2 if flip else 1))
        return jnp.log(total) if average == 'probabilities' else total

    def logits(params, images):
        total = None
        for scale in scales:
            size = np.maximum(np.floor(images.size * scale + 0.5), 1).astype(np.int32)
            canvas = (
                images.array.shape[1:3] if scale == 1 else canvases.fit(*map(int, largest(size.max(0), mesh)))
            )
            for mirror in (False, True) if flip else (False,):
                scaled = scale_to(canvas, mirror)(images.array, images.size, size)
                result = protocol(params, Canvas(scaled, size)).array
                if total is None:
                    total = _zeros(mesh, (*images.array.shape[:3], result.shape[-1]))
                total = add_from(mirror)(total, result, size, images.size)
        return Canvas(finish(total), images.size)

    return logits


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """First pixels of the windows along one side: every `stride`, with the last window at the far end."""
    count = max(-(-(length - crop) // stride), 0) + 1
    return [max(min(i * stride, length - crop), 0) for i in range(count)]


def _zeros(mesh, shape):
    return jnp.zeros(shape, jnp.float32, device=mesh and split_batch(mesh))
