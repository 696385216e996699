"""Which part of a canvas is valid: images smaller than their array are placed at its top left.

A size is a pair of heights and widths, each a number for all images or (B,) int32. If all images fill the
array, the size is None and nothing is masked.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int32, Integer

from ann_jax.kernels import Array, Dim

Length = Dim | Integer[Array, ' B']
Size = tuple[Length, Length] | None


def size_of(shape: tuple[Dim, ...], size: Size) -> tuple[Length, Length]:
    """Heights and widths of the images of an array (B, H, W, ...)."""
    return (shape[1], shape[2]) if size is None else size


def strided(size: Size, stride: int) -> Size:
    """Sizes after a convolution with symmetric padding."""
    return size and ((size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1)


def per_image(length: Length, batch: Dim) -> Int32[jax.Array, ' B']:
    """Heights or widths, one per image."""
    return jnp.broadcast_to(jnp.asarray(length, jnp.int32), (batch,))


def mask(shape: tuple[Dim, ...], size: Size) -> Bool[jax.Array, '#B #H #W 1'] | None:
    """Which pixels of (B, H, W, ...) are valid; None if all are."""
    if size is None:
        return None
    inside = None
    for axis, length in enumerate(size, 1):
        if isinstance(length, int) and length == shape[axis]:
            continue
        index = jnp.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(4)])
        part = index < (length if isinstance(length, int) else length[:, None, None, None])
        inside = part if inside is None else inside & part
    return inside


def clean(x: Float[Array, 'B H W C'], size: Size) -> Float[Array, 'B H W C']:
    """The array, with zeros outside the images."""
    inside = mask(x.shape, size)
    return x if inside is None else jnp.where(inside, x, 0)


def count_pixels(shape: tuple[Dim, ...], size: Size) -> Dim | Integer[jax.Array, '']:
    """Number of valid pixels of an array (B, H, W, ...)."""
    height, width = size_of(shape, size)
    if isinstance(height, int) and isinstance(width, int):
        return shape[0] * height * width
    return (per_image(height, shape[0]) * per_image(width, shape[0])).sum()


def pair(size: Integer[Array, 'B 2']) -> tuple[Integer[Array, ' B'], Integer[Array, ' B']]:
    """A `Size` from heights and widths."""
    return size[:, 0], size[:, 1]
