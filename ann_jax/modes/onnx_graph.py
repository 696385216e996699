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
from ann_jax.modes.onnx_rules import RULES

OPSET = 17

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
    # TensorRT does not take the shape of uint8.
    sized = input_name if argument.dtype != np.uint8 else graph.cast(input_name, np.float32)
    for axis, dim in enumerate(argument.shape):
        if not _known(dim):
            shape = graph.add('Shape', sized)
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
        if (rule := RULES.get(name)) is None:
            raise ConfigError(
                f'ONNX has no counterpart here of jax.lax.{name}: leave onnx out of export.formats'
            )
        return [rule(self, equation, *values)]
