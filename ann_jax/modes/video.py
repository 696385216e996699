"""Segments a video, frame by frame, in memory that does not grow with its length."""

import contextlib
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ann_jax.data.decode.reading import optional
from ann_jax.errors import ConfigError, DataError
from ann_jax.files import refuse_special, replacing
from ann_jax.inference.segmenter import Segmenter

ENDINGS = ('.mp4', '.mov', '.m4v', '.mkv', '.avi', '.webm')
OUTPUTS = ('overlays', 'colors', 'ids')
AHEAD = 2  # frames that are decoded while the device works
_UNEVEN = 0.05  # of the length of a video, by which that of its overlays may differ
_DROPPED = 0.01  # of the frames that a header counts, those that may have been dropped in recording


def is_video(path: Path) -> bool:
    """Whether a path is that of a video, going by its ending."""
    return path.suffix.lower() in ENDINGS and not path.is_dir()


def check_outputs(kinds: list[str]) -> None:
    """Refuses what is not written of videos, or cannot be.

    Raises:
        ConfigError: an output is for images only.
        DataError: PyAV is missing.
    """
    if wrong := [kind for kind in kinds if kind not in OUTPUTS]:
        raise ConfigError(f'predict.write={wrong[0]}: of a video, {", ".join(OUTPUTS)} can be written')
    optional('av', 'a video')


def segment_video(
    segmenter: Segmenter, file: Path, out: Path, name: Path, kinds: list[str], batch_size: int
) -> str:
    """Writes OUT/overlays/NAME.mp4, OUT/colors/NAME.mp4 and OUT/ids/NAME/000001.png, ...

    Videos are H.264, at the average frame rate of the input, without its sound; an odd width or height is
    one pixel more, which repeats the last. If the times of its frames say another length, a line is printed.

    Args:
        segmenter: for each frame.
        file: the video.
        out: folder to write into.
        name: of what is written for it, without an ending.
        kinds: of `OUTPUTS`.
        batch_size: frames that are computed together.

    Returns:
        What is wrong if the video has fewer frames than it should; those it has are written. Otherwise ''.

    Raises:
        DataError: the file is no video, is damaged, or its frames differ in size; nothing but ids of earlier
            frames is left.
        SaveError: a file cannot be written.
    """
    import av

    refuse_special(file, 'video')
    done, start = 0, time.perf_counter()
    with contextlib.ExitStack() as stack:
        try:
            source = stack.enter_context(av.open(str(file)))
        except av.error.FFmpegError as error:
            raise DataError(f'cannot read the video {file}: {error}') from error
        if not source.streams.video:
            raise DataError(f'cannot read the video {file}: it holds no pictures; name another file')
        stream = source.streams.video[0]
        rate, count = stream.average_rate or Fraction(25), stream.frames  # 0 if the header does not count
        pixel = stream.sample_aspect_ratio or Fraction(1)  # its width, of a height of 1
        stream.thread_type = 'AUTO'
        bar = stack.enter_context(tqdm(total=count or None, desc='predict', unit='frame'))
        drafts = {
            kind: stack.enter_context(replacing(out / kind / f'{name}.mp4'))
            for kind in kinds
            if kind != 'ids'
        }
        # Closed before the drafts are renamed.
        writers = stack.enter_context(contextlib.ExitStack())
        videos: dict[str, Any] = {}
        times: list[float] = []  # of the first and the last frame
        size = None
        for result in segmenter.stream(_frames(source, file, times), ahead=AHEAD, batch_size=batch_size):
            done += 1
            size = size or result.ids.shape
            if drafts and result.ids.shape != size:
                (height, width), (rows, columns) = size, result.ids.shape
                raise DataError(
                    f'frame {done} of {file} is {columns}x{rows}, those before {width}x{height}: convert the '
                    'video to one size, or take --config.predict.write=ids'
                )
            for kind, draft in drafts.items():
                picture = result.overlay() if kind == 'overlays' else result.colored()
                if kind not in videos:
                    turned = size != (stream.height, stream.width)
                    shape = 1 / pixel if turned else pixel
                    videos[kind] = writers.enter_context(_Writer(draft, rate, shape, *picture.shape[:2]))
                videos[kind].write(picture)
            if 'ids' in kinds:
                with replacing(out / 'ids' / name / f'{done:06}.png') as draft:
                    Image.fromarray(result.ids).save(draft)
            bar.update()
        if not done:
            raise DataError(f'cannot read the video {file}: it has no frames')
    seconds = time.perf_counter() - start
    frames = f'{done} frame{"s" * (done > 1)}'
    print(f'{frames} segmented, {done / seconds:.2f} per second; {", ".join(kinds)} written to {out}')
    lasts, plays = times[-1] - times[0] + float(1 / rate) if times else 0, float(done / rate)
    if times and drafts and abs(lasts - plays) > 1 + _UNEVEN * lasts:
        print(
            f'{file} lasts {lasts:.1f} s, but what was written plays {plays:.1f} s, at {float(rate):g} '
            'frames per second: convert it to a constant frame rate first, if times matter'
        )
    pictures = (out / 'ids' / name).glob('*.png') if 'ids' in kinds else ()
    if old := sum(file.stem.isdigit() and int(file.stem) > done for file in pictures):
        print(
            f'{out / "ids" / name} holds {old} more, of a longer video before: remove those after '
            f'{done:06}.png'
        )
    if done < count * (1 - _DROPPED) - 1:
        return f'{file} ends after {done} of {count} frames: it is cut off; copy it again'
    return ''


def _frames(source, file, times) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8, upright; `times` gets the seconds of the first and the last, if they are known."""
    import av

    try:
        for frame in source.decode(video=0):
            if frame.time is not None:
                times[1:] = [frame.time]
            yield np.rot90(frame.to_ndarray(format='rgb24'), round(frame.rotation / 90))
    except av.error.FFmpegError as error:
        raise DataError(f'cannot read the video {file}, which is damaged: {error}') from error


class _Writer:
    """A video that is being written."""

    def __init__(self, file, rate, pixel, height, width):
        import av

        self._file = av.open(str(file), 'w')
        self._stream = self._file.add_stream('libx264' if 'libx264' in av.codecs_available else 'mpeg4', rate)
        self._stream.height, self._stream.width = height + height % 2, width + width % 2
        self._stream.sample_aspect_ratio = pixel
        self._stream.pix_fmt = 'yuv420p'  # which every player knows; it takes even sizes

    def write(self, picture):
        """Adds a frame, (H, W, 3) uint8."""
        import av

        height, width = self._stream.height, self._stream.width
        more = ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0))
        frame = av.VideoFrame.from_ndarray(np.pad(picture, more, mode='edge'), format='rgb24')
        self._file.mux(self._stream.encode(frame))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self._file.mux(self._stream.encode(None))
        self._file.close()
