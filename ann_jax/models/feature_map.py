"""A feature map that knows the valid part of each image.

One mechanism for three cases: batches of images of several sizes, rows split over devices, and heights that
the devices do not divide.
"""

from dataclasses import dataclass
from typing import Any, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np

from ann_jax.kernels import Array, masking
from ann_jax.kernels.masking import Size
from ann_jax.kernels.resizing import resize
from ann_jax.parallel.arrays import split_rows


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class FeatureMap:
    """Features, or images, and the size of the valid part of each image.

    Pixels outside the images are undefined. Layers that read neighbouring pixels see zeros there (`clean`);
    statistics, anchors and resizing ignore them.

    Attributes:
        array: (B, H, W, C); each image at the top left.
        size: heights and widths, each a number for all images or (B,) int32; None if the images fill `array`.
    """

    array: jax.Array
    size: Size = None

    @classmethod
    def of(cls, x: 'Features', size: Any = None) -> 'FeatureMap':
        """Wraps an array; returns a map unchanged.

        Args:
            x: (B, H, W, C).
            size: a pair, see `Size`, or (B, 2); numbers equal to the array's size count as None.
        """
        if isinstance(x, FeatureMap):
            return x
        if size is not None and not isinstance(size, tuple) and np.ndim(size) == 2:
            size = masking.pair(jnp.asarray(size))
        if size is not None:
            size = tuple(n if isinstance(n, jax.Array) else int(n) for n in size)
        fills = size is not None and all(isinstance(n, int) for n in size) and size == x.shape[1:3]
        return cls(x, None if fills else size)  # type: ignore[arg-type]  # NumPy arrays serve as well

    @property
    def channels(self) -> int:
        """C."""
        return self.array.shape[-1]

    @overload
    def like(self, given: 'FeatureMap') -> 'FeatureMap': ...
    @overload
    def like(self, given: Array) -> jax.Array: ...

    def like(self, given: 'Features') -> 'Features':
        """This map if `given` is a map; if it is an array, the valid part as an array."""
        if isinstance(given, FeatureMap):
            return self
        height, width = self.size or (None, None)
        return self.array[:, :height, :width]

    def clean(self) -> Array:
        """The array, with zeros outside of the images."""
        return masking.clean(self.array, self.size)

    def with_array(self, array: jax.Array) -> 'FeatureMap':
        """Other features of the same pixels."""
        return FeatureMap(array, self.size)

    def strided(self, array: jax.Array, stride: int) -> 'FeatureMap':
        """The result of a convolution of this map with symmetric padding."""
        return FeatureMap.of(array, masking.strided(self.size, stride))

    def resized(self, like: 'FeatureMap', align_corners: bool) -> 'FeatureMap':
        """Resized to the size of another map of the same images, see `kernels.resizing.resize`."""
        height, width = like.array.shape[1:3]
        array = resize(self.array, self.size, (height, width), like.size, align_corners)
        return FeatureMap(array, like.size)

    def split_over_devices(self, canvas_height: Any) -> 'FeatureMap':
        """Splits the rows over the devices that share an image, see `parallel.arrays.split_rows`."""
        array = split_rows(self.array, canvas_height)
        return FeatureMap.of(array, self.size or self.array.shape[1:3])

    def tree_flatten(self) -> tuple:
        """Sizes that are numbers are part of the tree structure."""
        known = self.size and tuple(n if isinstance(n, int) else None for n in self.size)
        unknown = tuple(n for n in self.size or () if not isinstance(n, int))
        return (self.array, *unknown), known

    @classmethod
    def tree_unflatten(cls, known: Any, children: Any) -> 'FeatureMap':
        """Inverse of `tree_flatten`."""
        array, *unknown = children
        lengths = iter(unknown)
        return cls(array, known and tuple(next(lengths) if n is None else n for n in known))


# What layers accept.
Features = FeatureMap | Array
# For networks that return maps for a map and arrays for an array.
Given = TypeVar('Given', FeatureMap, Array)
