"""Batch normalisation with the statistics of the batch, and its gradient."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32

from ann_jax.kernels import Array
from ann_jax.kernels.forms import by_platform
from ann_jax.kernels.masking import Size, count_pixels, mask
from ann_jax.kernels.reductions import sum_pixels


def normalize(
    x: Float[Array, 'B H W C'],
    scale: Float32[Array, ' C'],
    bias: Float32[Array, ' C'],
    epsilon: float,
    size: Size = None,
    about: Float32[Array, ' C'] | float = 0.0,
    relu: bool = False,
) -> tuple[Float[jax.Array, 'B H W C'], Float32[jax.Array, ' C'], Float32[jax.Array, ' C']]:
    """Normalises each channel by its mean and (biased) variance over the valid pixels of the batch.

    Args:
        x: features.
        scale, bias: applied after the normalisation.
        epsilon: added to the variance.
        size: size of the images if they do not fill x.
        about: guess of the mean, such as the running mean, for accelerators; a far one costs them digits.
        relu: whether a ReLU follows.

    Returns:
        The map in the dtype of x, the mean and the variance; no gradients flow through the last two. Pixels
        outside the images are undefined, and receive no gradient.
    """
    pixels = jnp.asarray(count_pixels(x.shape, size), jnp.float32)
    about = jnp.broadcast_to(jnp.asarray(about, jnp.float32), x.shape[-1:])
    inside = mask(x.shape, size)
    return _normalize(x, scale, bias, about, inside, pixels, epsilon, relu)


class Kept(NamedTuple):
    """What the gradient needs; y is the map after a ReLU."""

    x: jax.Array
    scale: jax.Array
    bias: jax.Array
    mean: jax.Array
    inverse: jax.Array
    inside: jax.Array | None
    pixels: jax.Array
    y: jax.Array | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _normalize(x, scale, bias, about, inside, pixels, epsilon, relu):
    return _forward(x, scale, bias, about, inside, pixels, epsilon, relu)[0]


def _forward(x, scale, bias, about, inside, pixels, epsilon, relu):
    mean, var = by_platform(x, about, inside, pixels, default=_about_a_guess, cpu=_in_two_passes)
    inverse = jax.lax.rsqrt(var + epsilon)
    y = _apply(x, scale, bias, mean, inverse)
    y = jnp.maximum(y, 0) if relu else y
    return (y, mean, var), Kept(x, scale, bias, mean, inverse, inside, pixels, y if relu else None)


def _apply(x, scale, bias, mean, inverse):
    y = (x.astype(jnp.float32) - mean) * (scale * inverse) + bias
    return y.astype(x.dtype)


# Each finds the mean and the variance. E[x^2] - E[x]^2 would lose too many digits where the mean is large.


def _in_two_passes(x, about, inside, pixels):
    del about
    x = x.astype(jnp.float32)
    mean = _sum(x, inside) / pixels
    return mean, _sum(jnp.square(x - mean), inside) / pixels


def _about_a_guess(x, about, inside, pixels):
    """Reads x once, which a compiler makes part of the convolution before, and devices sum once.

    Where the guess is d standard deviations from the mean, the variance loses the digits of d^2.
    """
    x = x.astype(jnp.float32) - about
    off, squares = jnp.stack([_sum(x, inside), _sum(jnp.square(x), inside)]) / pixels
    # No less than its error: what could be rounding alone is not blown up to a variance of 1.
    rounding = jnp.finfo(jnp.float32).eps * jnp.square(off)
    return about + off, jnp.maximum(squares - jnp.square(off), rounding)


def _backward(epsilon, relu, kept, gradients):
    del epsilon
    # GPUs compute the gradient before the ReLU twice, or else they would keep it as one more map.
    again = functools.partial(by_platform, gpu=jax.lax.optimization_barrier, default=_same)
    kept = kept._replace(x=again(kept.x))
    gradient, normal = _parts(relu, gradients[0], kept)
    of_bias, of_scale = sum_pixels(gradient), _sum(gradient * normal, kept.inside)
    gradient, normal = _parts(relu, gradients[0], kept._replace(x=again(kept.x)))
    gradient = (gradient - (of_bias + normal * of_scale) / kept.pixels) * (kept.scale * kept.inverse)
    return _clean(gradient, kept.inside).astype(kept.x.dtype), of_scale, of_bias, None, None, None


_normalize.defvjp(_forward, _backward)


def _same(x):
    return x


def _parts(relu, gradient, kept):
    """The gradient before the ReLU, and the normalised map."""
    x, scale, bias, mean, inverse, inside, _, y = kept
    if relu:
        gradient = by_platform(
            gradient, y, x, scale, bias, mean, inverse, cpu=_where_positive, default=_where_it_was_positive
        )
    return _clean(gradient.astype(jnp.float32), inside), (x.astype(jnp.float32) - mean) * inverse


def _where_positive(gradient, y, *_):
    return jnp.where(y > 0, gradient, 0)


def _where_it_was_positive(gradient, y, *given):
    """Without y, which would be one more map to read: the input is read anyway."""
    del y
    return jnp.where(_apply(*given) > 0, gradient, 0)


def _clean(x, inside):
    return x if inside is None else jnp.where(inside, x, 0)


def _sum(x, inside):
    return sum_pixels(_clean(x, inside))
