"""How arrays are sharded on the mesh."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ann_jax.parallel.mesh import row_shards

# How (k, k, C, D) kernels lie in memory, slowest axis first, where that is not the order of their axes. For
# cuDNN, each program would otherwise transpose each of them at each call.
KERNELS = {'gpu': (3, 0, 1, 2)}


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The first axis split over `data`, the others whole."""
    return NamedSharding(mesh, P('data'))


def put_batch(
    batch: Mapping[str, Any], mesh: Mesh, keys: Sequence[str] = ('image', 'label')
) -> dict[str, jax.Array]:
    """Puts this process's part of a batch on its devices; returns the global batch.

    Arrays that are already on devices must be those of the whole batch.
    """
    sharding = split_batch(mesh)

    def put(x):
        if isinstance(x, jax.Array):
            return jax.device_put(x, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return {key: put(batch[key]) for key in keys}


def put_weights(variables: Any, mesh: Mesh) -> Any:
    """Puts weights on all devices of a mesh, for programs that only read them; kernels as in `KERNELS`."""
    place = replicated(mesh)
    order = KERNELS.get(mesh.devices.flat[0].platform)
    if order is None or mesh.is_multi_process:  # other orders have not been tried with several processes
        return jax.device_put(variables, place)
    kernels = Format(Layout(order), place)
    return jax.tree.map(lambda x: jax.device_put(x, kernels if np.ndim(x) == 4 else place), variables)


def put_flag(flag: bool, mesh: Mesh) -> jax.Array:
    """Each process's flag, once per position on the `data` axis: (data,) bool, split over it."""
    local = np.full(len(mesh.local_devices) // mesh.shape['space'], flag)
    return jax.make_array_from_process_local_data(split_batch(mesh), local)


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split over `data`, in order."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def split_rows(x: jax.Array, canvas_height: Callable[[int, int], int], fill: int = 0) -> jax.Array:
    """Splits the rows of (B, H, ...) over the devices that share an image in the ambient mesh.

    Args:
        x: the array; returned unchanged if rows are not split.
        canvas_height: (H, devices) -> rows of a canvas that divides over the devices; rows below the image
            are filled with `fill`.
        fill: value for these rows.
    """
    if (shards := row_shards(x)) == 1:
        return x
    below = [(0, 0), (0, canvas_height(x.shape[1], shards) - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, below, constant_values=fill)
    # Whole first, so that each device cuts out its rows instead of exchanging rows of another split.
    x = jax.lax.with_sharding_constraint(x, P('data'))
    return jax.lax.with_sharding_constraint(x, P('data', 'space'))
