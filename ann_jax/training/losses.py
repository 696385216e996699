"""Cross-entropy, online hard example mining (OHEM) and their sum (paper: Eq. 18 and Sec. 4.2).

Shapes are fixed: ignored pixels get weight zero, so one compilation serves all batches. Where the paper is
silent, formulas follow the authors' released code.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Float32, Int, Int32, Integer, Num, Shaped

from ann_jax.errors import ConfigError, unknown
from ann_jax.kernels import Array
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
        """Makes a loss without parts from a scalar; returns a loss unchanged."""
        return loss if isinstance(loss, Loss) else cls(loss, loss, jnp.zeros(()), jnp.ones(()))


class BatchTotals(NamedTuple):
    """Totals of a batch, with which the losses of its parts add up to the loss of the batch."""

    images: Int[jax.Array, '']  # in the batch
    valid: Int[jax.Array, '']  # pixels that are not IGNORE
    weight: Num[jax.Array, '']  # sum of their class weights
    limit: Float32[jax.Array, '1']  # probability below which OHEM keeps a pixel of the batch
    kept: Int[jax.Array, '']  # pixels below it


def _log_probability(
    logits: Float[Array, '*pixels K'], labels: Integer[Array, '*pixels']
) -> tuple[Float32[jax.Array, '*pixels'], Int32[jax.Array, '*pixels'], Bool[Array, '*pixels']]:
    """Log-softmax at the label, a label that is safe as an index, and whether the pixel is valid."""
    valid = labels != IGNORE
    safe = jnp.where(valid, labels, 0).astype(jnp.int32)
    log_softmax = jax.nn.log_softmax(logits.astype(jnp.float32))
    # A masked sum instead of indexing, whose gradient is a scatter, slow on every device.
    at_label = safe[..., None] == jnp.arange(logits.shape[-1])
    return jnp.where(at_label, log_softmax, 0).sum(-1), safe, valid


def _divide(total, count):
    """total / count; 0, with a gradient of 0, where the count is 0."""
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)


def kth_smallest(values: Float32[Array, 'R *pixels'], k: Integer[Array, ' R']) -> Float32[jax.Array, ' R']:
    """The k-th smallest value of each row, counted from 0, without sorting.

    Non-negative floats are ordered like their bits, so 31 counts find the bits of the answer exactly by
    bisection; sorting a 769 x 769 map costs many times more.

    Args:
        values: non-negative, without NaN.
        k: at least 0, below the number of values in a row.
    """
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)

    def halve(i, found):
        # Sets the bit if at most k values are below the result.
        candidate = found | (1 << (30 - i))
        below = _row_sum(bits < _per_row(candidate, bits))
        return jnp.where(below <= k, candidate, found)

    found = jax.lax.fori_loop(0, 31, halve, jnp.zeros(values.shape[:1], jnp.int32))
    return jax.lax.bitcast_convert_type(found, jnp.float32)


def _row_sum(x: Shaped[Array, 'R *pixels']) -> Num[Array, ' R']:
    """The sum of each row. Its axes are not merged, since devices may split one of them."""
    return x.sum(tuple(range(1, x.ndim)))


def _per_row(x: Shaped[jax.Array, ' R'], like: Shaped[Array, 'R *pixels']) -> Shaped[jax.Array, 'R *#pixels']:
    """(R,) -> (R, 1, ...), to broadcast with `like`."""
    return x.reshape(-1, *[1] * (like.ndim - 1))


def _pixel_weights(
    counted: Bool[Array, '*pixels'],
    labels: Integer[Array, '*pixels'],
    class_weights: Float[Array, ' K'] | None,
) -> Shaped[Array, '*pixels']:
    return counted if class_weights is None else jnp.where(counted, jnp.asarray(class_weights)[labels], 0)


def cross_entropy(
    logits: Float[Array, 'R *pixels K'],
    labels: Integer[Array, 'R *pixels'],
    class_weights: Float[Array, ' K'] | None = None,
    total_weight: Num[ArrayLike, ''] | None = None,
) -> Float[jax.Array, ' R']:
    """Weighted mean over the valid pixels of each row, divided by the sum of weights like torch.

    Args:
        logits: class scores.
        labels: below K, or IGNORE.
        class_weights: None for ones.
        total_weight: divisor to use instead, such as that of a larger row, or the number of all pixels.

    Returns:
        Losses; 0 for a row without valid pixels.
    """
    log_p, safe, valid = _log_probability(logits, labels)
    weights = _pixel_weights(valid, safe, class_weights)
    total = _row_sum(weights) if total_weight is None else jnp.asarray(total_weight)
    return _divide(-_row_sum(weights * log_p), total)


def hard_limit(
    p: Float32[Array, 'R *pixels'], threshold: Float[ArrayLike, ''], min_kept: Int[ArrayLike, '']
) -> Float32[jax.Array, ' R']:
    """Probabilities below which OHEM keeps pixels of each row: `threshold`, or more to keep enough.

    Args:
        p: probabilities of the true class, 2 where it is unknown.
        threshold, min_kept: see `ohem_cross_entropy`.
    """
    last = jnp.maximum(_row_sum(p <= 1) - 1, 0)
    return jnp.maximum(kth_smallest(p, jnp.minimum(min_kept, last)), threshold)


def true_probability(
    logits: Float[Array, '*pixels K'], labels: Integer[Array, '*pixels']
) -> Float32[jax.Array, '*pixels']:
    """Probabilities of the true class; 2 where the label is IGNORE."""
    log_p, _, valid = _log_probability(logits, labels)
    return jnp.where(valid, jnp.exp(log_p), 2.0)


def ohem_cross_entropy(
    logits: Float[Array, 'R *pixels K'],
    labels: Integer[Array, 'R *pixels'],
    *,
    threshold: Float[ArrayLike, ''] = 0.7,
    min_kept: Int[ArrayLike, ''] = 100_000,
    class_weights: Float[Array, ' K'] | None = None,
    totals: BatchTotals | None = None,
    total_count: Num[ArrayLike, ''] | None = None,
) -> tuple[Float[jax.Array, ' R'], Int[Array, ' R']]:
    """Cross-entropy over the pixels of each row where the true class has a low probability.

    Keeps pixels with p < max(threshold, the (min_kept + 1)-th smallest p), strictly, and divides the weighted
    sum by their number like the authors (not by the sum of the weights).

    Args:
        logits: class scores.
        labels: below K, or IGNORE.
        threshold: probability above which a pixel is easy.
        min_kept: minimum number of pixels to keep, if there are that many.
        class_weights: None for ones.
        totals: limit and number of kept pixels of the larger row that this one is part of.
        total_count: divisor to use instead of the number of kept pixels.

    Returns:
        Losses, 0 for a row without valid pixels, and numbers of kept pixels.
    """
    log_p, safe, valid = _log_probability(logits, labels)
    # The choice of hard pixels is not differentiated. Ignored pixels sort after every probability.
    p = jax.lax.stop_gradient(jnp.where(valid, jnp.exp(log_p), 2.0))
    limit = hard_limit(p, threshold, min_kept) if totals is None else totals.limit
    kept = valid & (p < _per_row(limit, p))
    weights = _pixel_weights(kept, safe, class_weights)
    count = _row_sum(kept)
    if total_count is None:
        total_count = count if totals is None else totals.kept
    return _divide(-_row_sum(weights * log_p), jnp.asarray(total_count)), count


def segmentation_loss(
    main_logits: Float[Array, 'B H W K'],
    aux_logits: Float[Array, 'B H W K'] | None,
    labels: Integer[Array, 'B H W'],
    *,
    ohem: bool = True,
    threshold: Float[ArrayLike, ''] = 0.7,
    min_kept: Int[ArrayLike, ''] = 100_000,
    per_image: bool = True,
    aux_weight: float = 0.4,
    class_weights: Sequence[float] | Float[Array, ' K'] | None = None,
    average: str = 'valid',
    totals: BatchTotals | None = None,
    pixels: int | None = None,
) -> Loss:
    """Main loss plus `aux_weight` times the auxiliary cross-entropy (Eq. 18).

    Args:
        main_logits, aux_logits: class scores at the resolution of the labels; None for a network without an
            auxiliary head.
        labels: below K, or IGNORE.
        ohem: mine hard pixels in the main loss; otherwise plain cross-entropy.
        threshold, min_kept: see `ohem_cross_entropy`; `min_kept` counts per image with `per_image`, otherwise
            in the whole batch.
        per_image: the mean of one loss per image, 0 for images without valid pixels, which equals the
            authors' one image per device; otherwise one loss over the batch.
        aux_weight: lambda of Eq. 18.
        class_weights: one per class, for both losses, or None.
        average: what the sums over pixels are divided by: 'valid', as the authors and torch do, by the number
            of pixels that OHEM keeps and by the sum of the weights of valid pixels; 'all', as mmsegmentation
            does, by the number of all pixels, ignored ones included.
        totals: totals of the batch if these images are a part of it; the losses of the parts then add up to
            that of the batch.
        pixels: of an image, for average='all', if the labels also have rows below it; None for H * W.

    Raises:
        ConfigError: `average` is neither.
    """
    if average not in AVERAGES:
        raise ConfigError(unknown('loss.average', average, AVERAGES))
    pixels = pixels or labels.shape[1] * labels.shape[2]
    if not per_image:
        main_logits, labels = main_logits[None], labels[None]
        aux_logits = None if aux_logits is None else aux_logits[None]
    by_class = None if class_weights is None else np.asarray(class_weights, np.float32)

    row = None if per_image else totals  # an image is a row of its own; a batch continues in the other parts
    weight: Any = row and row.weight
    if average == 'all':
        weight = pixels if per_image else pixels * (totals.images if totals else labels.shape[1])
    valid = (labels != IGNORE).sum()
    if ohem:
        main, count = ohem_cross_entropy(
            main_logits,
            labels,
            threshold=threshold,
            min_kept=min_kept,
            class_weights=by_class,
            totals=row,
            total_count=weight if average == 'all' else None,
        )
    else:
        main, count = cross_entropy(main_logits, labels, by_class, weight), valid
    if aux_logits is None:
        auxiliary = jnp.zeros(())
    else:
        auxiliary = cross_entropy(aux_logits, labels, by_class, weight)
    rows = totals.images if totals and per_image else len(labels)
    main, auxiliary = main.sum() / rows, auxiliary.sum() / rows
    kept = _divide(count.sum(), totals.valid if totals else valid)
    return Loss(total=main + aux_weight * auxiliary, main=main, auxiliary=auxiliary, kept=kept)


def batch_totals(
    labels: Sequence[Integer[Array, 'B H W']],
    p: Sequence[Float32[Array, 'B H W']] | None = None,
    *,
    threshold: Float[ArrayLike, ''],
    min_kept: Int[ArrayLike, ''],
    class_weights: Sequence[float] | Float[Array, ' K'] | None = None,
) -> BatchTotals:
    """Computes the totals of a batch from its parts.

    Args:
        labels: one array per part.
        p: `true_probability` of each part's main logits, for OHEM over the whole batch.
        threshold, min_kept, class_weights: see `segmentation_loss`.
    """
    by_class = None if class_weights is None else np.asarray(class_weights, np.float32)
    valid = [each != IGNORE for each in labels]
    weights = [
        _pixel_weights(good, jnp.where(good, each, 0).astype(jnp.int32), by_class)
        for good, each in zip(valid, labels, strict=True)
    ]
    limit, kept = jnp.zeros(1), jnp.zeros((), jnp.int32)
    if p is not None:
        row = jnp.stack(p)[None]
        limit = hard_limit(row, threshold, min_kept)
        kept = (row < _per_row(limit, row)).sum()
    return BatchTotals(
        images=jnp.asarray(sum(map(len, labels))),
        valid=jnp.asarray(sum(good.sum() for good in valid)),
        weight=jnp.asarray(sum(each.sum() for each in weights)),
        limit=limit,
        kept=kept,
    )
