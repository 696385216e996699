"""SIGTERM and Ctrl-C as requests to stop after the current step."""

import logging
import signal
import threading

logger = logging.getLogger(__name__)


class Stop:
    """Context manager that catches both signals; a second one ends the process as usual.

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
            self._before = {number: signal.signal(number, self._catch) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    def _catch(self, number, _frame):
        self.requested = True
        self._restore()
        logger.info(
            '%s: stopping after this step; a second signal ends the run immediately',
            signal.Signals(number).name,
        )

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class Stopped(Exception):
    """Raised to end a run that was asked to stop."""
