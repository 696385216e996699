"""Losses of single pixels: cross-entropy, with online hard example mining (OHEM), and the focal loss.

Ignored pixels get weight zero. Where the paper is silent (Sec. 4.2), formulas follow the authors' code.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Float32, Int, Int32, Integer, Num, Shaped

from ann_jax.data.layout import check_pixels
from ann_jax.errors import ConfigError
from ann_jax.kernels import Array
from ann_jax.training.mining import hard_limit
from ann_jax.training.rows import divide, per_row, row_sum
from ann_jax.typing import IGNORE


def check_given(
    logits: Float[Array, '*pixels K'],
    labels: Integer[Array, '*pixels'],
    class_weights: Sequence[float] | Float[Array, ' K'] | None,
) -> None:
    """Checks what a loss is given.

    Raises:
        DataError: see `check_pixels`.
        ConfigError: there are more or fewer weights than classes.
    """
    check_pixels(labels, logits.shape[:-1], logits.shape[-1])
    if class_weights is not None and np.shape(class_weights) != logits.shape[-1:]:
        raise ConfigError(f'class_weights of shape {np.shape(class_weights)} for {logits.shape[-1]} classes')


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


def weights_of(
    counted: Bool[Array, '*pixels'],
    labels: Integer[Array, '*pixels'],
    class_weights: Float[Array, ' K'] | None,
    pixel_weights: Float[Array, '*pixels'] | None = None,
) -> Shaped[Array, '*pixels']:
    """Weights of the pixels; 0 where they are not counted."""
    weights = counted if class_weights is None else jnp.where(counted, jnp.asarray(class_weights)[labels], 0)
    return weights if pixel_weights is None else weights * pixel_weights


def _smoothed_sum(logits, labels, counted, class_weights, pixel_weights, smoothing):
    """The sum of weighted cross-entropies with smoothed labels, in which each class has its own weight."""
    targets = (labels[..., None] == jnp.arange(logits.shape[-1])).astype(jnp.float32)
    targets = optax.smooth_labels(targets, smoothing)
    if class_weights is not None:
        targets = targets * jnp.asarray(class_weights)
    losses = optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
    return row_sum(weights_of(counted, labels, None, pixel_weights) * losses)


def cross_entropy(
    logits: Float[Array, 'R *pixels K'],
    labels: Integer[Array, 'R *pixels'],
    class_weights: Float[Array, ' K'] | None = None,
    total_weight: Num[ArrayLike, ''] | None = None,
    *,
    pixel_weights: Float[Array, 'R *pixels'] | None = None,
    label_smoothing: float = 0.0,
) -> Float[jax.Array, ' R']:
    """Weighted mean over the valid pixels of each row, divided by the sum of weights like torch.

    Args:
        logits: class scores.
        labels: below K, or IGNORE.
        class_weights: None for ones.
        total_weight: divisor to use instead, such as that of a larger row, or the number of all pixels.
        pixel_weights: further weights; None for ones.
        label_smoothing: share of each label that is spread over all classes, as in torch.

    Returns:
        Losses; 0 for a row without valid pixels.

    Raises:
        DataError, ConfigError: see `check_given`.
    """
    check_given(logits, labels, class_weights)
    log_p, safe, valid = _log_probability(logits, labels)
    weights = weights_of(valid, safe, class_weights, pixel_weights)
    total = row_sum(weights) if total_weight is None else jnp.asarray(total_weight)
    if label_smoothing:
        summed = _smoothed_sum(logits, safe, valid, class_weights, pixel_weights, label_smoothing)
    else:
        summed = -row_sum(weights * log_p)
    return divide(summed, total)


def focal_loss(
    logits: Float[Array, 'R *pixels K'],
    labels: Integer[Array, 'R *pixels'],
    gamma: float = 2.0,
    class_weights: Float[Array, ' K'] | None = None,
    total_weight: Num[ArrayLike, ''] | None = None,
    *,
    pixel_weights: Float[Array, 'R *pixels'] | None = None,
) -> Float[jax.Array, ' R']:
    """Cross-entropy times (1 - p) ** gamma of each pixel (Lin et al. 2017, Eq. 5, of a softmax).

    Args:
        gamma: 0 makes it the cross-entropy.
        logits, labels, class_weights, total_weight, pixel_weights: see `cross_entropy`, whose divisor it has.

    Returns:
        Losses; 0 for a row without valid pixels.
    """
    log_p, safe, valid = _log_probability(logits, labels)
    weights = weights_of(valid, safe, class_weights, pixel_weights)
    total = row_sum(weights) if total_weight is None else jnp.asarray(total_weight)
    # Not 0, where the gradient of a power below 1 is infinite.
    wrong = jnp.maximum(-jnp.expm1(log_p), 1e-12)
    return divide(-row_sum(weights * wrong**gamma * log_p), total)


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
    limit: Float32[Array, ' R'] | None = None,
    total_count: Num[ArrayLike, ''] | None = None,
    pixel_weights: Float[Array, 'R *pixels'] | None = None,
    label_smoothing: float = 0.0,
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
        limit: to use instead of these two, such as that of a larger row.
        total_count: divisor to use instead of the number of kept pixels.
        pixel_weights, label_smoothing: see `cross_entropy`.

    Returns:
        Losses, 0 for a row without valid pixels, and numbers of kept pixels.

    Raises:
        DataError, ConfigError: see `check_given`.
    """
    check_given(logits, labels, class_weights)
    log_p, safe, valid = _log_probability(logits, labels)
    # The choice of hard pixels is not differentiated. Ignored pixels sort after every probability.
    p = jax.lax.stop_gradient(jnp.where(valid, jnp.exp(log_p), 2.0))
    limit = hard_limit(p, threshold, min_kept) if limit is None else limit
    kept = valid & (p < per_row(limit, p))
    weights = weights_of(kept, safe, class_weights, pixel_weights)
    count = row_sum(kept)
    if label_smoothing:
        summed = _smoothed_sum(logits, safe, kept, class_weights, pixel_weights, label_smoothing)
    else:
        summed = -row_sum(weights * log_p)
    return divide(summed, jnp.asarray(count if total_count is None else total_count)), count
