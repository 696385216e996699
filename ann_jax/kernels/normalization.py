"""Batch normalisation with the statistics of the batch, and its gradient."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32

from ann_jax.kernels import Array
from ann_jax.kernels.masking import Size, count_pixels, mask
from ann_jax.kernels.reductions import sum_pixels


def normalize(
    x: Float[Array, 'B H W C'],
    scale: Float32[Array, ' C'],
    bias: Float32[Array, ' C'],
    epsilon: float,
    size: Size = None,
) -> tuple[Float[jax.Array, 'B H W C'], Float32[jax.Array, ' C'], Float32[jax.Array, ' C']]:
    """Normalises each channel by its mean and (biased) variance over the valid pixels of the batch.

    Args:
        x: features.
        scale, bias: applied after the normalisation.
        epsilon: added to the variance.
        size: size of the images if they do not fill x.

    Returns:
        The map in the dtype of x, the mean and the variance; no gradients flow through the last two. Pixels
        outside the images are undefined, and receive no gradient.
    """
    pixels = jnp.asarray(count_pixels(x.shape, size), jnp.float32)
    return _normalize(x, scale, bias, None if size is None else mask(x.shape, size), pixels, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _normalize(x, scale, bias, inside, pixels, epsilon):
    return _forward(x, scale, bias, inside, pixels, epsilon)[0]


def _forward(x, scale, bias, inside, pixels, epsilon):
    y = x.astype(jnp.float32)
    mean = _sum(y, inside) / pixels
    # Two passes: E[x^2] - E[x]^2 loses too many digits if the mean is large.
    var = _sum(jnp.square(y - mean), inside) / pixels
    inverse = jax.lax.rsqrt(var + epsilon)
    y = (y - mean) * (scale * inverse) + bias
    return (y.astype(x.dtype), mean, var), (x, scale, mean, inverse, inside, pixels)


def _backward(epsilon, residual, gradients):
    x, scale, mean, inverse, inside, pixels = residual
    gradient = _clean(gradients[0].astype(jnp.float32), inside)
    normal = (x.astype(jnp.float32) - mean) * inverse
    of_bias, of_scale = sum_pixels(gradient), _sum(gradient * normal, inside)
    gradient = (gradient - (of_bias + normal * of_scale) / pixels) * (scale * inverse)
    return _clean(gradient, inside).astype(x.dtype), of_scale, of_bias, None, None


_normalize.defvjp(_forward, _backward)


def _clean(x, inside):
    return x if inside is None else jnp.where(inside, x, 0)


def _sum(x, inside):
    return sum_pixels(_clean(x, inside))
