"""The device mesh and how arrays lie on it.

Its axis `data` splits a batch. The axis `space` splits the rows of each image inside the network,
see `rows`; what goes in lies whole on each device of an image.
"""

import math
from collections import Counter
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ann_jax.errors import ConfigError


def make_mesh(devices: list[jax.Device] | None = None, *, data: int = -1, space: int = 1) -> Mesh:
    """A mesh of all devices, or of `devices`.

    Args:
        devices: which.
        data, space: sizes of the axes; -1 is what the other leaves.

    Raises:
        ConfigError: names the key, and the sizes that divide.
    """
    devices = jax.devices() if devices is None else devices
    data, space = _sizes(len(devices), data, space)
    if space > 1:
        # The devices of an image are those of one process, which reads it.
        devices = sorted(devices, key=lambda device: (device.process_index, device.id))
        own = Counter(device.process_index for device in devices)
        if any(count % space for count in own.values()):
            least = math.gcd(*own.values())
            raise ConfigError(
                f'mesh.space={space} would split an image over processes: with {least} devices each, '
                f'{_divisors(least)} divide'
            )
        return Mesh(np.array(devices).reshape(data, space), ('data', 'space'))
    return jax.make_mesh((data, 1), ('data', 'space'), axis_types=(AxisType.Auto,) * 2, devices=devices)


def _sizes(count, data, space):
    """Sizes of both axes over `count` devices."""
    given = {key: size for key, size in (('mesh.data', data), ('mesh.space', space)) if size != -1}
    for key, size in given.items():
        if size < 1 or count % size:
            raise ConfigError(f'{key}={size} does not divide {count} devices: {_divisors(count)} divide')
    match list(given.values()):
        case []:
            raise ConfigError('mesh.data=-1 and mesh.space=-1: one of them takes what the other leaves')
        case [_, _] if data * space != count:
            raise ConfigError(
                f'mesh.data={data} x mesh.space={space} is {data * space} of {count} devices: '
                f'mesh.data={count // space}, or -1, goes with mesh.space={space}'
            )
    return (count // space if data == -1 else data), (count // data if space == -1 else space)


def _divisors(count):
    return ', '.join(str(n) for n in range(1, count + 1) if count % n == 0)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The first axis split over `data`, the others whole."""
    return NamedSharding(mesh, PartitionSpec('data'))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's part of a batch on its devices; the result is the global batch."""
    sharding = split_batch(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, np.asarray(batch[key]))
        for key in ('image', 'label')
    }


def put_flag(flag: bool, mesh: Mesh) -> jax.Array:
    """A flag of each process, once per place of the `data` axis: (data,) bool, split over it."""
    local = np.full(len(mesh.local_devices) // mesh.shape['space'], flag)
    return jax.make_array_from_process_local_data(split_batch(mesh), local)


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows of an array split over `data` that lie on this process's devices, in order."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def check_batch_size(size: int, mesh: Mesh, key: str, parts: int = 1) -> None:
    """Refuses a global batch that the devices cannot share evenly, each in `parts`.

    Raises:
        ConfigError: names the config `key` and the nearest sizes that divide.
    """
    data, space = mesh.shape['data'], mesh.shape['space']
    unit = data * parts
    if size > 0 and size % unit == 0:
        return
    below = max(size // unit, 1) * unit
    nearest = sorted({below, max(-(-size // unit), 1) * unit})
    places = f'{data} devices' if space == 1 else f'{data} groups of {space} devices'
    places += f' in {parts} parts (train.accumulate)' if parts > 1 else ''
    raise ConfigError(
        f'{key}={size} does not divide over {places}; nearest that does: {" or ".join(map(str, nearest))}'
    )
