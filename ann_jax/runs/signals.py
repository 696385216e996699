"""SIGTERM and Ctrl-C as requests to stop after the current step of training, and Ctrl-C elsewhere."""

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator

logger = logging.getLogger(__name__)

GRACE = 2.0


class Stop:
    """Context manager that catches both signals; a second one ends the process at once.

    Python runs handlers between its own instructions only, which compiling or a long step keeps waiting. So a
    thread counts the signals too, as C hands them over.

    Attributes:
        requested: whether a signal has been received.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.requested = False
        self._before: dict = {}

    def __enter__(self) -> 'Stop':
        # Only the main thread may set handlers; a run in another thread is stopped by its owner.
        if threading.current_thread() is threading.main_thread():
            reader, self._writer = _pair()
            self._woken = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._count, args=(reader,), daemon=True).start()
            self._before = {number: signal.signal(number, self._catch) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        if self._before:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._woken)
            self._writer.close()  # which ends the thread
            self._before = {}

    def _catch(self, number, _frame):
        if self.requested:
            _end(number)
        self.requested = True
        logger.info(
            '%s: stopping after this step; a second signal ends the run immediately',
            signal.Signals(number).name,
        )

    def _count(self, reader):
        seen = 0
        while number := reader.recv(1):
            seen += number[0] in self.SIGNALS
            if seen > 1:
                _end(number[0])
        reader.close()


def _pair():
    """Sockets to read signals from and for C to write them to; pipes would not do on Windows."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    return reader, writer


def _end(number):
    text = f'\nended by a second signal, {signal.Signals(number).name}: the same command resumes\n'
    os.write(2, text.encode())
    os._exit(128 + number)


def _stopped():
    with contextlib.suppress(OSError, ValueError):  # a closed pipe
        sys.stdout.flush()
    os.write(2, b'\nstopped by Ctrl-C\n')
    os._exit(128 + signal.SIGINT)


@contextlib.contextmanager
def end_by_ctrl_c() -> Iterator[None]:
    """Ends the process with one line on Ctrl-C, wherever it hits, in at most `GRACE` seconds.

    Python's own exception would wait for compiling, is lost where it hits a destructor, and would then wait
    for threads that read.
    """

    def watch():
        while number := reader.recv(1):
            if number[0] == signal.SIGINT:
                select.select([reader], [], [], GRACE)  # for what is half done; a second one ends it at once
                _stopped()

    def report(lost):
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(lost)

    def interrupt(number, frame):
        # Modules of C++ may crash where an exception ends their import.
        while frame:
            if frame.f_code.co_filename.startswith('<frozen importlib'):
                _stopped()
            frame = frame.f_back
        raise KeyboardInterrupt

    reader, writer = _pair()
    handles = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handles:
        signal.signal(signal.SIGINT, interrupt)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False), sys.unraisablehook
    threading.Thread(target=watch, daemon=True).start()
    sys.unraisablehook = report
    try:
        yield
    except KeyboardInterrupt:
        _stopped()
    finally:
        if handles and signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.set_wakeup_fd(before[0])
        if sys.unraisablehook is report:  # unless another passes on to it
            sys.unraisablehook = before[1]
        writer.close()


def end_command_by_ctrl_c() -> None:
    """As `end_by_ctrl_c`, until the process ends: for commands that import much before they begin."""

    def print_others(kind, error, trace):
        if issubclass(kind, KeyboardInterrupt):
            _stopped()
        sys.__excepthook__(kind, error, trace)

    _entered.enter_context(end_by_ctrl_c())
    sys.excepthook = print_others


_entered = contextlib.ExitStack()


class Stopped(Exception):
    """Raised to end a run that was asked to stop."""
