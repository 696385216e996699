"""A training step: jitted for a mesh, as a pure function, or as separate parts."""

import contextlib
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh

from ann_jax.data.layout import check_labels
from ann_jax.errors import ConfigError
from ann_jax.kernels.reductions import global_norm
from ann_jax.models.ann import count_classes, image_logits
from ann_jax.models.feature_map import FeatureMap
from ann_jax.parallel.arrays import put_batch, replicated, split_batch, split_rows
from ann_jax.parallel.mesh import check_batch_size, make_mesh
from ann_jax.parallel.programs import jit
from ann_jax.ranges import check
from ann_jax.training import groups
from ann_jax.training.losses import Loss, segmentation_loss
from ann_jax.training.pixel_losses import true_probability
from ann_jax.training.state import AveragedState, TrainState
from ann_jax.typing import IGNORE
from ann_jax.weights.inputs import Normalize, check_levels, imagenet_rgb

METRICS = 'loss', 'main_loss', 'auxiliary_loss', 'kept', 'pixel_accuracy'


class StepOutput(NamedTuple):
    """Result of a batch or of a part of it; the results of the parts add up."""

    gradients: Any  # of the parameters that are trained
    batch_stats: Any  # running statistics after the batch
    metrics: dict[str, jax.Array]


class StepParts(NamedTuple):
    """A step as separate functions, which the caller jits.

    `part` is the number of a part of a batch; None for the whole batch.
    """

    probabilities: Callable  # (state, batch, part) -> `pixel_losses.true_probability` of the main logits
    forward_backward: Callable  # (state, batch, part, totals) -> `StepOutput`
    update: Callable  # (state, output) -> the next state and scalar metrics
    trained: Callable  # parameters -> those that are not frozen


def make_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    mesh: Mesh | None = None,
    *,
    loss: Callable[..., Loss | jax.Array] = segmentation_loss,
    normalize: Normalize = imagenet_rgb,
    seed: int = 0,
    skip_not_finite: bool = False,
    deterministic: bool = False,
    **settings: Any,
) -> Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the jitted step of a training loop.

    Args:
        model: an `ANN`, or any network that `image_logits` takes.
        tx: the optimizer.
        mesh: devices that share a batch; None for all of them, along `data`.
        loss, normalize, seed, skip_not_finite, **settings: see `make_step_parts`.
        deterministic: whether GPUs compute the same bits each time, as CPUs and TPUs do; slower.

    Returns:
        A function from a state, which it donates, and a batch to the next state and scalar metrics: `loss`,
        `main_loss`, `auxiliary_loss`, `kept`, `pixel_accuracy`, `gradient_norm`. A batch has `image`,
        (B, H, W, N) as `normalize` takes it, and `label`, (B, H, W) class indices or IGNORE; with several
        processes, the share of this one. The function is compiled once per shape, and raises ConfigError if
        the batch does not divide over the devices, DataError if a label is not a class, or `check_levels`
        refuses the images.
    """
    mesh = mesh or make_mesh()
    settings |= {'loss': loss, 'normalize': normalize, 'seed': seed, 'skip_not_finite': skip_not_finite}
    program = jit(
        make_train_step(model, tx, **settings),
        mesh,
        deterministic=deterministic,
        in_shardings=(replicated(mesh), split_batch(mesh)),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )

    num_classes = None

    def step(state, batch):
        nonlocal num_classes
        check_batch_size(len(batch['label']) * jax.process_count(), mesh, 'batch size')
        check_levels(batch['image'], normalize)
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
    clip_norm: float = 0.0,
    factors: Mapping[str, float] | None = None,
    frozen_norm: Collection[str] = (),
    ema_decay: float = 0.0,
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
        clip_norm: largest norm of the gradient of all trained parameters, as torch's clip_grad_norm_; 0 for
            any. The metric `gradient_norm` is that before clipping.
        factors: on the learning rate of parts of the network, see `groups`; what the optimizer wants to add
            is multiplied. A part of factor 0 is frozen: no gradient, no state of the optimizer, and its
            normalisation as in `frozen_norm`. Takes a state of `create_state` with the same factors.
        frozen_norm: parts whose batch normalisation is in evaluation mode: it uses its running statistics,
            and leaves them. Its scale and bias are trained.
        ema_decay: of the moving average of an `AveragedState`, torch's `get_ema_multi_avg_fn`: that of
            parameters and statistics is theirs after the first step, without correction of a bias, and then
            ema_decay times itself plus (1 - ema_decay) times theirs.

    Raises:
        ConfigError: a number is out of its range.
    """
    check('optim.clip_norm', clip_norm)
    check('optim.ema_decay', ema_decay)
    factors = dict(factors or {})
    for name, factor in factors.items():
        if not 0 <= factor < math.inf:
            raise ConfigError(f'factors: {name}={factor}: must be a finite number of at least 0')
    freezes = bool(frozen_norm) or 0 in factors.values()
    trained = lambda params: groups.trained(params, factors)

    def is_frozen(path):
        return any(groups.belongs(path, name) for name in frozen_norm) or not groups.factor_of(path, factors)

    def forward(params, state, batch, part):
        """Both logits and the labels, of equal size, and the running statistics after the batch."""
        params = groups.whole(state.params, params)
        groups.check(frozen_norm, state.batch_stats, 'train.frozen_norm')
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        dropout_rng, sampling_rng = jax.random.split(rng)
        if part is not None:
            dropout_rng = jax.random.fold_in(dropout_rng, part)
        with groups.frozen_norms(is_frozen) if freezes else contextlib.nullcontext():
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
        main, _, labels = jax.vjp(main_of, trained(state.params), has_aux=True)
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

        gradients, (batch_stats, metrics) = jax.grad(objective, has_aux=True)(trained(state.params))
        return StepOutput(gradients, batch_stats, metrics)

    def update(state, output):
        gradients, batch_stats, metrics = output
        norm = global_norm(gradients)
        metrics = metrics | {'gradient_norm': norm}
        if clip_norm:
            # The constant is torch's.
            shrink = jnp.minimum(clip_norm / (norm + 1e-6), 1)
            gradients = jax.tree.map(lambda x: x * shrink, gradients)
        before = trained(state.params)
        updates, opt_state = tx.update(gradients, state.opt_state, before)
        after = optax.apply_updates(before, groups.scaled(updates, factors))
        if freezes:
            # The mean over the parts of a batch need not be what each of them is.
            batch_stats = groups.kept_statistics(state.batch_stats, batch_stats, is_frozen)
        new = state.replace(
            step=state.step + 1,
            params=groups.whole(state.params, after),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        if bool(ema_decay) != isinstance(state, AveragedState):
            raise ConfigError(
                f'ema_decay={ema_decay} takes a state of create_state(..., ema={bool(ema_decay)})'
            )
        if isinstance(state, AveragedState):
            new = new.replace(ema=_averaged(state.ema, new.variables, ema_decay))
        if skip_not_finite:
            good = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['gradient_norm'])
            kept = jax.tree.map(lambda now, before: jnp.where(good, now, before), new, state)
            # The optimizer's own count stays too; the step number says which batch comes next.
            new = kept.replace(step=new.step)
            metrics['skipped'] = ~good
        return new, metrics

    return StepParts(probabilities, forward_backward, update, trained)


def _averaged(ema, variables, decay):
    """The moving average after a step."""
    # In this form, what does not change stays as it is to the last bit.
    blend = lambda mean, x: jnp.where(ema['count'] == 0, x, mean + (1 - decay) * (x - mean))
    means = jax.tree.map(blend, {key: ema[key] for key in variables}, variables)
    return means | {'count': ema['count'] + 1}
