"""SIGTERM and Ctrl-C as a wish to stop, which the run fulfils when it is next between two steps."""

import logging
import signal
import threading

logger = logging.getLogger(__name__)


class Stop:
    """Catches both signals while it is entered; a second one ends the process as if it were not.

    Attributes:
        requested: whether a signal has come.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.requested = False
        self._before: dict = {}

    def __enter__(self) -> 'Stop':
        # Only the main thread may; a run inside another thread is stopped by its owner.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._catch) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    def _catch(self, number, _frame):
        self.requested = True
        self._restore()
        logger.info('%s: stopping after this step; once more ends at once', signal.Signals(number).name)

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class Stopped(Exception):
    """Raised to leave an evaluation that was asked to stop; the run ends in order."""
