"""Batch normalisation of 1x1 convolutions to no fewer channels, for bfloat16, by sums over the narrower map.

The statistics of x W follow from those of x: the mean is mean(x) W, and the variance is the diagonal of
W^T cov(x) W. So does the gradient: what normalisation takes away from it is a multiple of x W, whose products
with x and W are those of small matrices. The wide map x W is read once, to be normalised.

These sums lose some digits that those over the wide map would keep, far fewer than bfloat16 does.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import BFloat16, Float32

from ann_jax.kernels import Array
from ann_jax.kernels.forms import by_platform
from ann_jax.kernels.masking import Size, clean, count_pixels, mask
from ann_jax.kernels.products import product_by_cudnn, sum_of_products
from ann_jax.kernels.reductions import sum_pixels


def normalize_product(
    x: BFloat16[Array, 'B H W C'],
    kernel: BFloat16[Array, 'C D'],
    scale: Float32[Array, ' D'],
    bias: Float32[Array, ' D'],
    epsilon: float,
    size: Size = None,
    shortcut: BFloat16[Array, 'B H W D'] | None = None,
    relu: bool = False,
) -> tuple[BFloat16[jax.Array, 'B H W D'], Float32[jax.Array, ' D'], Float32[jax.Array, ' D']]:
    """`normalize` of x @ kernel.

    Args:
        x: features.
        kernel: of no fewer features than channels.
        scale, bias: applied after the normalisation.
        epsilon: added to the variance.
        size: size of the images if they do not fill x.
        shortcut: what a residual block adds.
        relu: whether a ReLU comes last.

    Returns:
        The map, and the mean and the (biased) variance of the product; no gradients flow through the last
        two. Pixels outside the images are undefined, and receive no gradient.
    """
    pixels = jnp.asarray(count_pixels(x.shape, size), jnp.float32)
    inside = mask(x.shape, size)
    return _normalize(clean(x, size), kernel, scale, bias, shortcut, inside, pixels, epsilon, relu)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def _normalize(x, kernel, scale, bias, shortcut, inside, pixels, epsilon, relu):
    return _forward(x, kernel, scale, bias, shortcut, inside, pixels, epsilon, relu)[0]


def _forward(x, kernel, scale, bias, shortcut, inside, pixels, epsilon, relu):
    weights = kernel.astype(jnp.float32)
    # Else XLA makes the ReLU that gives x a part of one product, and stores what is before that as well.
    x = _stored(x)
    mean = sum_pixels(x.astype(jnp.float32)) / pixels
    squares = sum_of_products(x, x) / pixels
    covariance = squares - mean[:, None] * mean
    of_product = mean @ weights
    var = (weights * _exact(covariance, weights)).sum(0)
    # No less than its error: what could be rounding alone is not blown up to a variance of 1.
    rounding = jnp.finfo(jnp.float32).eps * jnp.square(jnp.sqrt(jnp.diagonal(squares)) @ jnp.abs(weights))
    var = jnp.maximum(var, rounding)
    inverse = jax.lax.rsqrt(var + epsilon)
    factor = scale * inverse
    offset = bias - of_product * factor
    y = by_platform(x, kernel, factor, offset, gpu=_scaled_by_cudnn, default=_scaled)
    y = y if shortcut is None else y + shortcut
    # Else XLA keeps the product for the gradient as well, and computes y again.
    y = _stored(jnp.maximum(y, 0)) if relu else y
    residual = x, kernel, scale, mean, covariance, inverse, y if relu else None, inside, pixels
    return (y, of_product, var), (*residual, shortcut is not None)


def _scaled(x, kernel, factor, offset):
    """x @ kernel * factor + offset."""
    return ((x @ kernel).astype(jnp.float32) * factor + offset).astype(x.dtype)


def _scaled_by_cudnn(x, kernel, factor, offset):
    """The same in the form that becomes one operation with the shortcut and the ReLU after it."""
    kernel = (kernel.astype(jnp.float32) * factor).astype(x.dtype)
    return product_by_cudnn(x, kernel) + offset.astype(x.dtype)


def _stored(x):
    """On GPUs, a map that all its users read."""
    return by_platform(x, gpu=jax.lax.optimization_barrier, default=_same)


def _same(x):
    return x


def _exact(x, y):
    return jnp.matmul(x, y, precision='highest')


def _backward(epsilon, relu, residual, gradients):
    del epsilon, relu
    x, kernel, scale, mean, covariance, inverse, y, inside, pixels, adds = residual
    gradient = gradients[0] if y is None else jnp.where(y > 0, gradients[0], 0)
    gradient = gradient if inside is None else jnp.where(inside, gradient, 0)
    weights, factor = kernel.astype(jnp.float32), scale * inverse
    of_bias = sum_pixels(gradient.astype(jnp.float32))
    # Of the deviation of x from its mean, and, times W, of that of the product.
    products = sum_of_products(x, gradient) - mean[:, None] * of_bias
    of_scale = (weights * products).sum(0) * inverse
    share = factor * inverse * of_scale / pixels  # of the latter, which normalisation takes away
    of_kernel = products * factor - pixels * _exact(covariance, weights) * share
    outward = (weights * factor).astype(x.dtype)
    inward = _exact(weights * share, weights.T).astype(x.dtype)
    # Rounded as the products are, so that constants cancel.
    constant = mean @ inward.astype(jnp.float32) - outward.astype(jnp.float32) @ (of_bias / pixels)
    of_x = gradient @ outward.T + x @ -inward + constant.astype(x.dtype)
    of_x = of_x if inside is None else jnp.where(inside, of_x, 0)
    of_shortcut = gradient if adds else None
    return of_x, of_kernel.astype(kernel.dtype), of_scale, of_bias, of_shortcut, None, None


_normalize.defvjp(_forward, _backward)
