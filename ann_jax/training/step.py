"""A training step: jitted for a mesh, as a pure function, or as separate parts."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh

from ann_jax.data.classes import check_labels
from ann_jax.kernels.reductions import global_norm
from ann_jax.models.ann import count_classes, image_logits
from ann_jax.models.feature_map import FeatureMap
from ann_jax.parallel.arrays import put_batch, replicated, split_batch, split_rows
from ann_jax.parallel.mesh import check_batch_size, make_mesh
from ann_jax.parallel.programs import jit
from ann_jax.training.losses import Loss, segmentation_loss
from ann_jax.training.pixel_losses import true_probability
from ann_jax.training.state import TrainState
from ann_jax.typing import IGNORE
from ann_jax.weights.inputs import Normalize, imagenet_rgb

METRICS = 'loss', 'main_loss', 'auxiliary_loss', 'kept', 'pixel_accuracy'


class StepOutput(NamedTuple):
    """Result of a batch or of a part of it; the results of the parts add up."""

    gradients: Any
    batch_stats: Any  # running statistics after the batch
    metrics: dict[str, jax.Array]


class StepParts(NamedTuple):
    """A step as three functions, which the caller jits.

    `part` is the number of a part of a batch; None for the whole batch.
    """

    probabilities: Callable  # (state, batch, part) -> `pixel_losses.true_probability` of the main logits
    forward_backward: Callable  # (state, batch, part, totals) -> `StepOutput`
    update: Callable  # (state, output) -> the next state and scalar metrics


def make_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    mesh: Mesh | None = None,
    *,
    loss: Callable[..., Loss | jax.Array] = segmentation_loss,
    normalize: Normalize = imagenet_rgb,
    seed: int = 0,
    skip_not_finite: bool = False,
) -> Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the jitted step of a training loop.

    Args:
        model: an `ANN`, or any network that `image_logits` takes.
        tx: the optimizer.
        mesh: devices that share a batch; None for all of them, along `data`.
        loss, normalize, seed, skip_not_finite: see `make_step_parts`.

    Returns:
        A function from a state, which it donates, and a batch to the next state and scalar metrics: `loss`,
        `main_loss`, `auxiliary_loss`, `kept`, `pixel_accuracy`, `gradient_norm`. A batch has `image`,
        (B, H, W, 3) as `normalize` takes it, and `label`, (B, H, W) class indices or IGNORE; with several
        processes, the share of this one. The function is compiled once per shape, and raises ConfigError if
        the batch does not divide over the devices, DataError if a label is not a class.
    """
    mesh = mesh or make_mesh()
    settings = {'loss': loss, 'normalize': normalize, 'seed': seed, 'skip_not_finite': skip_not_finite}
    program = jit(
        make_train_step(model, tx, **settings),
        mesh,
        in_shardings=(replicated(mesh), split_batch(mesh)),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )

    num_classes = None

    def step(state, batch):
        nonlocal num_classes
        check_batch_size(len(batch['label']) * jax.process_count(), mesh, 'batch size')
        if num_classes is None:
            num_classes = count_classes(model, state.variables, jax.eval_shape(normalize, batch['image']))
        if not isinstance(batch['label'], jax.Array):  # labels that are on a device are not fetched
            check_labels(np.asarray(batch['label']), num_classes)
        return program(state, put_batch(batch, mesh))

    return step


def make_train_step(
    model: nn.Module, tx: optax.GradientTransformation, **settings: Any
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the step over a whole batch as a pure function; the caller jits it, with the state donated.

    Args:
        model, tx, **settings: see `make_step_parts`.

    Returns:
        A function from a state and a `Batch` to the next state and scalar metrics.
    """
    parts = make_step_parts(model, tx, **settings)

    def step(state, batch):
        return parts.update(state, parts.forward_backward(state, batch))

    return step


def make_step_parts(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    loss: Callable[..., Loss | jax.Array],
    normalize: Callable[[jax.Array], jax.Array],
    seed: int,
    skip_not_finite: bool = False,
) -> StepParts:
    """Builds the functions that make up a step.

    Args:
        model: an `ANN`, or any network that `image_logits` takes.
        tx: the optimizer.
        loss: maps main logits, auxiliary logits (None if the network has none) and labels, all of the image's
            size, to a `Loss` or a scalar; for parts of a batch, also takes `totals`, a `losses.BatchTotals`.
            If it takes `pixels`, it gets the number of pixels of an image; labels may have rows below it.
        normalize: see `weights.inputs.normalizer`.
        seed: for dropout and random sampling; the step number is folded in, and for dropout the part's too.
        skip_not_finite: if the loss or the gradient is not finite, change only the step number, and set the
            metric `skipped`.
    """

    def forward(params, state, batch, part):
        """Both logits and the labels, of equal size, and the running statistics after the batch."""
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        dropout_rng, sampling_rng = jax.random.split(rng)
        if part is not None:
            dropout_rng = jax.random.fold_in(dropout_rng, part)
        logits, updates = image_logits(
            model,
            {'params': params, 'batch_stats': state.batch_stats},
            FeatureMap.of(normalize(batch['image'])),
            train=True,
            rngs={'dropout': dropout_rng, 'sampling': sampling_rng},
            mutable=['batch_stats'],
        )
        main, auxiliary = logits.main.array, logits.auxiliary and logits.auxiliary.array
        # Rows below the image do not count.
        labels = split_rows(batch['label'], lambda *_: main.shape[1], IGNORE)
        return main, auxiliary, labels, updates.get('batch_stats', {})

    def probabilities(state, batch, part=None):
        def main_of(params):
            main, _, labels, _ = forward(params, state, batch, part)
            return main, labels

        # With the forms used under gradients, which may round differently: OHEM counts the pixels it keeps.
        main, _, labels = jax.vjp(main_of, state.params, has_aux=True)
        return true_probability(main, labels)

    def forward_backward(state, batch, part=None, totals=None):
        def objective(params):
            main, auxiliary, labels, batch_stats = forward(params, state, batch, part)
            more = {} if totals is None else {'totals': totals}
            if 'pixels' in inspect.signature(loss).parameters:
                more['pixels'] = math.prod(batch['label'].shape[1:])
            losses = Loss.of(loss(main, auxiliary, labels, **more))
            valid = labels != IGNORE
            correct = (main.argmax(-1) == labels) & valid
            accuracy = correct.sum() / jnp.maximum(valid.sum() if totals is None else totals.valid, 1)
            return losses.total, (batch_stats, dict(zip(METRICS, (*losses, accuracy), strict=True)))

        gradients, (batch_stats, metrics) = jax.grad(objective, has_aux=True)(state.params)
        return StepOutput(gradients, batch_stats, metrics)

    def update(state, output):
        updates, opt_state = tx.update(output.gradients, state.opt_state, state.params)
        new = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=output.batch_stats,
            opt_state=opt_state,
        )
        metrics = output.metrics | {'gradient_norm': global_norm(output.gradients)}
        if skip_not_finite:
            good = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['gradient_norm'])
            kept = jax.tree.map(lambda now, before: jnp.where(good, now, before), new, state)
            # The optimizer's own count stays too; the step number says which batch comes next.
            new = kept.replace(step=new.step)
            metrics['skipped'] = ~good
        return new, metrics

    return StepParts(probabilities, forward_backward, update)
