"""The log file of a run."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from ann_jax.buckets.copies import Growing
from ann_jax.buckets.services import remote
from ann_jax.files import make_folder, writing

_file_only = logging.getLogger('ann_jax_file')
_file_only.propagate = False
_file_only.setLevel(logging.INFO)
_file_only.addHandler(logging.NullHandler())


@contextlib.contextmanager
def log_file(workdir: Path, index: int = 0) -> Iterator[None]:
    """Appends the package's log to log.txt, or to log-<index>.txt for processes other than 0.

    In a bucket, every half minute and at the end.

    Raises:
        SaveError: the folder cannot be written.
    """
    name = f'log-{index}.txt' if index else 'log.txt'
    make_folder(workdir)
    with writing(workdir):
        growing = Growing(workdir, name) if remote(workdir) else None
        handler = _Quiet((growing.folder if growing else workdir) / name, encoding='utf-8')
    handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(message)s'))
    package = logging.getLogger('ann_jax')
    level = package.level
    package.setLevel(logging.INFO)
    for each in (package, _file_only):
        each.addHandler(handler)
    try:
        yield
    except BaseException as error:
        _file_only.error('ended by %s: %s', type(error).__name__, error)  # who catches it tells the user
        raise
    finally:
        for each in (package, _file_only):
            each.removeHandler(handler)
        package.setLevel(level)
        with contextlib.suppress(OSError):
            handler.close()
        if growing:
            with contextlib.suppress(OSError):
                growing.close()


def note(text: str, *values: object) -> None:
    """Logs to the file only, for text that is too long for a terminal."""
    _file_only.info(text, *values)


class _Quiet(logging.FileHandler):
    """A log file that a full disk cuts short, without a traceback per line."""

    def handleError(self, record):  # noqa: N802
        pass


def hide_late_calls() -> None:
    """Keeps tensorstore from printing a traceback per array after orbax gave up saving.

    It calls back into a loop that is closed, from C++, where nobody can catch it. Other errors are printed.
    """
    before = sys.unraisablehook
    if getattr(before, '__name__', '') == 'print_others':
        return

    def print_others(lost):
        late = isinstance(lost.exc_value, RuntimeError) and str(lost.exc_value) == 'Event loop is closed'
        if not late or lost.object is not None:
            before(lost)

    sys.unraisablehook = print_others
