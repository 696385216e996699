"""Losses of the regions of an image: Dice, Tversky and Lovasz-softmax.

Each is one number per image, the mean over the classes that occur in it, weighted by the class weights, and 0
for an image without valid pixels. So a batch may be split in any way, and its loss is the mean of its images.
optax's `dice_loss` is not used, because it has no mask for ignored pixels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Integer

from ann_jax.kernels import Array
from ann_jax.training.rows import divide
from ann_jax.typing import IGNORE

SMOOTH = 1.0  # pixels added to both sides of the fraction, as in optax


def tversky_loss(
    logits: Float[Array, 'B H W K'],
    labels: Integer[Array, 'B H W'],
    *,
    alpha: float,
    beta: float,
    class_weights: Float[Array, ' K'] | None = None,
) -> Float32[jax.Array, ' B']:
    """1 - (TP + 1) / (TP + alpha FP + beta FN + 1) of each class, with probabilities as counts.

    Both factors 1/2 make it the Dice loss (Milletari et al. 2016; Salehi et al. 2017, Eq. 3, with a 1 against
    division by zero).

    Args:
        logits: class scores.
        labels: below K, or IGNORE.
        alpha: weight of false positives.
        beta: weight of false negatives.
        class_weights: None for ones.
    """
    p, true = _probabilities(logits, labels)
    hits = (p * true).sum((1, 2))
    predicted, actual = p.sum((1, 2)), true.sum((1, 2))
    below = hits + alpha * (predicted - hits) + beta * (actual - hits)
    return _mean_over_classes(1 - (hits + SMOOTH) / (below + SMOOTH), actual, class_weights)


def lovasz_softmax(
    logits: Float[Array, 'B H W K'],
    labels: Integer[Array, 'B H W'],
    class_weights: Float[Array, ' K'] | None = None,
) -> Float32[jax.Array, ' B']:
    """The Lovasz extension of the Jaccard loss of each class (Berman et al. 2018, Eq. 8 and 12, Alg. 1).

    Takes a sort of the pixels for each class. Devices that share an image gather it.

    Args:
        logits: class scores.
        labels: below K, or IGNORE.
        class_weights: None for ones.
    """
    p, true = _probabilities(logits, labels)
    errors = jnp.abs(true - p)
    # The weights of sorted errors are constant where the loss is differentiable. One class at a time: they
    # are all that is kept for the gradient.
    valid = labels != IGNORE
    constant = jax.lax.stop_gradient(errors)
    weights = jax.lax.map(
        lambda k: _jaccard_weights(jnp.take(constant, k, -1), labels == k, valid), jnp.arange(p.shape[-1])
    )
    losses = (errors * jnp.moveaxis(weights, 0, -1)).sum((1, 2))
    return _mean_over_classes(losses, true.sum((1, 2)), class_weights)


def _jaccard_weights(errors, true, valid):
    """By how much the Jaccard loss of a class grows at each pixel, taken by falling errors: (B, H, W)."""
    count = errors[0].size
    keys = jnp.where(valid, -errors, 1).reshape(-1, count)  # ignored pixels come last
    order = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), keys.shape)
    _, positive, order = jax.lax.sort((keys, true.reshape(-1, count), order), num_keys=1)
    missed = jnp.cumsum(positive.astype(jnp.int32), 1)
    total = missed[:, -1:]
    intersection = total - missed
    union = total + jnp.arange(1, count + 1) - missed
    # A pixel of the class leaves the intersection, another one joins the union; in this form, unlike the
    # difference of successive losses, nothing cancels.
    before = jnp.maximum(union - 1, 1)
    union, before = jnp.maximum(union, 1).astype(jnp.float32), before.astype(jnp.float32)
    growth = jnp.where(positive, 1 / union, intersection / before / union)
    rows = jnp.arange(len(keys))[:, None]
    placed = jnp.zeros_like(growth).at[rows, order].set(growth, unique_indices=True)
    return jnp.where(valid, placed.reshape(errors.shape), 0)


def _probabilities(logits, labels):
    """Probabilities and true classes, (B, H, W, K) float32; 0 where the label is IGNORE."""
    valid = (labels != IGNORE)[..., None]
    p = jnp.where(valid, jax.nn.softmax(logits.astype(jnp.float32)), 0)
    # IGNORE is above every class.
    return p, (labels[..., None] == jnp.arange(logits.shape[-1])).astype(jnp.float32)


def _mean_over_classes(losses, actual, class_weights):
    weights = jnp.where(actual > 0, 1.0 if class_weights is None else jnp.asarray(class_weights), 0)
    return divide((weights * losses).sum(1), weights.sum(1))
