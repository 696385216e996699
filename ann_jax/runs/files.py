"""Writing files of a run: errors that say what to do, and replacing a file at once."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from ann_jax.errors import SaveError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an error of the file system into one that says what to do.

    Raises:
        SaveError: a full disk, a missing right, a read-only folder.
    """
    try:
        yield
    except OSError as error:
        name = error.filename or path
        raise SaveError(
            f'cannot write {name}: {error.strerror or error}. Free space, or make {path} writable, '
            'and give the same command again; checkpoints written before are whole'
        ) from error


def write_json(path: Path, record: Mapping) -> None:
    """Replaces a file at once, so that a reader never sees half of it."""
    partial = path.with_suffix('.partial')
    partial.write_text(json.dumps(record, indent=2) + '\n', encoding='utf-8')
    partial.replace(path)
