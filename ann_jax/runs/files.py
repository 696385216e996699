"""Writing the files of a run: errors with a cure, and atomic replacement."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from ann_jax.errors import SaveError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns errors of the file system into a `SaveError` that says what to do.

    Raises:
        SaveError: the disk is full, a permission is missing, or the folder is read-only.
    """
    try:
        yield
    except OSError as error:
        name = error.filename or path
        raise SaveError(
            f'cannot write {name}: {error.strerror or error}. Free space or make {path} writable, '
            'then run the same command again; earlier checkpoints are intact'
        ) from error


def write_json(path: Path, record: Mapping) -> None:
    """Replaces a file atomically, so that a reader never sees half of it."""
    partial = path.with_suffix('.partial')
    partial.write_text(json.dumps(record, indent=2) + '\n', encoding='utf-8')
    partial.replace(path)
