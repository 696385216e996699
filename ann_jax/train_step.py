"""One step of training as pure functions: of a whole batch at once, or the parts it is made of."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from ann_jax.convolution import global_norm
from ann_jax.losses import Loss, true_probability
from ann_jax.ops import resize_bilinear
from ann_jax.rows import is_split, resize, split_rows
from ann_jax.state import TrainState
from ann_jax.typing import IGNORE

METRICS = 'loss', 'main_loss', 'auxiliary_loss', 'kept', 'pixel_accuracy'


class Gains(NamedTuple):
    """What a batch, or a part of it, brings; those of the parts add up."""

    gradients: Any
    batch_stats: Any  # running statistics after it
    metrics: dict[str, jax.Array]


class StepParts(NamedTuple):
    """A step in three functions; the caller jits them.

    `part` is the number of a part of a batch, None for the whole of it.
    """

    probabilities: Callable  # (state, batch, part) -> `losses.true_probability` of the main logits
    gains: Callable  # (state, batch, part, whole) -> `Gains`
    update: Callable  # (state, gains) -> the next state and scalar metrics


def make_train_step(
    model: nn.Module, tx: optax.GradientTransformation, **settings: Any
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the step over a whole batch; the caller jits it, with the state donated.

    Args:
        model, tx, **settings: see `make_step_parts`.

    Returns:
        A function from a state and a `Batch` to the next state and scalar metrics.
    """
    parts = make_step_parts(model, tx, **settings)

    def step(state, batch):
        return parts.update(state, parts.gains(state, batch))

    return step


def make_step_parts(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    loss: Callable[..., Loss],
    normalize: Callable[[jax.Array], jax.Array],
    align_corners: bool,
    seed: int,
    skip_not_finite: bool = False,
    mesh: Mesh | None = None,
) -> StepParts:
    """Builds the functions that make up a step.

    Args:
        model: maps normalised images to `Logits`.
        tx: the optimizer.
        loss: maps main logits, auxiliary logits and labels, all of the image's size, to a `Loss`; takes a
            `losses.Whole` too, for parts of a batch.
        normalize: see `inference.normalizer`.
        align_corners: how logits are resized to the labels.
        seed: of dropout and random sampling; the step number is folded in, and the part's for dropout.
        skip_not_finite: keep everything but the step number as it was where the loss or the gradient is not
            finite, and say so in the metric `skipped`.
        mesh: its `space` axis splits the rows of each image over devices.
    """
    split = {'mesh': mesh} if is_split(mesh) else {}

    def forward(params, state, batch, part):
        """Both logits and the labels, of one size, and the running statistics after the batch."""
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        dropout_rng, sampling_rng = jax.random.split(rng)
        if part is not None:
            dropout_rng = jax.random.fold_in(dropout_rng, part)
        logits, updates = model.apply(
            {'params': params, 'batch_stats': state.batch_stats},
            normalize(batch['image']),
            train=True,
            rngs={'dropout': dropout_rng, 'sampling': sampling_rng},
            mutable=['batch_stats'],
            **split,
        )
        return *full_size(logits, batch['label']), updates['batch_stats']

    def full_size(logits, labels):
        size = labels.shape[1:]
        if not split:
            return *(resize_bilinear(x, size, align_corners) for x in logits), labels
        _, height, width, _ = logits.main.shape
        low = model.backbone.heights(size[0])[-1], width
        canvas = height * model.backbone.output_stride, size[1]
        return (
            *(resize(x, low, canvas, size, align_corners, mesh) for x in logits),
            split_rows(labels, canvas[0], mesh, IGNORE),  # what lies below the image does not count
        )

    def probabilities(state, batch, part=None):
        main, _, labels, _ = forward(state.params, state, batch, part)
        return true_probability(main, labels)

    def gains(state, batch, part=None, whole=None):
        def objective(params):
            main, auxiliary, labels, batch_stats = forward(params, state, batch, part)
            losses = loss(main, auxiliary, labels, **({} if whole is None else {'whole': whole}))
            valid = labels != IGNORE
            correct = (main.argmax(-1) == labels) & valid
            accuracy = correct.sum() / jnp.maximum(valid.sum() if whole is None else whole.valid, 1)
            return losses.total, (batch_stats, dict(zip(METRICS, (*losses, accuracy), strict=True)))

        gradients, (batch_stats, metrics) = jax.grad(objective, has_aux=True)(state.params)
        return Gains(gradients, batch_stats, metrics)

    def update(state, gains):
        updates, opt_state = tx.update(gains.gradients, state.opt_state, state.params)
        new = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=gains.batch_stats,
            opt_state=opt_state,
        )
        metrics = gains.metrics | {'gradient_norm': global_norm(gains.gradients)}
        if skip_not_finite:
            good = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['gradient_norm'])
            kept = jax.tree.map(lambda now, before: jnp.where(good, now, before), new, state)
            # The optimizer's own count stands still too; the step number says which batch comes next.
            new = kept.replace(step=new.step)
            metrics['skipped'] = ~good
        return new, metrics

    return StepParts(probabilities, gains, update)
