"""The device mesh and how arrays lie on it. One axis: `data`, over which a batch is split."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ann_jax.errors import ConfigError


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (or of `devices`) along `data`."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ('data',), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The first axis split over `data`."""
    return NamedSharding(mesh, PartitionSpec('data'))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's part of a batch on its devices; the result is the global batch."""
    sharding = split_batch(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, np.asarray(batch[key]))
        for key in ('image', 'label')
    }


def put_flag(flag: bool, mesh: Mesh) -> jax.Array:
    """A flag of each process, once per device: (devices,) bool, split over `data`."""
    local = np.full(len(mesh.local_devices), flag)
    return jax.make_array_from_process_local_data(split_batch(mesh), local)


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows of an array split over `data` that lie on this process's devices, in order."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def check_batch_size(size: int, mesh: Mesh, key: str) -> None:
    """Refuses a global batch that the devices cannot share evenly.

    Raises:
        ConfigError: names the config `key` and the nearest sizes that divide.
    """
    devices = mesh.shape['data']
    if size > 0 and size % devices == 0:
        return
    below = max(size // devices, 1) * devices
    nearest = sorted({below, max(-(-size // devices), 1) * devices})
    raise ConfigError(
        f'{key}={size} does not divide over {devices} devices; '
        f'nearest that does: {" or ".join(map(str, nearest))}'
    )
