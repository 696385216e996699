"""How primitives of jax become nodes of ONNX that are not one operator: see `onnx_graph`.

Each rule takes the graph, the equation of the jaxpr and its values, and returns the value of its output.
"""

import functools
from collections.abc import Callable

import numpy as np

from ann_jax.errors import ConfigError

END = np.iinfo(np.int64).max
RULES: dict[str, Callable] = {}


def _rule(function):
    RULES[function.__name__[1:]] = function
    return function


@_rule
def _dim_as_value(graph, equation):
    return graph.cast(graph.add('Squeeze', graph.dim(equation.params['dim'])), equation.outvars[0].aval.dtype)


@_rule
def _convert_element_type(graph, equation, x):
    return graph.cast(x, equation.params['new_dtype'])


@_rule
def _ne(graph, equation, x, y):
    return graph.add('Not', graph.add('Equal', x, y))


@_rule
def _rem(graph, equation, x, y):
    return graph.add('Mod', x, y, fmod=1)  # with the sign of x


@_rule
def _square(graph, equation, x):
    return graph.add('Mul', x, x)


@_rule
def _integer_pow(graph, equation, x):
    return graph.add('Pow', x, np.asarray(equation.params['y'], equation.outvars[0].aval.dtype))


@_rule
def _rsqrt(graph, equation, x):
    return graph.add('Reciprocal', graph.add('Sqrt', x))


@_rule
def _clamp(graph, equation, low, x, high):
    return graph.add('Min', graph.add('Max', x, low), high)


@_rule
def _select_n(graph, equation, which, *cases):
    return graph.add('Where', which, cases[1], cases[0])


@_rule
def _reshape(graph, equation, x):
    return graph.reshape(x, equation.outvars[0].aval.shape)


@_rule
def _broadcast_in_dim(graph, equation, x):
    shape, axes = equation.params['shape'], equation.params['broadcast_dimensions']
    given = equation.invars[0].aval.shape
    dims = [1] * len(shape)
    for axis, dim in zip(axes, given, strict=True):
        dims[axis] = dim
    if len(dims) != len(given):
        x = graph.reshape(x, dims)
    return x if dims == list(shape) else graph.add('Expand', x, graph.shape(shape))


@_rule
def _iota(graph, equation):
    shape, axis = equation.outvars[0].aval.shape, equation.params['dimension']
    count = graph.add('Squeeze', graph.dim(shape[axis]))
    x = graph.cast(graph.add('Range', np.array(0), count, np.array(1)), equation.outvars[0].aval.dtype)
    if len(shape) == 1:
        return x
    x = graph.reshape(x, [dim if i == axis else 1 for i, dim in enumerate(shape)])
    return graph.add('Expand', x, graph.shape(shape))


@_rule
def _concatenate(graph, equation, *parts):
    return graph.add('Concat', *parts, axis=equation.params['dimension'])


@_rule
def _stack(graph, equation, *parts):
    axis = equation.params['axis']
    return graph.add('Concat', *(graph.add('Unsqueeze', x, np.array([axis])) for x in parts), axis=axis)


@_rule
def _transpose(graph, equation, x):
    return graph.transpose(x, equation.params['permutation'])


@_rule
def _slice(graph, equation, x):
    shape, p = equation.invars[0].aval.shape, equation.params
    ends = [END if end == dim else end for end, dim in zip(p['limit_indices'], shape, strict=True)]
    steps = p['strides'] or [1] * len(shape)
    axes = [i for i in range(len(shape)) if (p['start_indices'][i], ends[i], steps[i]) != (0, END, 1)]
    if not axes:
        return x
    part = lambda each: graph.shape([each[i] for i in axes])
    return graph.add('Slice', x, part(p['start_indices']), part(ends), np.array(axes), part(steps))


@_rule
def _rev(graph, equation, x):
    for axis in equation.params['dimensions']:
        x = graph.add('Gather', x, np.arange(equation.invars[0].aval.shape[axis])[::-1], axis=axis)
    return x


@_rule
def _pad(graph, equation, x, value):
    low, high, inside = zip(*equation.params['padding_config'], strict=True)
    if any(inside):
        raise ConfigError('ONNX cannot pad between pixels: leave onnx out of export.formats')
    return graph.add('Pad', x, graph.shape([*low, *high]), value)


@_rule
def _gather(graph, equation, x, index):
    p, numbers = equation.params, equation.params['dimension_numbers']
    shape, rank = equation.invars[0].aval.shape, len(equation.invars[1].aval.shape) - 1
    axes, out = numbers.start_index_map, equation.outvars[0].aval.shape
    if rank == 0:  # one part of x
        start = graph.cast(index, np.int64)
        end = graph.add('Add', start, graph.shape([p['slice_sizes'][axis] for axis in axes]))
        return graph.reshape(graph.add('Slice', x, start, end, np.array(axes)), out)
    offsets = [i for i in range(len(out)) if not axes[0] <= i < axes[0] + rank]
    whole = [1 if i == axes[0] else dim for i, dim in enumerate(shape)]
    plain = axes == numbers.collapsed_slice_dims and len(axes) == 1 and list(p['slice_sizes']) == whole
    if not plain or list(numbers.offset_dims) != offsets:
        raise ConfigError('ONNX can gather here along one axis only: leave onnx out of export.formats')
    index = graph.reshape(index, equation.invars[1].aval.shape[:-1])
    return graph.add('Gather', x, index, axis=axes[0])


@_rule
def _reduce_sum(graph, equation, x):
    return graph.add('ReduceSum', x, np.array(equation.params['axes']), keepdims=0)


@_rule
def _reduce_max(graph, equation, x):
    return graph.add('ReduceMax', x, axes=list(equation.params['axes']), keepdims=0)


@_rule
def _argmax(graph, equation, x):
    (axis,) = equation.params['axes']
    return graph.cast(graph.add('ArgMax', x, axis=axis, keepdims=0), equation.params['index_dtype'])


@_rule
def _conv_general_dilated(graph, equation, x, kernel):
    p = equation.params
    if set(p['lhs_dilation']) != {1} or p['batch_group_count'] != 1:
        raise ConfigError('ONNX cannot convolve a dilated map here: leave onnx out of export.formats')
    numbers = p['dimension_numbers']
    low, high = zip(*p['padding'], strict=True)
    y = graph.add(
        'Conv',
        graph.transpose(x, numbers.lhs_spec),
        graph.transpose(kernel, numbers.rhs_spec),
        strides=list(p['window_strides']),
        pads=[int(n) for n in (*low, *high)],
        dilations=list(p['rhs_dilation']),
        group=p['feature_group_count'],
    )
    return graph.transpose(y, np.argsort(numbers.out_spec).tolist())


@_rule
def _dot_general(graph, equation, x, y):
    (of_x, of_y), (batch_x, batch_y) = equation.params['dimension_numbers']
    out = equation.outvars[0].aval
    shapes = [v.aval.shape for v in equation.invars]
    x, y = (
        value if v.aval.dtype == out.dtype else graph.cast(value, out.dtype)
        for v, value in zip(equation.invars, (x, y), strict=True)
    )
    free_x = [i for i in range(len(shapes[0])) if i not in (*of_x, *batch_x)]
    free_y = [i for i in range(len(shapes[1])) if i not in (*of_y, *batch_y)]
    x = graph.transpose(x, [*batch_x, *free_x, *of_x])
    y = graph.transpose(y, [*batch_y, *of_y, *free_y])
    rows_stay = len(free_x) == 1 or (free_x and not batch_x and len(free_y) == 1)
    plain = rows_stay and len(free_y) == 1 and len(of_x) == 1
    if not plain:  # matrices, of products of dimensions
        batch = [shapes[0][i] for i in batch_x]
        product = lambda k, axes: functools.reduce(lambda a, b: a * b, (shapes[k][i] for i in axes), 1)
        x = graph.reshape(x, [*batch, product(0, free_x), product(0, of_x)])
        y = graph.reshape(y, [*batch, product(1, of_y), product(1, free_y)])
    result = graph.add('MatMul', x, y)
    return result if plain else graph.reshape(result, out.shape)


RULES |= {'squeeze': _reshape, 'expand_dims': _reshape}
