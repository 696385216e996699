"""Images per second of `Segmenter.stream`, one by one and in batches, against PyTorch.

The reference is that of the section `reference`. Without torch, or where the reference cannot be built as the
config says, ours is measured alone.
"""

import functools
import logging
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict

from ann_jax import build
from ann_jax.benchmark.attention import parse_sizes
from ann_jax.benchmark.contest import Contestant, Row, contest
from ann_jax.errors import ConfigError
from ann_jax.inference.segmenter import Segmenter
from ann_jax.models.initializers import initial_variables
from ann_jax.models.settings import OPTIONAL
from ann_jax.weights.folder import Weights
from ann_jax.weights.inputs import IMAGENET_RGB

try:
    from ann_jax.benchmark import reference
except ModuleNotFoundError as error:
    if error.name != 'torch':
        raise
    reference = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

CLASSES = 19


def stream(config: ConfigDict, rates: Sequence[Row]) -> list[Row]:
    """`benchmark.stream_images` images of each of `benchmark.stream_sizes`, from uint8 arrays to class ids.

    'pixels alike' is the share of the pixels of a batch whose class is that of ours, one by one. Weights are
    random, so that rounding decides a few.

    Raises:
        ConfigError: a size is malformed.
    """
    c = config.benchmark
    # Name, number of images that are computed together -> a function from images to ids.
    runs: dict[tuple[str, int], Callable[[np.ndarray], list[np.ndarray]]] = {}
    batches = dict.fromkeys((1, c.stream_batch))
    beside = None
    if reference:
        try:
            beside = reference.networks(config)
        except ConfigError as error:
            logger.warning('measured without PyTorch: %s', error)
    if beside:
        network, config, variables = beside
        for batch in batches:
            runs[reference.REFERENCE, batch] = functools.partial(
                reference.segment, network, batch=batch, config=config
            )
    else:
        variables = initial_variables(build.model(config, CLASSES), 0)
    model = {key: value for key, value in config.model.items() if key not in OPTIONAL}
    names = tuple(map(str, range(CLASSES)))
    weights = Weights(variables, model, {**IMAGENET_RGB}, names, ((0, 0, 0),) * CLASSES)
    segmenter = Segmenter(weights, dtype=config.model.dtype)
    for batch in batches:
        runs['ann_jax', batch] = functools.partial(_segment, segmenter, batch=batch)
    rows = []
    for height, width in parse_sizes(c.stream_sizes, 'benchmark.stream_sizes'):
        images = np.random.default_rng(0).integers(0, 256, (c.stream_images, height, width, 3), np.uint8)
        contestants, alike = {}, []
        expected = runs['ann_jax', 1](images[: c.stream_batch])
        for (name, batch), run in runs.items():
            wrap = Contestant if name == 'ann_jax' else reference.contestant
            how = f'{batch} at a time' if batch > 1 else 'one by one'
            contestants[f'{name} {height}x{width}, {how}'] = wrap(functools.partial(run, images))
            alike.append(np.mean(np.equal(run(images[: c.stream_batch]), expected)))
        for row, share in zip(contest(contestants, c.rounds, rates), alike, strict=True):
            speed = c.stream_images / row['median (ms)'] * 1e3
            rows.append(row | {'images/s': speed, 'pixels alike': float(share)})
    return rows


def _segment(segmenter, images, batch):
    """(B, H, W, 3) uint8 images -> (H, W) uint8 class ids of each."""
    return [result.ids for result in segmenter.stream(images, batch_size=batch)]
