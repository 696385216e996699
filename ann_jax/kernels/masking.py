"""Which part of a canvas is real: images smaller than their array lie at its top left.

A size is a pair, heights and widths; each of them is a number for all images, or (B,) int32. It is None where
every image fills its array, and then nothing is masked.
"""

import jax
import jax.numpy as jnp

Size = tuple[int | jax.Array, int | jax.Array] | None


def size_of(shape: tuple[int, ...], size: Size) -> tuple[int | jax.Array, int | jax.Array]:
    """Heights and widths of the images of an array (B, H, W, ...)."""
    return (shape[1], shape[2]) if size is None else size


def strided(size: Size, stride: int) -> Size:
    """Sizes of the result of a convolution with symmetric padding."""
    return size and ((size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1)


def per_image(length: int | jax.Array, batch: int) -> jax.Array:
    """Heights or widths as (B,) int32."""
    return jnp.broadcast_to(jnp.asarray(length, jnp.int32), (batch,))


def mask(shape: tuple[int, ...], size: Size) -> jax.Array | None:
    """Whether each pixel is real: bool (B or 1, H or 1, W or 1, 1), None where all are."""
    inside = None
    for axis, length in enumerate(size_of(shape, size), 1):
        if isinstance(length, int) and length == shape[axis]:
            continue
        index = jnp.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(4)])
        part = index < (length if isinstance(length, int) else length[:, None, None, None])
        inside = part if inside is None else inside & part
    return inside


def clean(x: jax.Array, size: Size) -> jax.Array:
    """(B, H, W, C) with zeros outside of the images."""
    inside = None if size is None else mask(x.shape, size)
    return x if inside is None else jnp.where(inside, x, 0)


def count_pixels(shape: tuple[int, ...], size: Size) -> int | jax.Array:
    """Pixels of all images of an array (B, H, W, ...)."""
    height, width = size_of(shape, size)
    if isinstance(height, int) and isinstance(width, int):
        return shape[0] * height * width
    return (per_image(height, shape[0]) * per_image(width, shape[0])).sum()


def pair(size: jax.Array) -> Size:
    """(B, 2) heights and widths -> a `Size`."""
    return size[:, 0], size[:, 1]
