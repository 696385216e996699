"""Folders and text files as systems and people leave them: what is hidden, and in which encoding they are."""

import codecs
import os
from collections.abc import Iterator
from pathlib import Path

from ann_jax.data.decode.reading import read_file
from ann_jax.errors import DataError

# What systems, cameras and network drives leave in folders, in lower case; see also `hidden`.
_SYSTEM = {
    '__macosx',
    '__pycache__',
    '@eadir',
    '@recycle',
    '@recently-snapshot',
    '@tmp',
    '#recycle',
    '#snapshot',
    '$recycle.bin',
    'recycler',
    'system volume information',
    'lost+found',
    'thumbs.db',
    'ehthumbs.db',
    'desktop.ini',
}


def hidden(name: str) -> bool:
    """Whether the name of a file or folder says that it is hidden, or the system's and not the user's."""
    return name.startswith(('.', '~$')) or name.casefold() in _SYSTEM


def walk(top: str | os.PathLike) -> Iterator[tuple[str, list[str]]]:
    """Yields each folder from `top` down and the names of its files, in order and without hidden ones.

    Links are followed, except to a folder that they lie in.
    """
    start = os.fspath(top)
    resolved = Path(os.path.realpath(start))
    around = {start: {str(path) for path in (resolved, *resolved.parents)}}  # folder -> what it lies in
    for where, folders, names in os.walk(start, followlinks=True):
        inside = around.pop(where)
        kept = []
        for name in sorted(folders):
            path = os.path.join(where, name)
            real = os.path.realpath(path)
            if not hidden(name) and real not in inside:
                around[path] = inside | {real}
                kept.append(name)
        folders[:] = kept
        yield where, sorted(name for name in names if not hidden(name))


def text_of(path: str | os.PathLike, kind: str) -> str:
    """Returns the text of a file, which is UTF-8 or UTF-16, with or without a byte order mark.

    Raises:
        DataError: it cannot be read, or is neither.
    """
    data = read_file(path, kind)
    encoding = 'utf-8-sig'
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = 'utf-16'
    elif b'\0' in data[:2]:
        encoding = 'utf-16-be' if data[:1] == b'\0' else 'utf-16-le'
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as e:
        raise DataError(f'cannot read the {kind} {path}: {e}; save it as UTF-8 text') from e
