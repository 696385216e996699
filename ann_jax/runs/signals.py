"""SIGTERM and Ctrl-C as requests to stop after the current step."""

import logging
import os
import signal
import threading

logger = logging.getLogger(__name__)


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
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._woken = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            threading.Thread(target=self._count, args=(reader,), daemon=True).start()
            self._before = {number: signal.signal(number, self._catch) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        if self._before:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._woken)
            os.close(self._writer)  # which ends the thread
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
        while number := os.read(reader, 1):
            seen += number[0] in self.SIGNALS
            if seen > 1:
                _end(number[0])
        os.close(reader)


def _end(number):
    text = f'\nended by a second signal, {signal.Signals(number).name}: the same command resumes\n'
    os.write(2, text.encode())
    os._exit(128 + number)


class Stopped(Exception):
    """Raised to end a run that was asked to stop."""
