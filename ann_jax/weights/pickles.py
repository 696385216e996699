"""Reads a pickle without running any code that it names.

A pickle is a program for a stack machine. This machine creates numbers, strings, containers and NumPy arrays
itself, and calls only the functions it is given. Any other class or function that a file names becomes an
`Unread`, which has a name and does nothing; those that could do harm are refused.
"""

import builtins
import math
import pickletools
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from ann_jax.errors import DataError

# Opcodes that push their argument.
_VALUES = {
    *('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT'),
    *('STRING', 'BINSTRING', 'SHORT_BINSTRING', 'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8'),
    *('UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8'),
}
# Standard modules whose objects are data; others give access to files, processes and the interpreter.
_DATA_MODULES = {
    *('argparse', 'collections', 'copyreg', 'datetime', 'decimal', 'enum', 'fractions', 'pathlib', 'random'),
    *('typing', 'uuid'),
}
# Python 2's names of modules and of types.
_RENAMED = {'__builtin__': 'builtins', 'copy_reg': 'copyreg', 'cPickle': 'pickle', 'commands': 'subprocess'}
_OLD_TYPES = {'unicode', 'long', 'basestring', 'xrange'}


class Unread:
    """Stands for an object that is not created.

    Attributes:
        name: of its class, or of the function that creates it, with the module.
    """

    __slots__ = ('name',)

    def __init__(self, name: str):
        self.name = name


class Budget:
    """Limits the memory that a file may claim; a small pickle can ask for any amount."""

    def __init__(self, size: int):
        """Allows a multiple of the size of the file, in bytes."""
        self._left = 4 * size + 2**24

    def spend(self, amount: int) -> None:
        """Adds a claim.

        Raises:
            ValueError: the claims exceed what the file can need.
        """
        self._left -= amount
        if self._left < 0:
            raise ValueError('it claims far more memory than it has bytes')


def load(
    file: BinaryIO,
    budget: Budget,
    functions: Mapping[str, Callable] | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads one pickle, and leaves the file at its end.

    Args:
        file: with `read`, `readline` and `tell`.
        budget: of the whole file.
        functions: 'module.name' -> the function that is called in its place.
        persistent: persistent id -> object.

    Raises:
        DataError: the pickle names something that could run arbitrary code.
        Exception: of any kind, if it is damaged.
    """
    functions = {**_PLAIN, **(functions or {})}
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    value: Any  # each opcode has its own type of argument

    def above_mark():
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def call(function, arguments):
        name = function.name  # anything but an `Unread` cannot be called
        if name not in functions:
            return Unread(name)
        # Functions copy: a short pickle can pass the same long list to many.
        budget.spend(sum(len(a) for a in arguments if isinstance(a, str | bytes | list | tuple | dict | set)))
        return functions[name](*arguments)

    for opcode, value, _ in pickletools.genops(file):
        match opcode.name:
            case name if name in _VALUES:
                stack.append(value)
            case 'PROTO' | 'FRAME' | 'STOP':
                pass
            case 'NONE':
                stack.append(None)
            case 'NEWTRUE':
                stack.append(True)
            case 'NEWFALSE':
                stack.append(False)
            case 'BINPUT' | 'LONG_BINPUT' | 'PUT':
                memo[value] = stack[-1]
            case 'MEMOIZE':
                memo[len(memo)] = stack[-1]
            case 'BINGET' | 'LONG_BINGET' | 'GET':
                stack.append(memo[value])
            case 'MARK':
                marks.append(len(stack))
            case 'EMPTY_TUPLE':
                stack.append(())
            case 'TUPLE1' | 'TUPLE2' | 'TUPLE3' as name:
                size = int(name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case 'TUPLE':
                stack.append(tuple(above_mark()))
            case 'EMPTY_LIST':
                stack.append([])
            case 'LIST':
                stack.append(above_mark())
            case 'APPEND':
                item = stack.pop()
                _add(stack[-1], [item])
            case 'APPENDS' | 'ADDITEMS':
                items = above_mark()
                _add(stack[-1], items)
            case 'EMPTY_SET':
                stack.append(set())
            case 'FROZENSET':
                stack.append(_set(above_mark()))
            case 'EMPTY_DICT':
                stack.append({})
            case 'DICT':
                items = above_mark()
                stack.append(_dict(zip(items[::2], items[1::2], strict=True)))
            case 'SETITEM':
                value, key = stack.pop(), stack.pop()
                _put(stack[-1], [(key, value)])
            case 'SETITEMS':
                items = above_mark()
                _put(stack[-1], zip(items[::2], items[1::2], strict=True))
            case 'GLOBAL':
                module, attribute = value.split(' ', 1)
                stack.append(_named(module, attribute, functions))
            case 'STACK_GLOBAL':
                attribute, module = stack.pop(), stack.pop()
                stack.append(_named(module, attribute, functions))
            case 'REDUCE' | 'NEWOBJ':
                arguments = stack.pop()
                stack[-1] = call(stack[-1], arguments)
            case 'NEWOBJ_EX':
                del stack[-2:]
                stack[-1] = Unread(stack[-1].name)
            case 'BUILD':
                state = stack.pop()
                _build(stack[-1], state, budget)
            case 'BINPERSID' if persistent:
                stack[-1] = persistent(stack[-1])
            case 'POP':
                stack.pop()
            case name:
                raise ValueError(f'its pickle has the opcode {name}')
    return stack.pop()


def _named(module, name, functions):
    """Returns a stand-in for a class or a function."""
    first, *rest = module.split('.')
    module = '.'.join([_RENAMED.get(first, first), *rest])
    full, root = f'{module}.{name}', module.split('.')[0]
    if root == 'builtins':
        harmless = isinstance(getattr(builtins, name, None), type) or name in (*_OLD_TYPES, 'getattr')
    else:
        harmless = root in _DATA_MODULES or root not in sys.stdlib_module_names
    if not harmless and full not in functions:
        raise DataError(
            f'refused, because it uses {full}, which could run arbitrary code; if you trust it, load it '
            'where it was created, and save only its state dict'
        )
    return Unread(full)


def _key(key):
    """Returns a key that is safe to hash: hashing a deeply nested tuple crashes the process."""
    plain = (str, bytes, int, float, type(None))
    if isinstance(key, (*plain, Unread)) or isinstance(key, tuple) and all(isinstance(k, plain) for k in key):
        return key
    return Unread(f'builtins.{type(key).__name__}')


def _put(target, pairs):
    if isinstance(target, dict):
        target.update((_key(key), value) for key, value in pairs)
    elif not isinstance(target, Unread):
        raise ValueError(f'its pickle sets items of a {type(target).__name__}')


def _add(target, items):
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, set):
        target.update(map(_key, items))
    elif not isinstance(target, Unread):
        raise ValueError(f'its pickle appends to a {type(target).__name__}')


def _dict(pairs=()):
    return {_key(key): value for key, value in (pairs.items() if isinstance(pairs, dict) else pairs)}


def _set(items=()):
    return set(map(_key, items))


def _build(target, state, budget):
    """Sets the state of an object; only NumPy's need it."""
    if isinstance(target, np.dtype):
        if state[1] not in ('<', '>', '=', '|'):
            raise ValueError(f'its pickle has a byte order {state[1]!r}')
        state = (3, state[1], None, None, None, -1, -1, 0)
        target.__setstate__(state)  # type: ignore[attr-defined]  # NumPy's stubs lack it
    elif isinstance(target, np.ndarray):
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, np.dtype) or isinstance(raw, list):
            return  # an array of objects: stays empty
        raw = _bytes(raw)
        whole = all(isinstance(n, int) and n >= 0 for n in shape)
        if not whole or math.prod(shape) * dtype.itemsize != len(raw):
            raise ValueError(f'its pickle has {len(raw)} bytes for an array of shape {shape}')
        budget.spend(len(raw))
        state = (1, shape, dtype, bool(fortran), raw)
        target.__setstate__(state)


def _bytes(raw):
    return raw.encode('latin1') if isinstance(raw, str) else raw  # Python 2 wrote bytes as text


def _encode(text, encoding='latin1'):
    if encoding not in ('latin1', 'latin-1'):
        raise ValueError(f'its pickle encodes bytes as {encoding}')
    return text.encode('latin1')


def _dtype(code, *_):
    """Creates a new object each time, because its state is set later."""
    return np.dtype(code, False, True) if re.fullmatch(r'[biufc]\d{1,2}', code) else Unread('numpy.dtype')


def _scalar(dtype, raw):
    return np.frombuffer(_bytes(raw), dtype, 1)[0] if isinstance(dtype, np.dtype) else Unread('numpy.generic')


def _array(raw, dtype, shape, order):
    if not isinstance(dtype, np.dtype):
        return Unread('numpy.ndarray')
    return np.frombuffer(raw, dtype).reshape(shape, order=order)


# Containers and NumPy's objects: 'module.name' -> the function that creates one.
_PLAIN: dict[str, Callable[..., Any]] = {
    'collections.OrderedDict': _dict,
    'collections.Counter': _dict,
    'collections.defaultdict': lambda _=None, pairs=(): _dict(pairs),
    'builtins.set': _set,
    'builtins.frozenset': _set,
    'builtins.bytes': lambda: b'',
    '_codecs.encode': _encode,
    'numpy.dtype': _dtype,
}
for _core in ('numpy.core', 'numpy._core'):
    _PLAIN[f'{_core}.multiarray._reconstruct'] = lambda *_: np.empty(0)
    _PLAIN[f'{_core}.multiarray.scalar'] = _scalar
    _PLAIN[f'{_core}.numeric._frombuffer'] = _array
