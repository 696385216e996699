"""Forms of a function for several platforms; the one that runs is chosen when a program is lowered.

A form is a function of arrays at the top level of its module, or `with_static` of one: jax traces the same
object only once for arguments of the same shapes. A network uses a few hundred forms of some twenty shapes.
"""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import jax

_picked: ContextVar[str | None] = ContextVar('picked', default=None)

GPUS = ('cuda', 'rocm')


def by_platform(
    *args: Any, default: Callable, cpu: Callable | None = None, gpu: Callable | None = None
) -> Any:
    """Calls the form of the platform that the program is lowered for.

    Args:
        *args: arrays, or trees of them.
        default: the form of platforms that have none of their own.
        cpu, gpu: forms with results of the same shapes.
    """
    given = {'cpu': cpu} | dict.fromkeys(GPUS, gpu)
    forms = {platform: form for platform, form in given.items() if form is not None}
    if (picked := _picked.get()) is not None:
        return forms.get(picked, default)(*args)
    return jax.lax.platform_dependent(*args, default=default, **forms)


def with_forms_of(platform: str, function: Callable) -> Callable:
    """The function in the forms of one platform, whatever it is lowered for.

    For what knows no choice by platform: exporters, and counting. 'any' has the default forms alone.

    The result is a new function. jax keeps traces by function, and the pick is none of its keys.
    """

    def picked(*args):
        token = _picked.set(platform)
        try:
            return function(*args)
        finally:
            _picked.reset(token)

    return picked


@functools.cache
def with_static(form: Callable, *static: Any) -> Callable:
    """A form whose first arguments are fixed; the same object for the same ones."""
    return functools.partial(form, *static)


def computed_once(x: jax.Array) -> jax.Array:
    """The same array; on CPUs it, and its gradient, are put into memory before any part of them is used.

    XLA would otherwise compute a sum of residuals again from those of all blocks before, in every block, and
    keep them all for it: in ResNet-101 a fifth of the time of inference and more than half of its memory.
    """
    return _computed_once(x)


def _same(x):
    return x


@jax.custom_vjp
def _computed_once(x):
    return by_platform(x, cpu=jax.lax.optimization_barrier, default=_same)


_computed_once.defvjp(lambda x: (_computed_once(x), None), lambda _, gradient: (_computed_once(gradient),))
