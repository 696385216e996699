"""The device mesh: its axis `data` splits a batch, its axis `space` the rows of each image.

The mesh is ambient: programs enter it (`programs.jit`, or `jax.set_mesh`), and code that depends on it asks
here.
"""

import math
from collections import Counter

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from ann_jax.errors import ConfigError


def make_mesh(devices: list[jax.Device] | None = None, *, data: int = -1, space: int = 1) -> Mesh:
    """A mesh of all devices, or of `devices`.

    Args:
        devices: None for all.
        data, space: sizes of the axes; -1 for what the other axis leaves.

    Raises:
        ConfigError: a size does not divide the devices; the message names the key and sizes that do.
    """
    devices = jax.devices() if devices is None else devices
    data, space = _sizes(len(devices), data, space)
    if space > 1:
        # All devices of an image belong to one process, which reads the image.
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


def shares_images(mesh: Mesh) -> bool:
    """Whether several devices share the rows of an image."""
    return mesh.shape['space'] > 1


def row_shards(x: jax.Array | np.ndarray) -> int:
    """Number of devices that share the rows of each image of `x` in the ambient mesh; 1 without a mesh.

    Raises:
        ConfigError: x is on a mesh that splits rows, but this mesh has not been entered.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        if jax.typeof(x).sharding.mesh.shape.get('space', 1) > 1:
            raise ConfigError(
                'the arrays are on a mesh that splits the rows of images (its axis `space`), but the '
                'function was called outside it: call it under jax.set_mesh(mesh), in each thread'
            )
        return 1
    # Inside a shard_map, every device works on its own.
    return 1 if 'space' in mesh.manual_axes else mesh.shape.get('space', 1)


def has_accelerator() -> bool:
    """Whether this process computes on GPUs or TPUs, which leave its CPU cores to reading."""
    return jax.default_backend() != 'cpu'


def check_batch_size(size: int, mesh: Mesh, key: str, parts: int = 1) -> None:
    """Checks that the devices can share a global batch evenly, each in `parts` parts.

    Raises:
        ConfigError: they cannot; the message names the config `key` and the nearest sizes that divide.
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
