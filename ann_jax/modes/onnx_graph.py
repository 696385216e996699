"""Writes a traced function as an ONNX graph, with sizes that are known only when it runs.

Each primitive of jax becomes the operators below; what depends on constants alone is computed now. Operators
are those that ONNX Runtime, OpenVINO and TensorRT share: products are MatMul, not Einsum.
"""

import ast
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ann_jax.errors import ConfigError

OPSET = 17
END = np.iinfo(np.int64).max

SAME = ('stop_gradient', 'copy', 'copy_p', 'optimization_barrier', 'sharding_constraint')
INSIDE = ('jit', 'pjit', 'closed_call', 'custom_jvp_call', 'custom_vjp_call', 'checkpoint', 'remat2')
SIMPLE = {
    **{'abs': 'Abs', 'neg': 'Neg', 'exp': 'Exp', 'log': 'Log', 'sqrt': 'Sqrt', 'tanh': 'Tanh', 'erf': 'Erf'},
    **{'floor': 'Floor', 'ceil': 'Ceil', 'sign': 'Sign', 'logistic': 'Sigmoid', 'not': 'Not'},
    **{'add': 'Add', 'add_any': 'Add', 'sub': 'Sub', 'mul': 'Mul', 'div': 'Div', 'max': 'Max', 'min': 'Min'},
    **{'pow': 'Pow', 'and': 'And', 'or': 'Or', 'eq': 'Equal', 'lt': 'Less', 'le': 'LessOrEqual'},
    **{'gt': 'Greater', 'ge': 'GreaterOrEqual'},
}


def to_onnx(function: Callable, argument: jax.ShapeDtypeStruct, input_name: str, output_name: str) -> Any:
    """Traces a function of one array.

    Args:
        function: traced with `argument`; arrays that it holds become weights.
        argument: its dimensions are numbers or names of `jax.export.symbolic_shape`.
        input_name, output_name: of the graph.

    Returns:
        An `onnx.ModelProto`.

    Raises:
        ConfigError: a primitive has no counterpart here.
    """
    import onnx
    from onnx import helper

    closed = jax.make_jaxpr(function)(argument)
    graph = _Graph()
    for axis, dim in enumerate(argument.shape):
        if not _known(dim):
            shape = graph.add('Shape', input_name)
            graph.dims[str(dim)] = graph.add('Gather', shape, np.array([axis]), axis=0)
    (result,) = graph.run(closed.jaxpr, closed.consts, [input_name])
    graph.nodes.append(helper.make_node('Identity', [graph.name(result)], [output_name]))

    def described(name, aval):
        dims = [int(dim) if _known(dim) else str(dim) for dim in aval.shape]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(aval.dtype), dims)

    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            'ann',
            [described(input_name, argument)],
            [described(output_name, closed.out_avals[0])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid('', OPSET)],
        producer_name='ann_jax',
        ir_version=8,  # of that opset
    )
    onnx.checker.check_model(model)
    return model


def _known(dim):
    return isinstance(dim, int | np.integer)


class _Graph:
    """Nodes so far. A value is the name of a node's output, or a constant: an array of NumPy or jax."""

    def __init__(self):
        self.nodes, self.constants, self.dims = [], [], {}
        self._names, self._made = {}, {}

    def add(self, op: str, *inputs: Any, **attributes: Any) -> str:
        """Adds a node of one output, unless there is the same; returns the output's name."""
        from onnx import helper

        names = [self.name(each) for each in inputs]
        key = op, *names, str(attributes)
        if key not in self._made:
            self._made[key] = output = f'{op.lower()}_{len(self.nodes)}'
            self.nodes.append(helper.make_node(op, names, [output], **attributes))
        return self._made[key]

    def name(self, value: Any) -> str:
        """The name of a value; a constant becomes one of the graph's."""
        if isinstance(value, str):
            return value
        from onnx import numpy_helper

        array = np.asarray(value, order='C')
        key = (array.dtype, array.shape, array.tobytes()) if array.size <= 8 else id(value)
        if key not in self._names:
            name = f'constant_{len(self.constants)}'
            self.constants.append(numpy_helper.from_array(array, name))
            self._names[key] = name, value  # keeps it alive, and so its id
        return self._names[key][0]

    def dim(self, dim: Any) -> Any:
        """A dimension as a value (1,) int64."""
        text = str(dim)
        if text not in self.dims:
            self.dims[text] = self._evaluate(ast.parse(text.replace('^', '**'), mode='eval').body)
        return self.dims[text]

    def _evaluate(self, tree):
        match tree:
            case ast.Constant(value=number):
                return np.array([number])
            case ast.Name(id=name):
                return self.dims[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.add('Neg', self._evaluate(operand))
            case ast.Call(func=ast.Name(id=name), args=arguments):
                op = {'floordiv': 'Div', 'mod': 'Mod', 'max': 'Max', 'min': 'Min'}[name]
                return self.add(op, *map(self._evaluate, arguments))
            case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(count))):
                factors = [self._evaluate(left) for _ in range(count)]
                return functools.reduce(functools.partial(self.add, 'Mul'), factors)
            case ast.BinOp(left=left, op=op, right=right):
                name = {ast.Add: 'Add', ast.Sub: 'Sub', ast.Mult: 'Mul'}[type(op)]
                return self.add(name, self._evaluate(left), self._evaluate(right))
        raise ConfigError(f'ONNX cannot express the size {ast.unparse(tree)}')

    def shape(self, dims: Sequence[Any]) -> Any:
        """Dimensions as a value (n,) int64."""
        if all(map(_known, dims)):
            return np.array(dims, np.int64)
        return self.add('Concat', *(np.array([d]) if _known(d) else self.dim(d) for d in dims), axis=0)

    def reshape(self, x: Any, dims: Sequence[Any]) -> str:
        """x with other dimensions; one that is unknown need not be computed."""
        unknown = [not _known(dim) for dim in dims]
        if sum(unknown) == 1:
            dims = [-1 if free else dim for free, dim in zip(unknown, dims, strict=True)]
        return self.add('Reshape', x, self.shape(dims))

    def transpose(self, x: Any, order: Sequence[int]) -> Any:
        """x with its axes in another order."""
        if list(order) == list(range(len(order))):
            return x
        return self.add('Transpose', x, perm=list(order)) if isinstance(x, str) else np.transpose(x, order)

    def cast(self, x: Any, dtype: Any) -> Any:
        """x in another dtype."""
        from onnx import helper

        if not isinstance(x, str):
            return np.asarray(x).astype(dtype)
        return self.add('Cast', x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def run(self, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """The outputs of a jaxpr."""
        known = dict(zip(jaxpr.constvars, constants, strict=True)) | dict(
            zip(jaxpr.invars, inputs, strict=True)
        )
        read = lambda v: np.asarray(v.val, v.aval.dtype) if hasattr(v, 'val') else known[v]
        for equation in jaxpr.eqns:
            values = [read(v) for v in equation.invars]
            known.update(zip(equation.outvars, self._equation(equation, values), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, equation, values):
        name, params = equation.primitive.name, equation.params
        sizes = [dim for v in equation.outvars for dim in v.aval.shape]
        if name in SAME:
            return values
        if name in INSIDE:
            inside = params.get('jaxpr', params.get('call_jaxpr'))
            return self.run(getattr(inside, 'jaxpr', inside), getattr(inside, 'consts', ()), values)
        if not any(isinstance(value, str) for value in values) and all(map(_known, sizes)):
            if name != 'dim_as_value':
                result = equation.primitive.bind(*values, **params)
                return result if equation.primitive.multiple_results else [result]
        if name in SIMPLE:
            return [self.add(SIMPLE[name], *values)]
        if (rule := globals().get(f'_{name}')) is None:
            raise ConfigError(
                f'ONNX has no counterpart here of jax.lax.{name}: leave onnx out of export.formats'
            )
        return [rule(self, equation, *values)]


# Rules: (graph, equation, *values) -> value.


def _dim_as_value(graph, equation):
    return graph.cast(graph.add('Squeeze', graph.dim(equation.params['dim'])), equation.outvars[0].aval.dtype)


def _convert_element_type(graph, equation, x):
    return graph.cast(x, equation.params['new_dtype'])


def _ne(graph, equation, x, y):
    return graph.add('Not', graph.add('Equal', x, y))


def _rem(graph, equation, x, y):
    return graph.add('Mod', x, y, fmod=1)  # with the sign of x


def _square(graph, equation, x):
    return graph.add('Mul', x, x)


def _integer_pow(graph, equation, x):
    return graph.add('Pow', x, np.asarray(equation.params['y'], equation.outvars[0].aval.dtype))


def _rsqrt(graph, equation, x):
    return graph.add('Reciprocal', graph.add('Sqrt', x))


def _clamp(graph, equation, low, x, high):
    return graph.add('Min', graph.add('Max', x, low), high)


def _select_n(graph, equation, which, *cases):
    return graph.add('Where', which, cases[1], cases[0])


def _reshape(graph, equation, x):
    return graph.reshape(x, equation.outvars[0].aval.shape)


_squeeze = _expand_dims = _reshape


def _broadcast_in_dim(graph, equation, x):
    shape, axes = equation.params['shape'], equation.params['broadcast_dimensions']
    given = equation.invars[0].aval.shape
    dims = [1] * len(shape)
    for axis, dim in zip(axes, given, strict=True):
        dims[axis] = dim
    if len(dims) != len(given):
        x = graph.reshape(x, dims)
    return x if dims == list(shape) else graph.add('Expand', x, graph.shape(shape))


def _iota(graph, equation):
    shape, axis = equation.outvars[0].aval.shape, equation.params['dimension']
    count = graph.add('Squeeze', graph.dim(shape[axis]))
    x = graph.cast(graph.add('Range', np.array(0), count, np.array(1)), equation.outvars[0].aval.dtype)
    if len(shape) == 1:
        return x
    x = graph.reshape(x, [dim if i == axis else 1 for i, dim in enumerate(shape)])
    return graph.add('Expand', x, graph.shape(shape))


def _concatenate(graph, equation, *parts):
    return graph.add('Concat', *parts, axis=equation.params['dimension'])


def _stack(graph, equation, *parts):
    axis = equation.params['axis']
    return graph.add('Concat', *(graph.add('Unsqueeze', x, np.array([axis])) for x in parts), axis=axis)


def _transpose(graph, equation, x):
    return graph.transpose(x, equation.params['permutation'])


def _slice(graph, equation, x):
    shape, p = equation.invars[0].aval.shape, equation.params
    ends = [END if end == dim else end for end, dim in zip(p['limit_indices'], shape, strict=True)]
    steps = p['strides'] or [1] * len(shape)
    axes = [i for i in range(len(shape)) if (p['start_indices'][i], ends[i], steps[i]) != (0, END, 1)]
    if not axes:
        return x
    part = lambda each: graph.shape([each[i] for i in axes])
    return graph.add('Slice', x, part(p['start_indices']), part(ends), np.array(axes), part(steps))


def _pad(graph, equation, x, value):
    low, high, inside = zip(*equation.params['padding_config'], strict=True)
    if any(inside):
        raise ConfigError('ONNX cannot pad between pixels: leave onnx out of export.formats')
    return graph.add('Pad', x, graph.shape([*low, *high]), value)


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


def _reduce_sum(graph, equation, x):
    return graph.add('ReduceSum', x, np.array(equation.params['axes']), keepdims=0)


def _reduce_max(graph, equation, x):
    return graph.add('ReduceMax', x, axes=list(equation.params['axes']), keepdims=0)


def _argmax(graph, equation, x):
    (axis,) = equation.params['axes']
    return graph.cast(graph.add('ArgMax', x, axis=axis, keepdims=0), equation.params['index_dtype'])


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
