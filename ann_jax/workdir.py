"""A run's hold on its folder: a lock against a second run, and a log that tells a stranger what happened."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ann_jax.errors import ConfigError, SaveError

logger = logging.getLogger(__name__)
_file_only = logging.getLogger('ann_jax_file')
_file_only.propagate = False
_file_only.setLevel(logging.INFO)
_file_only.addHandler(logging.NullHandler())


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Holds the folder for one run; the system lets go of it when the process ends, however it ends.

    Raises:
        ConfigError: another run holds it.
        SaveError: the folder cannot be written.
    """
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        # Opened without truncation: what it holds is the other run's.
        file = open(workdir / 'lock', 'a+')  # noqa: SIM115
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                logger.warning('%s cannot be locked (%s): start no second run in it', workdir, error)
            else:
                file.seek(0)
                raise ConfigError(
                    f'{workdir} is in use by another run ({file.read().strip() or "unknown"}): '
                    'wait for it, stop it, or use another --workdir'
                ) from error
        with writing(workdir):
            file.truncate(0)
            file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
            file.flush()
        yield


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


@contextlib.contextmanager
def log_file(workdir: Path, index: int = 0) -> Iterator[None]:
    """Appends what the package logs to log.txt; process `index` of several to log-<index>.txt.

    Raises:
        SaveError: the folder cannot be written.
    """
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        handler = _Quiet(workdir / (f'log-{index}.txt' if index else 'log.txt'))
    handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(message)s'))
    package = logging.getLogger('ann_jax')
    level = package.level
    package.setLevel(logging.INFO)
    for each in (package, _file_only):
        each.addHandler(handler)
    try:
        yield
    except BaseException as error:
        logger.error('ended by %s: %s', type(error).__name__, error)
        raise
    finally:
        for each in (package, _file_only):
            each.removeHandler(handler)
        package.setLevel(level)
        with contextlib.suppress(OSError):
            handler.close()


def note(text: str, *values: object) -> None:
    """Logs what is too long for a screen, to the file alone."""
    _file_only.info(text, *values)


class _Quiet(logging.FileHandler):
    """A log that a full disk cuts short, without a traceback for each line."""

    def handleError(self, record):  # noqa: N802
        pass
