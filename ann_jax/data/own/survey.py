"""Reads the samples of a source in parallel; collects errors and statistics."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ann_jax.data.labels import Label, count_bytes
from ann_jax.data.layout import check_labels
from ann_jax.errors import DataError
from ann_jax.typing import IGNORE, Sample, Source

FEW_LEVELS = 32  # an image whose levels differ by less is blank, dark, or of fewer bits than 8


class Look(NamedTuple):
    """A sample, and how it was read."""

    name: str
    label: Label
    image: np.ndarray | None  # (H, W, N) uint8; None: not decoded
    data: bytes = b''  # the encoded image, if there is one

    def sample(self) -> Sample:
        """The sample alone, of which the image was decoded."""
        assert self.image is not None
        return Sample(name=self.name, image=self.image, label=self.label.classes)


@dataclass
class Survey:
    """Errors and statistics of a source; samples with errors are not counted."""

    errors: list[str]
    total: int  # samples in the source, of which some may not have been read
    pixels: np.ndarray  # (K + 1,) int64: pixels per class, and last the ignored ones
    images: np.ndarray  # (K + 1,) int64: images that contain the class
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (height, width) -> images
    blank: list[str] = field(default_factory=list)  # names of samples of which no pixel has a class
    masks: list[str] = field(default_factory=list)  # samples of class 0 and ignored pixels, and nothing else
    decoded: int = 0  # images
    flat: list[tuple[str, int, int]] = field(default_factory=list)  # samples of few levels: lowest, highest
    contents: dict[int, list[str]] = field(default_factory=dict)  # hash of an image -> names of samples
    painted: int = 0  # labels whose colours count
    black: int = 0  # black pixels in these
    lossy: list[str] = field(default_factory=list)  # samples whose label has a format that changes values
    # value -> 0xRRGGBB, and a sample with it
    palette: dict[int, tuple[int, str]] = field(default_factory=dict)
    clash: tuple[int, str, str] | None = None  # a value, and two samples in whose palettes its colour differs

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
    check_labels(sample['label'], source.dataset.num_classes)
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
    problems = list(getattr(source, 'problems', ()))
    found = Survey(problems, len(source), *np.zeros((2, classes + 1), np.int64))
    pool = ThreadPoolExecutor(num_threads)
    try:
        indices = range(len(source)) if indices is None else indices
        for future in progress([pool.submit(_count, source, i, classes, decode) for i in indices]):
            try:
                _add(found, future.result())
            except DataError as e:
                found.errors.append(str(e))
    finally:
        pool.shutdown(cancel_futures=True)
    return found


class _Counted(NamedTuple):
    """What is kept of a sample."""

    name: str
    size: tuple[int, int]
    counts: np.ndarray  # (K + 1,) int64
    levels: tuple[int, int] | None  # the lowest and the highest, if the image was decoded; see `_levels`
    content: int
    by_color: bool
    black: int
    palette: dict[int, int]
    lossy: str


def _count(source, index, classes, decode):
    seen = look(source, index, image=decode is None or index in decode, closely=decode is None)
    label, image = seen.label, seen.image
    counts = count_bytes(label.classes.astype(np.uint8, copy=False))
    content = seen.data or (b'' if image is None else image.tobytes())
    return _Counted(
        name=seen.name,
        size=label.classes.shape,
        counts=np.append(counts[:classes], counts[IGNORE]),
        levels=None if image is None else _levels(image),
        content=hash(content),
        by_color=label.by_color,
        black=label.black(),
        palette=label.palette(),
        lossy=label.lossy,
    )


def _levels(image):
    """The lowest and the highest level: of some pixels, or of all where these are alike."""
    for part in (image[::8, ::8], image):
        low, high = int(part.min(initial=255)), int(part.max(initial=0))
        if high - low >= FEW_LEVELS:
            break
    return low, high


def _add(found, one):
    found.sizes[one.size] += 1
    found.pixels += one.counts
    found.images += one.counts > 0
    if not one.counts[:-1].any():
        found.blank.append(one.name)
    elif one.counts[-1] and not one.counts[1:-1].any():
        found.masks.append(one.name)
    if one.levels:
        found.decoded += 1
        if one.levels[1] - one.levels[0] < FEW_LEVELS:
            found.flat.append((one.name, *one.levels))
    found.contents.setdefault(one.content, []).append(one.name)
    if one.lossy:
        found.lossy.append(one.name)
    if one.by_color:
        found.painted += 1
        found.black += one.black
    for value, color in one.palette.items():
        first, user = found.palette.setdefault(value, (color, one.name))
        if first != color and not found.clash:
            found.clash = value, user, one.name
