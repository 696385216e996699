"""Locks the working directory, so that no second run writes to it.

On this machine by the file system, which releases the lock with the process. A bucket cannot know that a
process is gone: there the lock is an object that its holder writes again and again, on the condition that it
is still the one written before. If it has not been written for a while, another run may take it over.
"""

import contextlib
import errno
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from ann_jax.buckets import conditional
from ann_jax.buckets.reasons import BucketError
from ann_jax.buckets.services import remote
from ann_jax.errors import ConfigError, SaveError
from ann_jax.files import writing

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]  # Windows has none

logger = logging.getLogger(__name__)

# Of a lock in a bucket: the seconds between writes, and after which it may be taken over. The other processes
# of a run wait meanwhile, on CPUs for at most 30 s.
RENEWED, GONE = 5.0, 20.0


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[Callable[[], None]]:
    """Locks the folder for one run; the lock is released when the process ends, however it ends.

    If the platform or the file system cannot lock files, this only logs a warning. In a bucket, the lock of a
    process that was killed is waited for, `GONE` seconds, unless it ran on this machine.

    Yields:
        A function that raises a SaveError if another run took the lock over, which can happen in a bucket to
        a process that was suspended or cut off.

    Raises:
        ConfigError: another run has locked it.
        SaveError: the folder cannot be written.
    """
    if remote(workdir):
        with _lease(workdir) as check:
            yield check
        return
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
                raise _in_use(workdir, file.read().decode()) from error
        with writing(workdir):
            file.truncate(0)
            file.write(f'{_name()}\n'.encode())
        yield lambda: None


def _in_use(workdir, holder):
    return ConfigError(
        f'{workdir} is in use by another run ({holder.partition(chr(10))[0].strip() or "unknown"}): '
        'wait for it, stop it, or use another --workdir'
    )


def _name():
    return f'process {os.getpid()} on {socket.gethostname()}'


# --- In a bucket


@contextlib.contextmanager
def _lease(workdir):
    path = workdir / 'lock'
    with writing(workdir):
        lease = _Lease(path, *_take(workdir, path))
        if not lease.holds():
            logger.warning(
                '%s cannot be locked (its storage ignores conditions on writing): do not start a second run '
                'in it',
                workdir,
            )  # fmt: skip
    thread = threading.Thread(target=lease.renew, daemon=True)
    thread.start()
    try:
        yield lease.check
    finally:
        lease.end.set()
        thread.join()
        with contextlib.suppress(BucketError):
            conditional.remove_if(path, lease.generation)


def _take(workdir, path):
    """Writes the lock if nobody holds it; returns its text and generation."""
    text = f'{_name()}\n{_machine()}\n{uuid.uuid4().hex}\n'
    holder, generation = conditional.read(path)
    if holder and not _is_dead(holder):
        name = holder.partition('\n')[0]
        logger.info('%s: waiting up to %.0f s to see whether %s still runs', path, GONE, name)
        until = time.monotonic() + GONE
        while time.monotonic() < until:
            time.sleep(min(1, GONE / 10))
            if (now := conditional.read(path)) != (holder, generation):
                if now[0]:
                    raise _in_use(workdir, now[0])
                generation = 0  # it has ended
                break
    try:
        return text, conditional.write_if(path, text, generation)
    except conditional.Changed:
        raise _in_use(workdir, conditional.read(path)[0]) from None


class _Lease:
    """A lock that is held as long as it is renewed."""

    def __init__(self, path, text, generation):
        self._path, self._text, self._lost = path, text, False
        self.generation, self.end = generation, threading.Event()

    def holds(self):
        """Whether the bucket refuses to write the lock as if it were not there."""
        try:
            self.generation = conditional.write_if(self._path, f'{self._text}0\n', 0)
        except conditional.Changed:
            return True
        return False

    def renew(self):
        number = 1  # for the version of an object may be that of its text
        while not self.end.wait(RENEWED):
            try:
                text = f'{self._text}{number}\n'
                self.generation = conditional.write_if(self._path, text, self.generation)
                number += 1
            except conditional.Changed:
                self._lost = True
                logger.error('%s was taken over: this run ends at its next checkpoint', self._path)
                return
            except BucketError as error:
                logger.warning('%s cannot be renewed: %s', self._path, error)

    def check(self):
        if self._lost:
            with writing(self._path):
                holder = conditional.read(self._path)[0].partition('\n')[0]
            raise SaveError(
                f'{self._path.parent} was taken over by another run ({holder or "gone"}) while this one did '
                'not answer: nothing more is written to it; stop the other one before you resume here'
            )


def _machine():
    """Of the machine or container in which a number means one process; '' where it is unknown."""
    with contextlib.suppress(OSError):
        boot = Path('/proc/sys/kernel/random/boot_id').read_text(encoding='utf-8').strip()
        return f'{boot} {os.readlink("/proc/self/ns/pid")}'
    return ''


def _is_dead(holder):
    """Whether the process that wrote a lock ran on this machine and is gone."""
    name, _, rest = holder.partition('\n')
    machine = rest.partition('\n')[0]
    if not machine or machine != _machine():
        return False
    try:
        os.kill(int(name.split()[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, IndexError):
        pass
    return False
