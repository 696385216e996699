"""Programs compiled for a mesh."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ann_jax.parallel.arrays import split_batch


@dataclass(frozen=True)
class Program:
    """A jitted function that enters its mesh on each call.

    `jax.set_mesh` is local to a thread, and a program called from another thread must not run as if there
    were no mesh.

    Attributes:
        jitted: the result of `jax.jit`.
        mesh: the mesh that it runs on.
    """

    jitted: Any
    mesh: Mesh

    def __call__(self, *args: Any) -> Any:
        """Runs the program; compiles it first for arguments of new shapes.

        Inside another traced function, that function must have entered the same mesh.
        """
        if jax.sharding.get_abstract_mesh() == self.mesh.abstract_mesh:
            return self.jitted(*args)
        with jax.set_mesh(self.mesh):
            return self.jitted(*args)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """The program before compilation; works for devices that are described but not present."""
        with jax.set_mesh(self.mesh):
            return self.jitted.lower(*args)


def jit(function: Callable, mesh: Mesh, *, deterministic: bool = False, **options: Any) -> Program:
    """`jax.jit` for a mesh.

    Args:
        function: a function of arrays.
        mesh: the mesh to run on; its platform determines the compiler options.
        deterministic: on GPUs, leave out the kernels that add in any order, and the search for the fastest,
            whose choice may differ from one start to the next. CPUs and TPUs need no such thing.
        **options: passed to `jax.jit`.
    """
    here = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    device = (here or mesh.devices.flat)[0]
    compiler = compiler_options(device)
    if deterministic and device.platform not in ('cpu', 'tpu'):
        compiler = compiler | {'xla_gpu_deterministic_ops': True}
    return Program(jax.jit(function, compiler_options=compiler, **options), mesh)


def per_device(mesh: Mesh | None, donate: Sequence[int] = ()) -> Callable[[Callable], Callable]:
    """Decorates a function that treats images independently: each device its own images, no communication.

    Arguments that are mappings (weights) are replicated on all devices; along `space`, so are the images.

    Args:
        mesh: its `data` axis splits the images; None for the device that they are on, also inside `jax.jit`.
        donate: indices of the arguments whose memory the result reuses.
    """
    if mesh is None:
        return functools.partial(jax.jit, donate_argnums=tuple(donate))

    def wrap(function):
        def run(*args):
            specs = tuple(P() if isinstance(arg, Mapping) else P('data') for arg in args)
            return jax.shard_map(function, in_specs=specs, out_specs=P('data'), check_vma=False)(*args)

        program, put = jit(run, mesh, donate_argnums=donate), on_devices(mesh)
        return lambda *args: program(*map(put, args))

    return wrap


def on_devices(mesh: Mesh) -> Callable[[Any], Any]:
    """Puts host arrays on the devices if there are several processes, each with its own images."""
    if not mesh.is_multi_process:
        return lambda x: x
    put = functools.partial(jax.make_array_from_process_local_data, split_batch(mesh))
    return lambda x: put(x) if isinstance(x, np.ndarray) else x


@functools.cache
def compiler_options(device: jax.Device) -> dict[str, Any]:
    """Options of `jax.jit` for network programs, as far as this version of XLA knows them, see `known`.

    On CPUs, XLA passes products and convolutions to YNNPACK, which is up to 1.5 times slower than XLA's own
    code. XLA also removes barriers, which `computed_once` and rematerialisation depend on.

    On GPUs, XLA splits a sum over pixels to fill the chip, and for that copies both maps, padded to a number
    of pixels that divides. cuBLAS splits it in place.

    On TPUs, XLA moves parts of a row into the batch where a chip has few images. The copies to and fro are
    half of the bytes of a step.
    """
    if device.platform == 'cpu':
        removed = {'xla_disable_hlo_passes': 'cse_barrier_expander'}
        return known({'xla_cpu_experimental_ynn_fusion_type': ''}, device) | removed
    if device.platform == 'tpu':
        names = 'xla_tpu_run_space_to_batch', 'xla_tpu_run_space_to_batch_on_new_platforms'
        return known(dict.fromkeys(names, 'false'), device)
    return known({'xla_gpu_experimental_force_split_k': 1}, device)


def known(options: dict[str, Any], device: jax.Device) -> dict[str, Any]:
    """The options if the compiler for a device, which need not be there, knows them all; else none."""
    place = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((), np.float32, sharding=place)
    try:
        jax.jit(lambda x: x, compiler_options=options, out_shardings=place).lower(x).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options
