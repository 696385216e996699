"""Images whose rows are split over the `space` axis of a mesh.

Where the rows of a feature map are split evenly, XLA's partitioner exchanges the halos of convolutions and
pooling and sums the statistics of batch normalisation by itself. An image whose rows do not divide evenly at
every stage lies at the top of a canvas whose rows do. A feature map is kept zero below the image, which is
the padding of every convolution; statistics and anchors are taken over the image only.

Pooling to anchors and resizing, for which XLA would gather whole feature maps, are done here shard by shard.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ann_jax.ops import average_rows, linear_rows, sample_anchors

# Rows that a shard needs of its neighbours to resize: two maps of one image, whose sizes were rounded at each
# stage, lie less than two rows of the input apart.
HALO = 2


@dataclass(frozen=True)
class Rows:
    """Where the rows of a feature map lie.

    Attributes:
        mesh: its axis `space` splits the rows of the canvas.
        height: rows of the image, at the top of the canvas, at the resolution of the map.
    """

    mesh: Mesh
    height: int

    def strided(self, stride: int) -> 'Rows':
        """Of the output of a convolution with symmetric padding."""
        return replace(self, height=(self.height - 1) // stride + 1)

    def clean(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) with zeros below the image."""
        if self.height == x.shape[1]:
            return x
        return jnp.where(jnp.arange(x.shape[1])[:, None, None] < self.height, x, 0)


def is_split(mesh: Mesh | None) -> bool:
    """Whether the rows of an image are split over devices."""
    return mesh is not None and mesh.shape['space'] > 1


def split_rows(x: jax.Array, height: int, mesh: Mesh, fill: int = 0) -> jax.Array:
    """Splits (B, H, ...) arrays over `space`, on canvases of `height` rows filled up with `fill`."""
    below = [(0, 0), (0, height - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, below, constant_values=fill)
    # Whole first: every device holds it and cuts its rows out, instead of passing rows of another split on.
    x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P('data')))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P('data', 'space')))


def anchors(
    x: jax.Array, sampling: str, sizes: Sequence[int], rng: jax.Array | None, rows: Rows
) -> jax.Array:
    """`ops.sample_anchors` of images that fill the width of their canvas.

    Average pooling exchanges the anchors alone. The others need pixels of the whole map, which XLA fetches.

    Args:
        x: (B, H, W, C) features.
        sampling, sizes, rng: see `ops.sample_anchors`.
        rows: of x.
    """
    if sampling == 'average':
        size = jnp.broadcast_to(jnp.asarray((rows.height, x.shape[2])), (x.shape[0], 2))
        return average_anchors(x, sizes, size, rows.mesh)
    return sample_anchors(x[:, : rows.height], sampling, sizes, rng)


def average_anchors(x: jax.Array, sizes: Sequence[int], size: jax.Array, mesh: Mesh) -> jax.Array:
    """Average pools images on canvases: every shard its rows, then sums of S x C over the shards.

    Args:
        x: (B, H, W, C) canvases, rows split over `space`.
        sizes: see `ops.sample_anchors`.
        size: (B, 2) sizes of the images on them.
        mesh: whose `space` axis splits the rows of x.

    Returns:
        (B, S, C) in the dtype of x, the same on every device of an image.
    """
    rows, columns = ([average_rows(x.shape[1 + axis], n, size[:, axis]) for n in sizes] for axis in (0, 1))

    def local(x, rows, columns):
        levels = []
        for row, column in zip(rows, columns, strict=True):
            level = jnp.einsum('bmw,bhwc->bhmc', column, x.astype(jnp.float32), precision='highest')
            level = jnp.einsum('bnh,bhmc->bnmc', row, level, precision='highest')
            levels.append(level.reshape(x.shape[0], -1, x.shape[-1]))
        return jax.lax.psum(jnp.concatenate(levels, 1), 'space').astype(x.dtype)

    specs = P('data', 'space'), P('data', None, 'space'), P('data')
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P('data'))(x, rows, columns)


def resize(
    x: jax.Array,
    size: jax.Array | tuple[int, int],
    canvas: tuple[int, int],
    target: jax.Array | tuple[int, int],
    align_corners: bool,
    mesh: Mesh,
) -> jax.Array:
    """`ops.resize_images` shard by shard, between two maps of the same images.

    Args:
        x: (B, H, W, C) canvases, rows split over `space`; computed in float32.
        size: (B, 2) sizes of the images on them, or the size of all.
        canvas: height and width of the result; its height is the same multiple of H as that of the
            images, but for the rounding of their sizes.
        target: the same of the result; what lies outside of its images does not count.
        align_corners: whether the corner pixels' centres, or their outer corners, are kept in place.
        mesh: whose `space` axis splits the rows, of x and of the result.

    Returns:
        (B, *canvas, C) float32.
    """
    shards = mesh.shape['space']
    own = x.shape[1] // shards
    size, target = (jnp.broadcast_to(jnp.asarray(n), (x.shape[0], 2)) for n in (size, target))
    rows = linear_rows(x.shape[1], canvas[0], size[:, 0], target[:, 0], align_corners)
    columns = linear_rows(x.shape[2], canvas[1], size[:, 1], target[:, 1], align_corners)
    rows = jnp.pad(rows, ((0, 0), (0, 0), (HALO, HALO)))

    def local(x, rows, columns):
        start = jax.lax.axis_index('space') * own
        rows = jax.lax.dynamic_slice_in_dim(rows, start, own + 2 * HALO, 2)
        x = with_neighbours(x.astype(jnp.float32), shards)
        x = jnp.einsum('boh,bhwc->bowc', rows, x, precision='highest')
        return jnp.einsum('bow,bhwc->bhoc', columns, x, precision='highest')

    split = P('data', 'space')
    return jax.shard_map(local, mesh=mesh, in_specs=(split, split, P('data')), out_specs=split)(
        x, rows, columns
    )


def with_neighbours(x: jax.Array, shards: int) -> jax.Array:
    """(B, h + 2 * HALO, W, C): a shard's rows between those of its neighbours, zeros beyond the canvas."""
    own, parts = x.shape[1], [x]
    for hop in range(1, -(-HALO // own) + 1):  # a shard of one row lies two hops from the rows it needs
        count = min(own, HALO - (hop - 1) * own)
        down = [(i, i + hop) for i in range(shards - hop)]
        above = jax.lax.ppermute(x[:, own - count :], 'space', down)
        below = jax.lax.ppermute(x[:, :count], 'space', [(j, i) for i, j in down])
        parts = [above, *parts, below]
    return jnp.concatenate(parts, 1)
