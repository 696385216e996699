"""Evaluation: streams a confusion matrix over a split, and keeps a few pictures."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from ann_jax.data.pipeline import eval_batches
from ann_jax.metrics import Scores, confusion_matrix
from ann_jax.report import Report
from ann_jax.sharding import put_batch, replicated, split_batch
from ann_jax.typing import Source


def make_eval_step(logits: Callable, num_classes: int, mesh: Mesh) -> Callable:
    """Jits (variables, batch) -> (K, K) int32 confusion matrix and (B, H, W) uint8 predictions.

    Args:
        logits: a protocol of `inference`, (variables, image) -> logits.
        num_classes: K.
        mesh: the batch is split over its `data` axis; variables are on every device.
    """

    def step(variables, batch):
        prediction = logits(variables, batch['image']).argmax(-1)
        return confusion_matrix(batch['label'], prediction, num_classes), prediction.astype(np.uint8)

    return jax.jit(
        step,
        in_shardings=(replicated(mesh), split_batch(mesh)),
        out_shardings=(replicated(mesh), split_batch(mesh)),
    )


def evaluate(
    step: Callable,
    variables: Mapping[str, Any],
    batches: Iterable,
    *,
    num_classes: int,
    mesh: Mesh,
    progress: Callable[[int], Any] = lambda count: None,
    on_sample: Callable[[str, np.ndarray, np.ndarray, np.ndarray], None] = lambda *sample: None,
) -> np.ndarray:
    """Confusion matrix of a split.

    Args:
        step: what `make_eval_step` made.
        variables: of the model.
        batches: (batch, names) pairs, as `data.pipeline.eval_batches` yields them; pixels that fill
            up a batch are labelled IGNORE and do not count.
        num_classes: K.
        mesh: as given to `make_eval_step`.
        progress: called with the number of images done.
        on_sample: called with name, image, label and prediction of each image.

    Returns:
        (K, K) int64, rows are true classes.
    """
    total = np.zeros((num_classes, num_classes), np.int64)

    def collect(names, batch, result):
        confusion, predictions = jax.device_get(result)
        total[...] += confusion
        for sample in zip(names, batch['image'], batch['label'], predictions, strict=False):
            on_sample(*sample)
        progress(len(names))

    pending = None
    for batch, names in batches:
        result = step(variables, put_batch(batch, mesh))
        # Collected one batch late: the device works on this batch while the host waits for the last.
        if pending is not None:
            collect(*pending)
        pending = names, batch, result
    if pending is not None:
        collect(*pending)
    return total


class Evaluation:
    """A split with all that scoring a state on it takes; one compilation per size of image.

    Attributes:
        source: the samples.
    """

    def __init__(
        self,
        source: Source,
        logits: Callable,
        mesh: Mesh,
        *,
        batch_size: int,
        pictures: int,
        num_workers: int,
        num_threads: int,
    ):
        """Prepares; nothing is compiled or read yet.

        Args:
            source: the samples.
            logits: a protocol of `inference`.
            mesh: devices that share a batch.
            batch_size: over all devices.
            pictures: samples, spread over the split, of which a picture is written.
            num_workers, num_threads: see `data.pipeline`.
        """
        self.source, self._mesh, self._batch_size = source, mesh, batch_size
        self._step = make_eval_step(logits, source.dataset.num_classes, mesh)
        self._pictured = set(np.linspace(0, len(source) - 1, min(pictures, len(source))).round().astype(int))
        self._reading = {'num_workers': num_workers, 'num_threads': num_threads}

    def run(self, variables: Mapping[str, Any], step: int, split: str, report: Report) -> Scores:
        """Scores variables on the devices, and writes scores and pictures under a step.

        Raises:
            DataError: a sample cannot be used, or none has a label.
        """
        numbers = iter(range(len(self.source)))

        def on_sample(name, *arrays):
            if next(numbers) in self._pictured:
                report.picture(step, name, *arrays)

        batches = eval_batches(self.source, batch_size=self._batch_size, **self._reading)
        with tqdm(total=len(self.source), desc='evaluate', unit='image', leave=False) as bar:
            confusion = evaluate(
                self._step,
                variables,
                batches,
                num_classes=self.source.dataset.num_classes,
                mesh=self._mesh,
                progress=bar.update,
                on_sample=on_sample,
            )
        return report.scores(step, split, confusion, self.source.dataset.categories)
