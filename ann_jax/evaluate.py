"""Evaluation: streams a confusion matrix over a split, and keeps a few pictures."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ann_jax.metrics import confusion_matrix
from ann_jax.sharding import put_batch, replicated, split_batch


def make_eval_step(logits: Callable, num_classes: int, mesh: Mesh) -> Callable:
    """Jits (variables, batch) -> (K, K) int32 confusion matrix and (B, H, W) uint8 predictions.

    Args:
        logits: a protocol of `inference`, (variables, image) -> logits.
        num_classes: K, at most 255.
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
