"""Reads files, and imports the libraries that only some of them need; errors are `DataError`s with a cure."""

import importlib
import os
from types import ModuleType

from ann_jax.errors import DataError


def read_file(path: str | os.PathLike, kind: str) -> bytes:
    """Returns the bytes of a file.

    Raises:
        DataError: it does not exist or cannot be read.
    """
    try:
        with open(path, 'rb') as file:
            return file.read()
    except OSError as e:
        raise DataError(f'cannot read the {kind} {path}: {e}; copy or download the file again') from e


def optional(module: str, where: object) -> ModuleType:
    """Imports a module that only some datasets need.

    Raises:
        DataError: it is not installed.
    """
    try:
        found = importlib.import_module(module)
        # It logs a failed import and carries on without its contents.
        if module == 'tensorflow_datasets' and not hasattr(found, 'core'):
            raise ImportError('one of its dependencies is missing, see above')
        return found
    except ImportError as e:
        package = module.split('.')[0].replace('_', '-')
        if package == 'tensorflow-datasets':
            package += ' array_record importlib_resources'  # it imports them, but does not declare them
        raise DataError(f'{where} needs {module} ({e}): pip install {package}') from e
