"""Reads the samples of a source in parallel; collects errors and statistics."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from ann_jax.data.labels import Label
from ann_jax.errors import DataError
from ann_jax.typing import IGNORE, Sample, Source

FEW_LEVELS = 32  # an image whose levels differ by less is blank, dark, or of fewer bits than 8


class Look(NamedTuple):
    """A sample, and how it was read."""

    name: str
    label: Label
    image: np.ndarray | None  # (H, W, 3) uint8 RGB; None: not decoded
    data: bytes = b''  # the encoded image, if there is one

    def sample(self) -> Sample:
        """The sample alone, of which the image was decoded."""
        assert self.image is not None
        return Sample(name=self.name, image=self.image, label=self.label.classes)


class Survey(NamedTuple):
    """Errors and statistics of a source; samples with errors are not counted."""

    errors: list[str]
    total: int  # samples in the source, of which some may not have been read
    pixels: np.ndarray  # (K + 1,) int64: pixels per class, and last the ignored ones
    images: np.ndarray  # (K + 1,) int64: images that contain the class
    sizes: Counter[tuple[int, int]]  # (height, width) -> images
    blank: list[str]  # names of samples of which no pixel has a class
    decoded: int  # images
    flat: list[tuple[str, int, int]]  # names of images that use few levels, and the lowest and highest
    contents: dict[bytes, list[str]]  # hash of an image -> names of samples
    painted: int  # labels whose colours count
    black: int  # pixels ignored in these
    lossy: list[str]  # names of samples whose label has a format that changes values
    palettes: tuple[str, str, int] | None  # two samples whose palettes differ, and for which value

    @property
    def read(self) -> int:
        """Number of samples that were read."""
        return self.sizes.total()


def look(source: Source, index: int, *, image: bool = True, closely: bool = True) -> Look:
    """Reads a sample, and how it is stored if the source can tell.

    Args:
        source: any source; if it has `look`, this reads the sample.
        index: of the sample.
        image: decode the image too.
        closely: also refuse damaged images that still decode; slower.

    Raises:
        DataError: the sample cannot be used.
    """
    own = getattr(source, 'look', None)
    if own:
        return own(index, image=image, closely=closely)
    sample = source[index]
    return Look(sample['name'], Label(sample['label']), sample['image'])


def survey(
    source: Source,
    progress: Callable[[Iterable], Iterable] = iter,
    *,
    num_threads: int = 2,
    indices: Iterable[int] | None = None,
    decode: Collection[int] | None = None,
) -> Survey:
    """Reads samples, and collects errors instead of stopping at the first.

    Args:
        source: any source; a `FolderSource` built with `strict=False` adds its pairing problems.
        progress: wraps the iterable, like `tqdm`.
        num_threads: samples read at a time.
        indices: of the samples; None for all.
        decode: the samples whose image is decoded too; None: all, and these are examined closely.
    """
    classes = source.dataset.num_classes
    pixels, images = np.zeros((2, classes + 1), np.int64)
    found = Survey(
        list(getattr(source, 'problems', ())),
        len(source),
        pixels,
        images,
        Counter(),
        [],
        0,
        [],
        {},
        0,
        0,
        [],
        None,
    )
    decoded = painted = black = 0
    palette = np.full(256, -1)
    users = np.zeros(256, object)  # the sample in which a value got its colour
    pool = ThreadPoolExecutor(num_threads)
    try:
        indices = range(len(source)) if indices is None else indices
        for future in progress([pool.submit(_count, source, i, classes, decode) for i in indices]):
            try:
                seen = future.result()
            except DataError as e:
                found.errors.append(str(e))
                continue
            found.sizes[seen.size] += 1
            pixels += seen.counts
            images += seen.counts > 0
            if not seen.counts[:-1].any():
                found.blank.append(seen.name)
            if seen.levels:
                decoded += 1
                if seen.levels[1] - seen.levels[0] < FEW_LEVELS:
                    found.flat.append((seen.name, *seen.levels))
            found.contents.setdefault(seen.content, []).append(seen.name)
            if seen.lossy:
                found.lossy.append(seen.name)
            if seen.by_color:
                painted, black = painted + 1, black + seen.counts[-1]
            if seen.palette is not None:
                both = (palette >= 0) & (seen.palette >= 0)
                clash = both & (palette != seen.palette)
                if clash.any() and not found.palettes:
                    value = int(clash.argmax())
                    found = found._replace(palettes=(users[value], seen.name, value))
                new = (palette < 0) & (seen.palette >= 0)
                palette[new], users[new] = seen.palette[new], seen.name
    finally:
        pool.shutdown(cancel_futures=True)
    return found._replace(decoded=decoded, painted=painted, black=int(black))


class _Seen(NamedTuple):
    """What is kept of a sample."""

    name: str
    size: tuple[int, int]
    counts: np.ndarray  # (K + 1,) int64
    levels: tuple[int, int] | None  # the lowest and the highest, if the image was decoded
    content: bytes
    by_color: bool
    palette: np.ndarray | None
    lossy: str


def _count(source, index, classes, decode):
    seen = look(source, index, image=decode is None or index in decode, closely=decode is None)
    label, image = seen.label, seen.image
    counts = np.bincount(label.classes.ravel(), minlength=256)
    content = seen.data or (b'' if image is None else image.tobytes())
    return _Seen(
        seen.name,
        label.classes.shape,
        np.append(counts[:classes], counts[IGNORE]),
        None if image is None else (int(image.min(initial=255)), int(image.max(initial=0))),
        hashlib.sha1(content, usedforsecurity=False).digest(),
        *label[1:],
    )
