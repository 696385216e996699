"""Event files for TensorBoard."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2


class EventFile:
    """An event file for TensorBoard, written at once.

    Not tensorboardX's SummaryWriter: it writes in a thread, and where that fails, as on a full disk, the
    run waits for it for ever.
    """

    def __init__(self, folder: Path, first_step: int):
        """Opens a file; what a broken-off run wrote from `first_step` on is not shown."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / 'events'))
        if first_step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(step=first_step, session_log=start))

    def add(self, step: int, summaries: Iterable[Any]) -> None:
        """Writes summaries of `tensorboardX.summary` under a step."""
        for each in summaries:
            self._write(event_pb2.Event(step=step, summary=each))
        self._file.flush()

    def close(self) -> None:
        """Writes out what is buffered."""
        self._file.close()

    def _write(self, event):
        event.wall_time = time.time()
        self._file.write_event(event)
