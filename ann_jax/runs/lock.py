"""Locks the working directory, so that no second run writes to it."""

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ann_jax.errors import ConfigError
from ann_jax.files import writing

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]  # Windows has none

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Locks the folder for one run; the lock is released when the process ends, however it ends.

    If the platform or the file system cannot lock files, this only logs a warning.

    Raises:
        ConfigError: another run has locked it.
        SaveError: the folder cannot be written.
    """
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        # Not truncated yet: another run may have written its name. Without a buffer, which a full disk would
        # leave to be written on closing.
        file = open(workdir / 'lock', 'a+b', buffering=0)  # noqa: SIM115
    with file:
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                logger.warning('%s cannot be locked (%s): do not start a second run in it', workdir, error)
            else:
                file.seek(0)
                raise ConfigError(
                    f'{workdir} is in use by another run ({file.read().decode().strip() or "unknown"}): '
                    'wait for it, stop it, or use another --workdir'
                ) from error
        with writing(workdir):
            file.truncate(0)
            file.write(f'process {os.getpid()} on {socket.gethostname()}\n'.encode())
        yield
