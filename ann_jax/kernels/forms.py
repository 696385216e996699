"""Forms of a function for several platforms; lowering chooses the one that runs.

A form is a module-level function of arrays, or `with_static` of one: jax traces a function object once per
set of argument shapes. A network calls forms a few hundred times, with some twenty shapes.
"""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import jax

_picked: ContextVar[str | None] = ContextVar('picked', default=None)

GPUS = ('cuda', 'rocm')
PLATFORMS = ('cpu', *GPUS, 'tpu', 'any')


def by_platform(
    *args: Any,
    default: Callable,
    cpu: Callable | None = None,
    gpu: Callable | None = None,
    tpu: Callable | None = None,
) -> Any:
    """Calls the form for the platform that the program is lowered for.

    Args:
        *args: arrays, or trees of them.
        default: the form for all other platforms.
        cpu, gpu, tpu: special forms; their results have the same shapes.
    """
    given = {'cpu': cpu, 'tpu': tpu} | dict.fromkeys(GPUS, gpu)
    forms = {platform: form for platform, form in given.items() if form is not None}
    if (picked := _picked.get()) is not None:
        return forms.get(picked, default)(*args)
    return jax.lax.platform_dependent(*args, default=default, **forms)


def with_forms_of(platform: str, function: Callable) -> Callable:
    """The function with the forms of one platform, whatever it is lowered for; 'any' has only default forms.

    For exporters and cost counting, which do not support a choice by platform.

    Returns a new function: jax caches traces by function object, and the choice is not part of the key.

    Raises:
        ValueError: the platform is not one of `PLATFORMS`.
    """
    if platform not in PLATFORMS:
        raise ValueError(f'platform={platform!r}: must be one of {", ".join(PLATFORMS)}')

    def picked(*args):
        token = _picked.set(platform)
        try:
            return function(*args)
        finally:
            _picked.reset(token)

    return picked


@functools.cache
def with_static(form: Callable, *static: Any) -> Callable:
    """A form with its first arguments fixed; the same object each time."""
    return functools.partial(form, *static)


def computed_once(x: jax.Array) -> jax.Array:
    """Returns x; on CPUs, x and its gradient are materialised before they are used.

    Otherwise XLA recomputes each sum of residuals from those of all earlier blocks, and keeps them all: in
    ResNet-101 this costs a fifth of inference time and more than half of its memory.
    """
    return _computed_once(x)


def _same(x):
    return x


@jax.custom_vjp
def _computed_once(x):
    return by_platform(x, cpu=jax.lax.optimization_barrier, default=_same)


_computed_once.defvjp(lambda x: (_computed_once(x), None), lambda _, gradient: (_computed_once(gradient),))
