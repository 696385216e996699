"""The loss of a batch: the sum of its terms, and of the auxiliary cross-entropy (paper: Eq. 18).

Shapes are fixed, so one compilation serves all batches.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Float32, Int, Integer, Num

from ann_jax.errors import ConfigError, unknown
from ann_jax.kernels import Array
from ann_jax.ranges import check
from ann_jax.training.boundaries import boundary_weights
from ann_jax.training.mining import hard_limit
from ann_jax.training.pixel_losses import (
    check_given,
    cross_entropy,
    focal_loss,
    ohem_cross_entropy,
    weights_of,
)
from ann_jax.training.region_losses import lovasz_softmax, tversky_loss
from ann_jax.training.rows import divide, per_row
from ann_jax.training.terms import NAMES, REGIONS
from ann_jax.typing import IGNORE

AVERAGES = 'valid', 'all'


class Loss(NamedTuple):
    """Scalars, float32."""

    total: Float[jax.Array, '']
    main: Float[jax.Array, '']
    auxiliary: Float[jax.Array, '']
    kept: Float[jax.Array, '']  # fraction of the valid pixels that OHEM kept

    @classmethod
    def of(cls, loss: 'Loss | Float[jax.Array, ""]') -> 'Loss':
        """Makes a loss without parts from a scalar; returns a loss unchanged.

        Raises:
            ConfigError: it is neither.
        """
        if isinstance(loss, Loss):
            return loss
        if isinstance(loss, tuple | list | dict) or np.ndim(loss):
            given = f'shape {np.shape(loss)}' if hasattr(loss, 'shape') else f'type {type(loss).__name__}'
            raise ConfigError(f'the loss function gives a value of {given}: must be a scalar or a `Loss`')
        return cls(loss, loss, jnp.zeros(()), jnp.ones(()))


class BatchTotals(NamedTuple):
    """Totals of a batch, with which the losses of its parts add up to the loss of the batch.

    The last three depend on the settings of `segmentation_loss`; they are None for other losses.
    """

    images: Int[jax.Array, '']  # in the batch
    valid: Int[jax.Array, '']  # pixels that are not IGNORE
    weight: Num[jax.Array, ''] | None = None  # sum of their weights
    limit: Float32[jax.Array, '1'] | None = None  # probability below which OHEM keeps a pixel of the batch
    kept: Int[jax.Array, ''] | None = None  # pixels below it


def segmentation_loss(
    main_logits: Float[Array, 'B H W K'],
    aux_logits: Float[Array, 'B H W K'] | None,
    labels: Integer[Array, 'B H W'],
    *,
    ohem: bool = True,
    terms: Sequence[tuple[str, float]] = (),
    threshold: Float[ArrayLike, ''] = 0.7,
    min_kept: Int[ArrayLike, ''] = 100_000,
    per_image: bool = True,
    aux_weight: float = 0.4,
    class_weights: Sequence[float] | Float[Array, ' K'] | None = None,
    average: str = 'valid',
    label_smoothing: float = 0.0,
    boundary_weight: float = 1.0,
    boundary_width: int = 2,
    focal_gamma: float = 2.0,
    tversky: tuple[float, float] = (0.3, 0.7),
    totals: BatchTotals | None = None,
    pixels: int | None = None,
) -> Loss:
    """Main loss plus `aux_weight` times the auxiliary cross-entropy (Eq. 18).

    Args:
        main_logits, aux_logits: class scores at the resolution of the labels; None for a network without an
            auxiliary head.
        labels: below K, or IGNORE.
        ohem: mine hard pixels in the main loss; otherwise plain cross-entropy.
        terms: names of `terms.py` and factors, whose sum is the main loss; () for what `ohem` says.
        threshold, min_kept: see `ohem_cross_entropy`; `min_kept` counts per image with `per_image`, otherwise
            in the whole batch.
        per_image: the mean of one loss per image, 0 for images without valid pixels, which equals the
            authors' one image per device; otherwise one loss over the batch. Losses of regions are always
            per image.
        aux_weight: lambda of Eq. 18.
        class_weights: one per class, for all terms and the auxiliary loss, or None.
        average: what the sums over pixels are divided by: 'valid', as the authors and torch do, by the number
            of pixels that OHEM keeps and by the sum of the weights of valid pixels; 'all', as mmsegmentation
            does, by the number of all pixels, ignored ones included. Losses of regions are not divided.
        label_smoothing: of the cross-entropies, with OHEM or not, of both heads.
        boundary_weight, boundary_width: further weight of the pixels near a boundary between classes, see
            `near_boundary`, for the losses of pixels, of both heads.
        focal_gamma: see `focal_loss`.
        tversky: weights of false positives and of false negatives.
        totals: totals of the batch if these images are a part of it; the losses of the parts then add up to
            that of the batch.
        pixels: of an image, for average='all', if the labels also have rows below it; None for H * W.

    Raises:
        ConfigError: `average` is neither, a term is unknown, a number is out of its range, the weights are
            not one per class, or the totals lack what `per_image=False` needs.
        DataError: labels of another shape or dtype than the logits', or, if they are not traced, that are no
            classes.
    """
    check_given(main_logits, labels, class_weights)
    numbers = {'threshold': threshold, 'min_kept': min_kept, 'label_smoothing': label_smoothing}
    for name, number in numbers.items():
        if isinstance(number, int | float):  # not if it is traced
            check(f'loss.{name}', number)
    if average not in AVERAGES:
        raise ConfigError(unknown('loss.average', average, AVERAGES))
    if totals and totals.limit is None and not per_image:
        raise ConfigError(
            'segmentation_loss(..., per_image=False) in a loss of your own needs totals of the batch that '
            'are only known for functools.partial(segmentation_loss, per_image=False, ...): give that as the '
            'loss, or set per_image=True'
        )
    terms = terms or (('ohem' if ohem else 'cross_entropy', 1.0),)
    pixels = pixels or labels.shape[1] * labels.shape[2]
    by_class = None if class_weights is None else np.asarray(class_weights, np.float32)
    by_pixel = boundary_weights(labels, boundary_weight, boundary_width)
    images = main_logits, labels
    if not per_image:
        main_logits, labels = main_logits[None], labels[None]
        aux_logits = None if aux_logits is None else aux_logits[None]
        by_pixel = None if by_pixel is None else by_pixel[None]

    row = None if per_image else totals  # an image is a row of its own; a batch continues in the other parts
    weight: Any = row and row.weight
    if average == 'all':
        weight = pixels if per_image else pixels * (totals.images if totals else labels.shape[1])
    count = valid = (labels != IGNORE).sum()
    smoothed: Any = {'pixel_weights': by_pixel, 'label_smoothing': label_smoothing}
    rows = totals.images if totals and per_image else len(labels)
    images_in_all = totals.images if totals else len(images[1])
    means = []
    for name, factor in terms:
        match name:
            case 'cross_entropy':
                loss = cross_entropy(main_logits, labels, by_class, weight, **smoothed)
            case 'focal':
                loss = focal_loss(main_logits, labels, focal_gamma, by_class, weight, pixel_weights=by_pixel)
            case 'ohem':
                loss, count = ohem_cross_entropy(
                    main_logits,
                    labels,
                    threshold=threshold,
                    min_kept=min_kept,
                    class_weights=by_class,
                    limit=row and row.limit,
                    total_count=weight if average == 'all' else row and row.kept,
                    **smoothed,
                )
            case 'lovasz':
                loss = lovasz_softmax(*images, by_class)
            case 'dice' | 'tversky':
                alpha, beta = tversky if name == 'tversky' else (0.5, 0.5)
                loss = tversky_loss(*images, alpha=alpha, beta=beta, class_weights=by_class)
            case _:
                raise ConfigError(unknown('loss term', name, NAMES))
        mean = loss.sum() / (images_in_all if name in REGIONS else rows)
        means.append(mean if factor == 1 else factor * mean)
    main = sum(means[1:], means[0])
    auxiliary = jnp.zeros(())
    if aux_logits is not None:
        auxiliary = cross_entropy(aux_logits, labels, by_class, weight, **smoothed).sum() / rows
    kept = divide(count.sum(), totals.valid if totals else valid)
    return Loss(total=main + aux_weight * auxiliary, main=main, auxiliary=auxiliary, kept=kept)


def totals_of(loss: Callable) -> tuple[Callable[..., BatchTotals], bool]:
    """What computes the totals that a loss takes, and whether it takes probabilities: see `batch_totals`.

    Args:
        loss: `segmentation_loss`, a `functools.partial` of it, or any other, which gets `images` and `valid`.
    """
    ours = loss.func if isinstance(loss, functools.partial) else loss
    if ours is not segmentation_loss:
        return image_totals, False
    defaults = {key: each.default for key, each in inspect.signature(ours).parameters.items()}
    given = defaults | getattr(loss, 'keywords', {})
    names = 'threshold', 'min_kept', 'class_weights', 'boundary_weight', 'boundary_width'
    mines = 'ohem' in dict(given['terms']) if given['terms'] else given['ohem']
    totals = functools.partial(batch_totals, **{name: given[name] for name in names})
    return totals, mines and not given['per_image']


def image_totals(labels: Sequence[Integer[Array, 'B H W']], p: None = None) -> BatchTotals:
    """The totals that do not depend on the loss; see `batch_totals`."""
    return BatchTotals(
        images=jnp.asarray(sum(map(len, labels))),
        valid=jnp.asarray(sum((each != IGNORE).sum() for each in labels)),
    )


def batch_totals(
    labels: Sequence[Integer[Array, 'B H W']],
    p: Sequence[Float32[Array, 'B H W']] | None = None,
    *,
    threshold: Float[ArrayLike, ''],
    min_kept: Int[ArrayLike, ''],
    class_weights: Sequence[float] | Float[Array, ' K'] | None = None,
    boundary_weight: float = 1.0,
    boundary_width: int = 2,
) -> BatchTotals:
    """Computes the totals of a batch from its parts.

    Args:
        labels: one array per part.
        p: `true_probability` of each part's main logits, for OHEM over the whole batch.
        threshold, min_kept, class_weights, boundary_weight, boundary_width: see `segmentation_loss`.
    """
    by_class = None if class_weights is None else np.asarray(class_weights, np.float32)
    valid = [each != IGNORE for each in labels]
    weights = [
        weights_of(
            good,
            jnp.where(good, each, 0).astype(jnp.int32),
            by_class,
            boundary_weights(each, boundary_weight, boundary_width),
        )
        for good, each in zip(valid, labels, strict=True)
    ]
    limit, kept = jnp.zeros(1), jnp.zeros((), jnp.int32)
    if p is not None:
        row = jnp.stack(p)[None]
        limit = hard_limit(row, threshold, min_kept)
        kept = (row < per_row(limit, row)).sum()
    return image_totals(labels)._replace(
        weight=jnp.asarray(sum(each.sum() for each in weights)),
        limit=limit,
        kept=kept,
    )
