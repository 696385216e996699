"""What a function computes and moves, read from its jaxpr: the same for all platforms.

FLOPs are the multiplications and additions of convolutions and products. Taps on padding, or on the zeros
that a stride inserts between gradients, do not count, so each gradient costs as much as the convolution.

Bytes are those of a program that fuses everything possible, but nothing into convolutions and products:

- These read their operands from memory and write their results.
- Everything else is fused. It reads from memory, once for all that can be computed at the same time, and
  writes the operands of convolutions, products and loops, the results for the caller, and the results of sums
  and the like.
- A value that is used several times is also written if its terms are more than three times as large. One
  example is the gradient of a residual block, which would be recomputed each time from those of all later
  blocks.
- What is transposed, reshaped or sliced is read in place.

Compilers move more. A loop counts once per iteration, or once if their number is unknown; of branches, the
one with the most FLOPs counts.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal

from ann_jax.kernels.forms import with_forms_of

CALLS = ('jit', 'closed_call', 'custom_jvp_call', 'custom_vjp_call', 'remat2')
LOOPS = ('scan', 'while', 'shard_map')
PRODUCTS = ('conv_general_dilated', 'dot_general')
REDUCTIONS = ('reduce', 'arg', 'cum', 'sort', 'top_k', 'select_and_')  # how their names begin
VIEWS = (
    'reshape', 'transpose', 'squeeze', 'broadcast_in_dim', 'rev', 'slice', 'dynamic_slice', 'split', 'copy',
    'sharding_constraint',
)  # fmt: skip


class Counts(NamedTuple):
    """Counts of one call."""

    flops: int
    bytes: int


class Value:
    """An array of the program.

    Attributes:
        shape: shape of the array.
        times: number of copies: one per iteration of a loop, or per device.
        bytes: size of all copies.
        root: the value that this is a view of, or itself.
    """

    def __init__(self, aval: Any, times: int = 1, root: 'Value | None' = None):
        self.shape, self.times, self.root = aval.shape, times, root or self
        self.bytes = math.prod(aval.shape) * aval.dtype.itemsize * times


class Operation(NamedTuple):
    """An equation of a jaxpr that is neither a call nor a view; 'enter' and 'leave' delimit a loop."""

    name: str
    params: dict[str, Any]
    inputs: Sequence[Value]
    outputs: Sequence[Value]


def count(function: Callable, *args: Any) -> Counts:
    """Counts a call of a function with arrays or `jax.ShapeDtypeStruct`s, without computing anything."""
    program = jax.make_jaxpr(with_forms_of('any', function))(*args)
    operations: list[Operation] = []
    results = _inline(program, [Value(aval) for aval in program.in_avals], 1, operations)
    operations = _used(operations, results)
    return Counts(_flops(operations), _bytes(operations, results))


def _inline(program, inputs, times, operations):
    """Appends the operations of a jaxpr to `operations`; returns its results."""
    jaxpr = getattr(program, 'jaxpr', program)  # closed or open
    values = dict(zip(jaxpr.invars, inputs, strict=True))
    values |= {var: Value(var.aval, times) for var in jaxpr.constvars}
    value = lambda var: Value(var.aval, 0) if isinstance(var, Literal) else values[var]
    for line in jaxpr.eqns:
        results = _run(line, [value(var) for var in line.invars], times, operations)
        values |= zip(line.outvars, results, strict=True)
    return [value(var) for var in jaxpr.outvars]


def _run(line, inputs, times, operations):
    """The same for one equation of a jaxpr."""
    name, params = line.primitive.name, line.params
    new = lambda root=None: [Value(var.aval, times, root) for var in line.outvars]
    if name in CALLS:
        return _inline(params.get('jaxpr', params.get('call_jaxpr')), inputs, times, operations)
    if name in LOOPS:
        return _loop(name, params, inputs, new(), times, operations)
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
    if name in VIEWS:
        return new(inputs[0].root)
    operations.append(Operation(name, params, inputs, new()))
    return operations[-1].outputs


def _loop(name, params, inputs, outputs, times, operations):
    """The same for a loop, or for a function that runs on each device with its share."""
    program = params['body_jaxpr' if name == 'while' else 'jaxpr']
    inputs = inputs[params.get('cond_nconsts', 0) :]
    times *= params.get('length', 1)
    if name == 'shard_map':
        times *= math.prod(params['mesh'].shape[axis] for axis in params['newly_manual_axes'])
    inside = [Value(var.aval, times) for var in getattr(program, 'jaxpr', program).invars]
    operations += [Operation('enter', {}, [a], [b]) for a, b in zip(inputs, inside, strict=True)]
    results = _inline(program, inside, times, operations)
    operations.append(Operation('leave', {}, results, outputs))  # all of them: each iteration may use any
    return outputs


def _used(operations, results):
    """The operations whose outputs are used."""
    used, kept = {value.root for value in results}, []
    for operation in reversed(operations):
        if not used.isdisjoint(operation.outputs):
            used |= {value.root for value in operation.inputs}
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


def _bytes(operations, results):
    """Bytes read and written, by the rules above."""
    uses = Counter(value.root for each in operations for value in each.inputs)
    heavy = [each for each in operations if each.name in (*PRODUCTS, 'enter')]
    taken = {value.root for each in heavy for value in each.inputs}
    terms: dict[Value, set[Value]] = {}  # of a value that is not in memory: those it is computed from
    depth: dict[Value, int] = {}  # of a value in memory: how many are written before, each from the last
    reads: set[tuple[Value, int]] = set()  # by all that is fused: what, and at which depth
    total = 0

    def behind(values):
        """The values in memory that some values depend on, and the depth at which these can be read."""
        found = set().union(*(terms.get(value.root, {value.root}) for value in values))
        return found, max((depth.get(value, 0) for value in found), default=0)

    def write(value, source):
        nonlocal total
        found, level = behind([source])
        reads.update((each, level) for each in found)
        total += value.bytes

    for name, _, inputs, outputs in operations:
        found, level = behind(inputs)
        if name == 'enter':
            depth[outputs[0]] = level
            continue
        if name == 'leave':
            for source, value in zip(inputs, outputs, strict=True):
                depth[value] = level + 1
                if source.root in terms:
                    write(value, source)
            continue
        size = sum(value.bytes for value in found)
        for value in outputs:
            written = name in PRODUCTS or name.startswith(REDUCTIONS) or value in taken
            if written or (uses[value] > 1 and size > 3 * value.bytes):
                depth[value] = level + 1
                total += value.bytes
                reads |= set() if name in PRODUCTS else {(each, level) for each in found}
            else:
                terms[value] = found
        if name in PRODUCTS:
            total += sum(min(value.bytes, value.root.bytes) for value in inputs)
    for value in {value.root for value in results} & terms.keys():
        write(value, value)
    return total + sum(value.bytes for value, _ in reads)
