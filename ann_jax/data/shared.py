"""Shared memory of data workers, named after their run, so that what a killed run left is known and removed.

/dev/shm/ann_jax-<run>.lock       locked by the run; the system unlocks it however the run ends
/dev/shm/ann_jax-<run>-*          batches on their way
/dev/shm/sem.ann_jax-<run>-*      semaphores
"""

import atexit
import contextlib
import logging
import multiprocessing
import re
import uuid
from multiprocessing import shared_memory
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, which removes segments itself
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

FOLDER = Path('/dev/shm')
_NAME = re.compile(r'(?:sem\.)?ann_jax-([0-9a-f]{12})(?:\.lock|-\w+)')
_held: dict[Path, tuple[str, IO[bytes]]] = {}  # folder -> the name of this process in it, and its open lock


def claim(folder: Path = FOLDER) -> str:
    """Removes what killed runs left, and returns the name of this run for `name_segments`; '' where there is
    no such folder or no room in it.
    """
    if fcntl is None or not folder.is_dir():
        return ''
    with contextlib.suppress(OSError):
        if folder not in _held:
            _held[folder] = _lock(folder)
        _remove_left(folder)
    return _held[folder][0] if folder in _held else ''


def _lock(folder):
    name = uuid.uuid4().hex[:12]
    # Locked before it has its name, for another run removes what is not locked.
    draft = folder / f'.ann_jax-{name}'
    opened = open(draft, 'xb', buffering=0)  # noqa: SIM115
    fcntl.flock(opened, fcntl.LOCK_EX)
    lock = draft.rename(folder / f'ann_jax-{name}.lock')
    atexit.register(lock.unlink, missing_ok=True)
    with contextlib.suppress(AttributeError):  # not public: where it is gone, semaphores have Python's names
        multiprocessing.current_process()._config['semprefix'] = f'/ann_jax-{name}'  # type: ignore[attr-defined]
    return name, opened


def _remove_left(folder):
    count = size = 0
    files: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        if match := _NAME.fullmatch(path.name):
            files.setdefault(match[1], []).append(path)
    for name, paths in files.items():
        if name != _held[folder][0] and not _lives(folder / f'ann_jax-{name}.lock'):
            for path in paths:
                with contextlib.suppress(OSError):  # another user's, or another run removes it too
                    bytes_there = path.stat().st_size
                    path.unlink()
                    if path.suffix != '.lock':
                        count, size = count + 1, size + bytes_there
    if count:
        logger.info('%s: removed %d files (%.1f MiB) that killed runs left', folder, count, size / 2**20)


def _lives(lock):
    """Whether the run of a lock goes on, even in another container; yes where this cannot be told."""
    try:
        opened = open(lock, 'r+b', buffering=0)  # noqa: SIM115
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        opened.close()


def name_segments(run: str) -> None:
    """Names the segments that this process creates after a run; '' leaves Python's names."""
    if run:
        _Segment.run = run
        shared_memory.SharedMemory = _Segment  # type: ignore[misc]


class _Segment(shared_memory.SharedMemory):
    run = ''

    def __init__(self, name=None, create=False, size=0, **options):
        if create and name is None:
            name = f'ann_jax-{self.run}-{uuid.uuid4().hex[:16]}'
        super().__init__(name, create, size, **options)
