"""Batch normalisation with the statistics of the batch, and its gradient."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Float32

from ann_jax.kernels import Array
from ann_jax.kernels.forms import by_platform
from ann_jax.kernels.masking import Size, count_pixels, mask
from ann_jax.kernels.reductions import sum_pixels
from ann_jax.parallel.mesh import shards


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
    mean, var = by_platform(x, inside, pixels, cpu=_in_two_passes, default=_in_one_pass)
    inverse = jax.lax.rsqrt(var + epsilon)
    y = (x.astype(jnp.float32) - mean) * (scale * inverse) + bias
    return (y.astype(x.dtype), mean, var), (x, scale, mean, inverse, inside, pixels)


# Both find the mean and the variance; E[x^2] - E[x]^2 would lose too many digits if the mean is large.


def _in_two_passes(x, inside, pixels):
    x = x.astype(jnp.float32)
    mean = _sum(x, inside) / pixels
    return mean, _sum(jnp.square(x - mean), inside) / pixels


def _in_one_pass(x, inside, pixels):
    """Reads x once, and devices exchange numbers once.

    Each device sums the differences from its first pixel, and their squares. These sums are gathered, and put
    together after Chan, Golub and LeVeque (1983).
    """
    data, rows = shards(x)
    if x.shape[0] % data or x.shape[1] % rows:
        return _in_two_passes(x, inside, pixels)
    split = lambda x: x.reshape(data, x.shape[0] // data, rows, x.shape[1] // rows, *x.shape[2:])
    inside = None if inside is None else split(jnp.broadcast_to(inside, (*x.shape[:3], 1)))
    x = _clean(split(x).astype(jnp.float32), inside)
    first = x[:, :1, :, :1, :1]
    x = _clean(x - first, inside)
    own = [first[:, 0, :, 0, 0], x.sum((1, 3, 4)), jnp.square(x).sum((1, 3, 4))]
    if inside is not None:
        own.append(jnp.broadcast_to(inside.sum((1, 3, 4)).astype(jnp.float32), own[0].shape))
    found = jnp.stack(own).reshape(len(own), data * rows, -1)
    if data * rows > 1:
        # Over both axes at a time, or XLA gathers over one after the other.
        found = jax.lax.with_sharding_constraint(found, P(None, ('data', 'space')))
        found = jax.lax.with_sharding_constraint(found, P())
    first, sums, squares = found[:3]
    number = found[3] if inside is not None else pixels / (data * rows)
    about = first[0]
    shift = sums / jnp.maximum(number, 1)  # of the mean of each device from its first pixel
    mean = about + (number * (first - about) + sums).sum(0) / pixels
    squares = squares - sums * shift + number * jnp.square(first - mean + shift)
    return mean, jnp.maximum(squares.sum(0) / pixels, 0)


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
