"""Event files for TensorBoard."""

import contextlib
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


@contextlib.contextmanager
def _no_torch():
    """Where torch is installed, tensorboardX imports it: a run would take twice as long to start."""
    loaded = 'torch' in sys.modules
    if not loaded:
        sys.modules['torch'] = None  # type: ignore[assignment]  # cannot be imported
    try:
        yield
    finally:
        if not loaded:
            del sys.modules['torch']


with _no_torch():
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2


class TensorBoard:
    """A `typing.Writer` to an event file; every event is written immediately.

    tensorboardX's SummaryWriter writes in a thread: if that fails, as on a full disk, the run waits forever.
    """

    def __init__(self, folder: Path, first_step: int = 0):
        """Opens a file; what an interrupted run wrote from `first_step` on is hidden."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / 'events'))
        if first_step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(step=first_step, session_log=start))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds points to curves."""
        self._add(step, (summary.scalar(name, value) for name, value in values.items()))

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds pictures, (H, W, 3) uint8."""
        self._add(step, (summary.image(name, image, dataformats='HWC') for name, image in images.items()))

    def text(self, step: int, texts: Mapping[str, str]) -> None:
        """Adds texts in Markdown."""
        self._add(step, (summary.text(name, text) for name, text in texts.items()))

    def close(self) -> None:
        """Flushes and closes the file."""
        self._file.close()

    def _add(self, step: int, summaries: Iterable[Any]) -> None:
        for each in summaries:
            self._write(event_pb2.Event(step=step, summary=each))
        self._file.flush()

    def _write(self, event):
        event.wall_time = time.time()
        self._file.write_event(event)
