"""One step of training as a pure function."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from ann_jax.losses import Loss
from ann_jax.ops import resize_bilinear
from ann_jax.rows import is_split, resize, split_rows
from ann_jax.state import TrainState
from ann_jax.typing import IGNORE


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    loss: Callable[[jax.Array, jax.Array, jax.Array], Loss],
    normalize: Callable[[jax.Array], jax.Array],
    align_corners: bool,
    seed: int,
    skip_not_finite: bool = False,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the step; the caller jits it, with the state donated.

    Args:
        model: maps normalised images to `Logits`.
        tx: the optimizer.
        loss: maps main logits, auxiliary logits and labels, all of the image's size, to a `Loss`.
        normalize: see `inference.normalizer`.
        align_corners: how logits are resized to the labels.
        seed: of dropout and random sampling; the step number is folded in.
        skip_not_finite: keep everything but the step number as it was where the loss or the gradient is not
            finite, and say so in the metric `skipped`.
        mesh: its `space` axis splits the rows of each image over devices.

    Returns:
        A function from a state and a `Batch` to the next state and scalar metrics.
    """
    split = {'mesh': mesh} if is_split(mesh) else {}

    def forward(params, batch_stats, batch, rng):
        dropout_rng, sampling_rng = jax.random.split(rng)
        logits, updates = model.apply(
            {'params': params, 'batch_stats': batch_stats},
            normalize(batch['image']),
            train=True,
            rngs={'dropout': dropout_rng, 'sampling': sampling_rng},
            mutable=['batch_stats'],
            **split,
        )
        main, auxiliary, labels = full_size(logits, batch['label'])
        losses = loss(main, auxiliary, labels)
        valid = labels != IGNORE
        correct = (main.argmax(-1) == labels) & valid
        accuracy = correct.sum() / jnp.maximum(valid.sum(), 1)
        return losses.total, (losses, accuracy, updates['batch_stats'])

    def full_size(logits, labels):
        """Both logits at the size of the labels; split, all three on canvases, ignored below the image."""
        size = labels.shape[1:]
        if not split:
            return *(resize_bilinear(x, size, align_corners) for x in logits), labels
        _, height, width, _ = logits.main.shape
        low = model.backbone.heights(size[0])[-1], width
        canvas = height * model.backbone.output_stride, size[1]
        return (
            *(resize(x, low, canvas, size, align_corners, mesh) for x in logits),
            split_rows(labels, canvas[0], mesh, IGNORE),
        )

    def step(state, batch):
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        (_, (losses, accuracy, batch_stats)), gradients = jax.value_and_grad(forward, has_aux=True)(
            state.params, state.batch_stats, batch, rng
        )
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        new = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        metrics = {
            'loss': losses.total,
            'main_loss': losses.main,
            'auxiliary_loss': losses.auxiliary,
            'kept': losses.kept,
            'pixel_accuracy': accuracy,
            'gradient_norm': optax.global_norm(gradients),
        }
        if skip_not_finite:
            good = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['gradient_norm'])
            kept = jax.tree.map(lambda now, before: jnp.where(good, now, before), new, state)
            # The optimizer's own count stands still too; the step number says which batch comes next.
            new = kept.replace(step=new.step)
            metrics['skipped'] = ~good
        return new, metrics

    return step
