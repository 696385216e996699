"""Evaluation: accumulates a confusion matrix over a split, and writes a few pictures."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from tqdm import tqdm

from ann_jax.data.layout import check_labels
from ann_jax.data.pipeline import Replacing, eval_batches
from ann_jax.errors import ConfigError, DataError
from ann_jax.evaluation.metrics import Scores, confusion_matrix
from ann_jax.evaluation.report import Report
from ann_jax.evaluation.samples import Samples
from ann_jax.inference.protocols import Canvas, TestProtocol
from ann_jax.models.ann import ANN, count_classes, image_logits
from ann_jax.models.feature_map import FeatureMap
from ann_jax.models.fold import check_folding, fold
from ann_jax.models.resnet import ResNet
from ann_jax.parallel.arrays import (
    local_rows,
    put_batch,
    put_weights,
    replicated,
    split_batch,
    split_rows,
)
from ann_jax.parallel.mesh import check_batch_size, make_mesh
from ann_jax.parallel.processes import is_main
from ann_jax.parallel.programs import jit
from ann_jax.runs.signals import Stopped
from ann_jax.typing import IGNORE, Source
from ann_jax.weights.inputs import Normalize, check_levels, imagenet_rgb


def evaluate(
    protocol: TestProtocol,
    variables: Mapping[str, Any],
    batches: Iterable,
    *,
    num_classes: int,
    mesh: Mesh,
    progress: Callable[[int], Any] = lambda count: None,
    on_sample: Callable[[str, np.ndarray, np.ndarray, np.ndarray], None] = lambda *sample: None,
    stop: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """Confusion matrix of a split.

    Args:
        protocol: one of `inference.protocols`, on the same mesh.
        variables: variables of its network, on every device.
        batches: (batch, names) pairs, as `data.pipeline.eval_batches` yields them; pixels outside the images,
            and images that fill up a batch, are labelled IGNORE and do not count.
        num_classes: K.
        mesh: the batch is split over its `data` axis.
        progress: called with the number of images done.
        on_sample: called with name, image, label and prediction of each image of this process.
        stop: called before each batch, in every process; must return the same in all of them.

    Returns:
        (K, K) int64, rows are true classes; includes the images of all processes.

    Raises:
        Stopped: `stop` returned True.
    """
    total = np.zeros((num_classes, num_classes), np.int64)
    score = _scorer(num_classes, mesh)

    def collect(names, batch, result):
        confusion, predictions = jax.device_get(result[0]), local_rows(result[1])
        total[...] += confusion
        for name, *arrays, (height, width) in zip(
            names, batch['image'], batch['label'], predictions, batch['size'], strict=False
        ):
            on_sample(name, *(array[:height, :width] for array in arrays))
        progress(len(names))

    pending = None
    for batch, names in batches:
        if stop():
            raise Stopped
        arrays = put_batch(batch, mesh)
        logits = protocol(variables, Canvas(arrays['image'], batch['size']))
        result = score(logits.array, arrays['label'])
        # Collected one batch late: the device works on this batch while the host waits for the previous one.
        if pending is not None:
            collect(*pending)
        pending = names, batch, result
    if pending is not None:
        collect(*pending)
    return total


def make_eval(
    model: nn.Module,
    mesh: Mesh | None = None,
    *,
    normalize: Normalize = imagenet_rgb,
) -> Callable[[Mapping[str, Any], Mapping[str, Any]], jax.Array]:
    """Builds the jitted evaluation of a batch at its own scale; pass the sum over batches to `scores`.

    Args:
        model: an `ANN`, or any network that `image_logits` takes.
        mesh: devices that share a batch; None for all of them, along `data`.
        normalize: as in training, see `weights.inputs.normalizer`.

    Returns:
        A function from variables (`TrainState.variables`) and a batch to a confusion matrix: (K, K) int32,
        rows are true classes, pixels labelled IGNORE do not count. A batch is one for `make_step` or from
        `data.pipeline.eval_batches`. Raises ConfigError if the batch does not divide over the devices, or has
        images of several sizes that the network does not support, and DataError if a label is not a class, or
        `check_levels` refuses the images, or a size lies beyond them.
    """
    mesh = mesh or make_mesh()

    def confusion(variables, batch):
        image = FeatureMap.of(normalize(batch['image']), batch.get('size'))
        logits = image_logits(model, variables, image, train=False)[0].main.array
        label = split_rows(batch['label'], lambda *_: logits.shape[1], IGNORE)
        return confusion_matrix(label, logits.argmax(-1), logits.shape[-1])

    program = jit(
        confusion,
        mesh,
        in_shardings=(replicated(mesh), split_batch(mesh)),
        out_shardings=replicated(mesh),
    )
    num_classes = None

    def evaluate_batch(variables, batch):
        nonlocal num_classes
        check_batch_size(len(batch['label']) * jax.process_count(), mesh, 'batch size')
        check_levels(batch['image'], normalize)
        if num_classes is None:
            num_classes = count_classes(model, variables, jax.eval_shape(normalize, batch['image']))
        if not isinstance(batch['label'], jax.Array):
            check_labels(np.asarray(batch['label']), num_classes)
        if 'size' in batch:
            size, canvas = np.asarray(batch['size']), batch['label'].shape[1:]
            if size.shape != (len(batch['label']), 2) or (size < 1).any() or (size > canvas).any():
                raise DataError(f'size={size.tolist()}: must be heights and widths from 1 to {tuple(canvas)}')
        keys = ['image', 'label']
        # Sizes that fill the canvas need no masks.
        if 'size' in batch and (np.asarray(batch['size']) != batch['label'].shape[1:]).any():
            if not getattr(model, 'takes_canvas', False):
                raise ConfigError(
                    'the batch has padded images, but this network cannot tell the padding from the image: '
                    'use batches of images of one size, such as eval_batches(..., batch_size=1)'
                )
            keys.append('size')
        return program(variables, put_batch(batch, mesh, keys))

    return evaluate_batch


@functools.cache
def _scorer(num_classes, mesh):
    """(logits, label) -> confusion matrix of all images, and their predictions."""

    def score(logits, label):
        below = logits.shape[1] - label.shape[1]  # rows of the canvas, where rows are split over devices
        label = jnp.pad(label, ((0, 0), (0, below), (0, 0)), constant_values=IGNORE)
        prediction = logits.argmax(-1)
        return confusion_matrix(label, prediction, num_classes), prediction.astype(np.uint8)

    return jit(score, mesh, out_shardings=(replicated(mesh), split_batch(mesh)))


class Evaluation:
    """Scores a network on a split.

    Attributes:
        source: the samples.
    """

    def __init__(
        self,
        source: Source,
        model: ANN,
        make_protocol: Callable[[ANN], TestProtocol],
        mesh: Mesh,
        *,
        batch_size: int,
        pictures: int,
        num_workers: int,
        num_threads: int,
        skip_bad: bool = False,
    ):
        """Prepares; nothing is compiled or read yet.

        Args:
            source: the samples.
            model: the network.
            make_protocol: makes the test protocol of a network.
            mesh: devices that share a batch.
            batch_size: over all devices.
            pictures: number of samples, spread over the split, to write pictures of.
            num_workers, num_threads: see `data.pipeline`.
            skip_bad: log and leave out unusable samples instead of stopping.

        Raises:
            DataError: your own backbone declares `folded` but cannot be folded.
        """
        self.source, self._mesh, self._batch_size = source, mesh, batch_size
        self._model = model
        if hasattr(model.backbone, 'folded') and not isinstance(model.backbone, ResNet):
            check_folding(model)
        self._protocol = make_protocol(model.clone(folded=True))
        self._samples = Replacing(source, unlabelled=True) if skip_bad else source
        own = max(len(source) // jax.process_count(), 1)  # process 0, which writes them, sees at least these
        self._pictured = set(np.linspace(0, own - 1, min(pictures, own)).round().astype(int))
        self._reading = {
            'num_workers': num_workers,
            'num_threads': num_threads,
            'shard_index': jax.process_index(),
            'shard_count': jax.process_count(),
            'exact_sizes': not model.takes_canvas,
        }

    def run(
        self,
        variables: Mapping[str, Any],
        step: int,
        split: str,
        report: Report,
        stop: Callable[[], bool] = lambda: False,
    ) -> Scores:
        """Scores variables of the network, and records scores and pictures for a step.

        Raises:
            DataError: a sample cannot be used, or none has a label.
            SaveError: a score or a picture cannot be written.
            Stopped: `stop` returned True, see `evaluate`.
        """
        hidden = not is_main()
        folded = put_weights(fold(self._model, jax.device_get(variables)), self._mesh)
        numbers = iter(range(len(self.source)))
        num_classes = self.source.dataset.num_classes
        samples = Samples(num_classes, -(-len(self._pictured) // 2), len(self.source))
        start = time.perf_counter()

        def on_sample(name, *arrays):
            if hidden:
                return
            samples.add(name, *arrays)
            if next(numbers) in self._pictured:
                report.picture(step, name, *arrays)

        batches = eval_batches(self._samples, batch_size=self._batch_size, **self._reading)
        with (
            contextlib.closing(batches),
            tqdm(total=len(self.source), desc='evaluate', unit='image', leave=False, disable=hidden) as bar,
        ):
            confusion = evaluate(
                self._protocol,
                folded,
                batches,
                num_classes=num_classes,
                mesh=self._mesh,
                progress=bar.update,
                on_sample=on_sample,
                stop=stop,
            )
        categories = getattr(self.source.dataset, 'categories', ())
        seconds = time.perf_counter() - start
        return report.scores(step, split, confusion, categories, samples, seconds)
