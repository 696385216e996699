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
    platform = mesh.devices.flat[0].platform
    compiler = compiler_options(platform)
    if deterministic and platform not in ('cpu', 'tpu'):
        compiler = (compiler or {}) | {'xla_gpu_deterministic_ops': True}
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
def compiler_options(platform: str) -> dict[str, Any] | None:
    """Options of `jax.jit` for network programs; None on platforms other than CPUs.

    On CPUs, XLA passes products and convolutions to YNNPACK, which is up to 1.5 times slower than XLA's own
    code; the option is left out for versions of XLA that do not know it. XLA also removes barriers, which
    `computed_once` and rematerialisation depend on.
    """
    if platform != 'cpu':
        return None
    options = {'xla_cpu_experimental_ynn_fusion_type': ''}
    try:
        with jax.default_device(jax.local_devices(backend='cpu')[0]):
            jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        options = {}
    return options | {'xla_disable_hlo_passes': 'cse_barrier_expander'}
