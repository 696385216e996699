"""The FLOPs of a function, read from its jaxpr: the same for all platforms.

They are the multiplications and additions of convolutions and products. Taps on padding, or on the zeros
that a stride inserts between gradients, do not count, so each gradient costs as much as the convolution. What
is not used does not count. A loop counts once per iteration, or once if their number is unknown; of branches,
the one with the most FLOPs counts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal

from ann_jax.kernels.forms import with_forms_of

CALLS = ('jit', 'closed_call', 'custom_jvp_call', 'custom_vjp_call', 'remat2')
LOOPS = ('scan', 'while', 'shard_map')
PRODUCTS = ('conv_general_dilated', 'dot_general')


@dataclass(eq=False)
class Value:
    """An array of the program.

    Attributes:
        shape: shape of the array.
        times: number of copies: one per iteration of a loop, or per device.
    """

    shape: tuple[int, ...]
    times: int = 1


class Operation(NamedTuple):
    """An equation of a jaxpr that is no call; 'enter' and 'leave' delimit a loop."""

    name: str
    params: dict[str, Any]
    inputs: Sequence[Value]
    outputs: Sequence[Value]


def count_flops(function: Callable, *args: Any) -> int:
    """Counts a call of a function with arrays or `jax.ShapeDtypeStruct`s, without computing anything."""
    program = jax.make_jaxpr(with_forms_of('any', function))(*args)
    operations: list[Operation] = []
    results = _inline(program, [_array(aval) for aval in program.in_avals], 1, operations)
    return _flops(_used(operations, results))


def _array(aval: Any, times: int = 1) -> Value:
    return Value(getattr(aval, 'shape', ()), times)  # tokens have none


def _inline(program, inputs, times, operations):
    """Appends the operations of a jaxpr to `operations`; returns its results."""
    jaxpr = getattr(program, 'jaxpr', program)  # closed or open
    values = dict(zip(jaxpr.invars, inputs, strict=True))
    values |= {var: _array(var.aval, times) for var in jaxpr.constvars}
    value = lambda var: _array(var.aval) if isinstance(var, Literal) else values[var]
    for line in jaxpr.eqns:
        results = _run(line, [value(var) for var in line.invars], times, operations)
        values |= zip(line.outvars, results, strict=True)
    return [value(var) for var in jaxpr.outvars]


def _run(line, inputs, times, operations):
    """The same for one equation of a jaxpr."""
    name, params = line.primitive.name, line.params
    outputs = [_array(var.aval, times) for var in line.outvars]
    if name in CALLS:
        return _inline(params.get('jaxpr', params.get('call_jaxpr')), inputs, times, operations)
    if name in LOOPS:
        return _loop(name, params, inputs, outputs, times, operations)
    if name == 'cond':
        branches: list[list[Operation]] = [[] for _ in params['branches']]
        results = [
            _inline(program, inputs[1:], times, branch)
            for program, branch in zip(params['branches'], branches, strict=True)
        ]
        largest = max(range(len(branches)), key=lambda i: _flops(branches[i]))
        operations += branches[largest]
        return results[largest]
    if name == 'optimization_barrier':
        return inputs
    operations.append(Operation(name, params, inputs, outputs))
    return outputs


def _loop(name, params, inputs, outputs, times, operations):
    """The same for a loop, or for a function that runs on each device with its share."""
    program = params['body_jaxpr' if name == 'while' else 'jaxpr']
    inputs = inputs[params.get('cond_nconsts', 0) :]
    times *= params.get('length', 1)
    if name == 'shard_map':
        times *= math.prod(params['mesh'].shape[axis] for axis in params['newly_manual_axes'])
    inside = [_array(var.aval, times) for var in getattr(program, 'jaxpr', program).invars]
    operations += [Operation('enter', {}, [a], [b]) for a, b in zip(inputs, inside, strict=True)]
    results = _inline(program, inside, times, operations)
    operations.append(Operation('leave', {}, results, outputs))  # all of them: each iteration may use any
    return outputs


def _used(operations, results):
    """The operations whose outputs are used."""
    used, kept = set(results), []
    for operation in reversed(operations):
        if not used.isdisjoint(operation.outputs):
            used |= set(operation.inputs)
            kept.append(operation)
    return kept[::-1]


def _flops(operations):
    """Two for each multiplication and addition."""
    total = 0
    for name, params, inputs, outputs in operations:
        if name not in PRODUCTS:
            continue
        (left, right), (out,), numbers = inputs, outputs, params['dimension_numbers']
        if name == 'dot_general':
            per_result = math.prod(left.shape[axis] for axis in numbers[0][0])
            total += 2 * out.times * math.prod(out.shape) * per_result
            continue
        (batch, features, *axes), channels = numbers.out_spec, right.shape[numbers.rhs_spec[1]]
        windows = zip(
            (left.shape[axis] for axis in numbers.lhs_spec[2:]),
            (right.shape[axis] for axis in numbers.rhs_spec[2:]),
            (out.shape[axis] for axis in axes),
            *(params[key] for key in ('window_strides', 'padding', 'lhs_dilation', 'rhs_dilation')),
            strict=True,
        )
        taps = math.prod(_taps(*window) for window in windows)
        total += 2 * out.times * out.shape[batch] * out.shape[features] * channels * taps
    return total


def _taps(length, kernel, results, stride, padding, spread, dilation):
    """Number of taps along an axis that hit a pixel; pixels are `spread` apart."""
    place = np.arange(results)[:, None] * stride + np.arange(kernel) * dilation - padding[0]
    return int(((place >= 0) & (place <= (length - 1) * spread) & (place % spread == 0)).sum())
