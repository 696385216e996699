"""Files of the user: only regular ones are read, and each is written beside its place and renamed.

A path may lie in a bucket, see `buckets`: what is written there is made on this machine and copied whole.
"""

import contextlib
import csv
import io
import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ann_jax.buckets import copies, paths
from ann_jax.buckets.reasons import BucketError, explained
from ann_jax.buckets.services import remote
from ann_jax.errors import ConfigError, DataError, SaveError

_KINDS = {
    stat.S_IFDIR: 'a folder',
    stat.S_IFIFO: 'a pipe',
    stat.S_IFSOCK: 'a socket',
    stat.S_IFCHR: 'a device',
    stat.S_IFBLK: 'a device',
}


def refuse_special(path: str | os.PathLike, kind: str) -> None:
    """Refuses what is there but is no file: reading a pipe waits for its writer, and a device may never end.

    Args:
        path: of the file; a link to a regular file is one, and what does not exist is left to `open`.
        kind: what it should be, such as 'image', for the error.

    Raises:
        DataError: it is a folder, a pipe, a socket or a device.
    """
    if what := special(path):
        raise DataError(f'cannot read the {kind} {path}: it is {what}, not a file; save it as a file')


def special(path: str | os.PathLike) -> str:
    """What the path is if it is no regular file, such as 'a pipe'; '' for files and for nothing."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return ''
    return '' if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), 'a special file')


@contextlib.contextmanager
def writing(path: str | os.PathLike, *others: type[Exception]) -> Iterator[None]:
    """Turns errors of the file system into a `SaveError` that says what to do.

    Args:
        path: what is written.
        others: what the library that writes raises in place of an `OSError`.

    Raises:
        SaveError: the disk is full, a permission is missing, or the folder is read-only.
    """
    try:
        yield
    except Exception as raised:
        # Of several paths, one within the other, the last is what the user asked for.
        error = raised.__cause__ if isinstance(raised, SaveError) and raised.__cause__ else raised
        if not isinstance(error, (OSError, *others)):
            raise
        if isinstance(error, BucketError) or (remote(path) and isinstance(error, OSError)):
            raise SaveError(
                f'cannot write {path}: {explained(error)}; what was written before is intact'
            ) from error
        reason = getattr(error, 'strerror', None) or ' '.join(str(error).split())[:300]
        if isinstance(error, (FileExistsError, NotADirectoryError)):  # a file in place of a folder
            raise SaveError(
                f'cannot write {path}: a file lies where a folder is needed; name another folder, or move '
                'the file away'
            ) from error
        raise SaveError(
            f'cannot write {path}: {reason}. Free space or make {path} writable, then run '
            'the same again; what was written before is intact'
        ) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Writes a file completely or not at all, in folders that are made where they are missing.

    Yields:
        Path beside it, with the same ending, to be written in the `with` block, which renames or removes it.

    Raises:
        SaveError: it cannot be written; a file that was there is as it was.
    """
    if remote(path):
        target = paths.place(path)
        with writing(path), tempfile.TemporaryDirectory(prefix='ann_jax_') as folder:
            draft = Path(folder, f'draft{target.suffix}')
            yield draft
            copies.upload(draft, target)
        return
    place = Path(os.path.realpath(path))  # through links, which stay
    if what := special(place):
        raise SaveError(f'cannot write {path}: it is {what}, not a file; choose another name')
    with writing(path):
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f'.partial-{uuid.uuid4().hex[:12]}{place.suffix}')
        try:
            yield draft
            draft.replace(place)
        finally:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)


@contextlib.contextmanager
def making(folder: Path, last: str) -> Iterator[Path]:
    """Makes a folder of files completely or not at all.

    Args:
        folder: must not exist.
        last: name of the file that marks the folder as complete, which a bucket gets at the end.

    Yields:
        A folder, to be filled in the `with` block, which takes the place of `folder` or is removed.

    Raises:
        ConfigError: the folder exists.
        SaveError: it cannot be written.
    """
    if folder.exists():
        raise ConfigError(f'{folder} exists: name a new folder, or remove it first')
    with writing(folder):
        if remote(folder):
            with tempfile.TemporaryDirectory(prefix='ann_jax_') as made:
                yield Path(made)
                copies.upload_folder(Path(made), folder, last)
            return
        draft = folder.with_name(f'.{folder.name}.partial-{uuid.uuid4().hex[:12]}')
        try:
            draft.mkdir(parents=True)
            yield draft
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Makes a folder where it is missing; in a bucket there are none.

    Raises:
        SaveError: it cannot be made.
    """
    if not remote(folder):
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)


def modified(file: Path) -> float:
    """When a file was last written, in seconds since 1970."""
    facts: Any = file.stat()
    return facts.mtime if remote(file) else facts.st_mtime


def move(folder: Path, target: Path) -> None:
    """Renames a folder; in a bucket, it is copied and then removed.

    Raises:
        OSError: it cannot be done.
    """
    if remote(folder):
        copies.move(folder, target)
    else:
        folder.rename(target)


def write_json(path: Path, record: Mapping, indent: int | None = 2) -> None:
    """Replaces a file of JSON.

    Raises:
        SaveError: see `replacing`.
    """
    with replacing(path) as draft:
        draft.write_text(json.dumps(record, indent=indent) + '\n', encoding='utf-8')


def write_csv(path: str | os.PathLike, heads: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Replaces a file of comma-separated values.

    Raises:
        SaveError: see `replacing`.
    """
    text = io.StringIO(newline='')
    csv.writer(text, lineterminator='\n').writerows([heads, *rows])
    with replacing(path) as draft:
        draft.write_text(text.getvalue(), encoding='utf-8', newline='\n')
