"""Event files for TensorBoard."""

import contextlib
import io
import re
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from PIL import Image

from ann_jax.buckets.copies import Growing
from ann_jax.buckets.services import remote
from ann_jax.files import make_folder, modified


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
    from tensorboardX.proto import event_pb2, summary_pb2

_SIDE, _QUALITY = 1024, 85  # of pictures: an event file keeps those of every evaluation


class TensorBoard:
    """A `typing.Writer` to an event file; every event is written immediately, in a bucket every half minute.

    tensorboardX's SummaryWriter writes in a thread: if that fails, as on a full disk, the run waits forever.
    """

    def __init__(self, folder: Path, first_step: int = 0):
        """Opens a file; what an interrupted run wrote from `first_step` on is hidden."""
        make_folder(folder)
        self._growing = Growing(folder) if remote(folder) else None
        self._file = EventsWriter(str((self._growing.folder if self._growing else folder) / 'events'))
        if first_step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(step=first_step, session_log=start))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds points to curves."""
        self._add(step, (summary.scalar(_tag(name), value) for name, value in values.items()))

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds pictures, (H, W, 3) uint8, as JPEG, at most 1024 pixels wide and high."""
        self._add(step, (_image(name, image) for name, image in images.items()))

    def text(self, step: int, texts: Mapping[str, str]) -> None:
        """Adds texts in Markdown."""
        self._add(step, (summary.text(name, text) for name, text in texts.items()))

    def close(self) -> None:
        """Flushes and closes the file."""
        self._file.close()
        if self._growing:
            self._growing.close()

    def _add(self, step: int, summaries: Iterable[Any]) -> None:
        for each in summaries:
            self._write(event_pb2.Event(step=step, summary=each))
        self._file.flush()

    def _write(self, event):
        event.wall_time = time.time()
        self._file.write_event(event)


def _tag(name):
    """A name of an event: what it may not hold becomes _, which the package does too, but with a warning."""
    return re.sub(r'[^-/\w.]', '_', name)


def _image(name, picture):
    """A picture as JPEG; tensorboardX would write a PNG of full size."""
    image = Image.fromarray(picture)
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=_QUALITY)
    value = summary_pb2.Summary.Image(
        height=image.height, width=image.width, colorspace=3, encoded_image_string=buffer.getvalue()
    )
    tag = summary.image(_tag(name), np.zeros((1, 1, 3), np.uint8), dataformats='HWC').value[0].tag
    return summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, image=value)])


def read_scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The curves of the event files of a run: name -> step -> value, in order of steps.

    Points that a resumed run wrote again replace those before. The end of a file that a killed process left
    incomplete is ignored.
    """
    curves: dict[str, dict[int, float]] = {}
    # Their names hold the second in which they were opened; files of one second are in order of writing.
    for file in sorted(folder.glob('events*'), key=lambda file: (file.name.split('.')[3:4], modified(file))):
        for event in _events(file):
            if event.session_log.status == event_pb2.SessionLog.START:
                for points in curves.values():
                    for step in [step for step in points if step >= event.step]:
                        del points[step]
            for value in event.summary.value:
                if value.HasField('simple_value'):
                    curves.setdefault(value.tag, {})[event.step] = value.simple_value
    return {name: dict(sorted(points.items())) for name, points in curves.items() if points}


def _events(file: Path) -> Iterator[Any]:
    """The events of a file: each is its length, a checksum, its bytes, and a checksum."""
    with file.open('rb') as stream, contextlib.suppress(DecodeError):
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        while len(head := stream.read(12)) == 12:
            (length,) = struct.unpack('<Q', head[:8])
            if stream.tell() + length > size:
                return
            yield event_pb2.Event.FromString(stream.read(length))
            stream.read(4)
