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
    """A jitted function that enters its mesh wherever it is called from.

    `jax.set_mesh` holds for one thread. A program called from another must not compute as if there were no
    mesh.

    Attributes:
        jitted: what `jax.jit` gave.
        mesh: that it runs on.
    """

    jitted: Any
    mesh: Mesh

    def __call__(self, *args: Any) -> Any:
        """Runs it; compiles it first where arguments have new shapes.

        Inside of another function that is traced, that must have entered the same mesh.
        """
        if jax.sharding.get_abstract_mesh() == self.mesh.abstract_mesh:
            return self.jitted(*args)
        with jax.set_mesh(self.mesh):
            return self.jitted(*args)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """The program before it is compiled, also for devices that are described and not there."""
        with jax.set_mesh(self.mesh):
            return self.jitted.lower(*args)


def jit(function: Callable, mesh: Mesh, **options: Any) -> Program:
    """`jax.jit` for a mesh.

    Args:
        function: of arrays.
        mesh: that it runs on; its platform chooses the options of the compiler.
        **options: of `jax.jit`.
    """
    compiler = compiler_options(mesh.devices.flat[0].platform)
    return Program(jax.jit(function, compiler_options=compiler, **options), mesh)


def per_device(mesh: Mesh | None, donate: Sequence[int] = ()) -> Callable[[Callable], Callable]:
    """Decorates a function that works on each image alone: every device its images, no communication.

    Arguments that are mappings, the weights, lie whole on every device; along `space`, so do the images.

    Args:
        mesh: whose `data` axis splits the images; None for the device they lie on, also inside of `jax.jit`.
        donate: numbers of the arguments whose memory the result takes.
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
    """Puts an array of the host on the devices, where several processes each hold their own images."""
    if not mesh.is_multi_process:
        return lambda x: x
    put = functools.partial(jax.make_array_from_process_local_data, split_batch(mesh))
    return lambda x: put(x) if isinstance(x, np.ndarray) else x


@functools.cache
def compiler_options(platform: str) -> dict[str, Any] | None:
    """Options of `jax.jit` for programs of networks; None for other platforms than CPUs.

    On CPUs, XLA hands products and convolutions to YNNPACK, which takes up to half as long again for them as
    XLA's own; versions of XLA that do not know the option do without. It also takes barriers out, which
    `computed_once` and rematerialisation live on.
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
