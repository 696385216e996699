"""What a dataset is: its classes, the forms in which its files come, and what their raw values mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ann_jax.errors import DataError
from ann_jax.typing import IGNORE, Sample

LISTS = ('.txt', '.csv', '.tsv', '.lst', '.list')  # endings of lists of files
INVALID = 254  # in a lookup table: a raw value that must not occur
_TABLE = 65_536  # raw values from 0 that a lookup table holds
_SAMPLE = 'name', 'image', 'label'


class Own(NamedTuple):
    """What only the user's own labels have: settings, which errors name as cures."""

    label_map: str = ''  # the setting; '' if values are class indices
    coarse: bool = False  # it maps ranges, so that small changes of a value do not matter
    listed: Mapping[tuple[int, int, int], str] = {}  # names of classes by their colours
    ignored: tuple[tuple[int, int, int], ...] = ()  # colours that the class file calls `ignore`


@dataclass(frozen=True)
class Layout:
    """One form in which a dataset is distributed: where its files are, and what their raw values mean.

    `images` and `labels` are folders below the root, `lists` a file; `{part}` stands for each part of the
    split. An image and a label belong together if their paths below those folders differ only in the ending.
    Endings match in upper and lower case.
    """

    images: str = 'images/{part}'
    labels: str = 'labels/{part}'
    # Lists the names in a part, or pairs 'image label' of paths below the root; None: the whole folder.
    lists: str | None = None
    image_endings: tuple[str, ...] = ('.jpg', '.jpeg', '.png')
    label_ending: str = '.png'
    # raw value -> class index or IGNORE; None: the dataset's
    label_map: Mapping[int, int] | None = None
    others: int | None = None  # what the other raw values are; None: errors
    # RGB -> class index or IGNORE, for labels painted in colours
    color_map: Mapping[tuple[int, int, int], int] | None = None
    variable: str | None = None  # name in MATLAB label files; 'struct.field' in a struct
    archive: str | None = None  # the one file with all labels, read by `archives.py`
    parts: tuple[str, ...] | None = None  # parts that exist in this form; None: all
    # part -> (first, last) of each range of names in it; None: the whole folder
    select: Mapping[str, tuple[tuple[str, str], ...]] | None = None
    without: tuple[str, ...] = ()  # lists of names to leave out
    # Folder of labels that also counts, and before `labels`, if those are not all there.
    fallback: str | None = None
    own: Own | None = None  # None: the dataset is in the table

    @cached_property
    def lut(self) -> np.ndarray:
        """(at least 257,) uint8: raw value -> class index, IGNORE, or INVALID; the last is for all others."""
        assert self.label_map is not None  # `Dataset` fills it in
        near = {raw: index for raw, index in self.label_map.items() if 0 <= raw < _TABLE}
        rest = INVALID if self.others is None else self.others
        lut = np.full(max([256, *near]) + 2, rest, np.uint8)
        lut[list(near)] = list(near.values())
        return lut

    @cached_property
    def far(self) -> tuple[np.ndarray, np.ndarray]:
        """The raw values that `lut` leaves out, negative or large: (N,) int64 in order, and their classes."""
        assert self.label_map is not None
        far = sorted(item for item in self.label_map.items() if not 0 <= item[0] < _TABLE)
        return np.array([raw for raw, _ in far], np.int64), np.array([index for _, index in far], np.uint8)

    def describe(self, parts: str) -> str:
        """The files expected below the root, in one line."""
        files = [f'{self.images}/**/*{"|".join(self.image_endings)}']
        if self.images.endswith(LISTS):
            files = [self.images]
        if not self.archive:
            listed = self.labels.endswith(LISTS)
            files.append(self.labels if listed else f'{self.labels}/**/*{self.label_ending}')
        elif self.archive.endswith('.mat'):
            files = []
        files += filter(None, (self.archive, self.lists))
        return ' and '.join(files).replace('{part}', parts)


class HeldOut(NamedTuple):
    """A split that is a share of another one: the samples whose names, hashed, say so."""

    train: str  # the part that has the files
    eval: str
    share: float  # 0: both have files of their own


@dataclass(frozen=True)
class Dataset:
    """A dataset: its classes, how raw label values map to them, and its layouts."""

    name: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]  # RGB of each class
    # raw value -> class index or IGNORE; None: values are class indices already, and 255 is IGNORE
    label_map: Mapping[int, int] | None = None
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # split -> parts
    layouts: tuple[Layout, ...] = (Layout(),)  # the first that fits the files is used
    categories: tuple[str, ...] = ()  # group of each class, if the benchmark also scores groups
    counts: Mapping[str, int] = field(default_factory=dict)  # samples per part, as published
    held_out: HeldOut | None = None  # None: not the user's own dataset

    def __post_init__(self):
        if not 0 < len(self.classes) == len(self.colors) <= INVALID:
            raise ValueError(
                f'{self.name}: {len(self.classes)} classes, of at most {INVALID}; {len(self.colors)} colours'
            )
        if isinstance(self.classes, str) or len({*self.classes}) < len(self.classes):
            raise ValueError(f'{self.name}: classes={self.classes!r}: must be a tuple of names, each once')
        level = lambda value: isinstance(value, int | np.integer) and 0 <= value <= 255
        for color in self.colors:
            if isinstance(color, str) or len(color) != 3 or not all(map(level, color)):
                raise ValueError(
                    f'{self.name}: the colour {color!r} is not red, green and blue from 0 to 255'
                )
        if self.label_map is None:
            identity = {**{i: i for i in range(self.num_classes)}, IGNORE: IGNORE}
            object.__setattr__(self, 'label_map', identity)
        layouts = tuple(
            layout if layout.label_map is not None else replace(layout, label_map=self.label_map)
            for layout in self.layouts
        )
        object.__setattr__(self, 'layouts', layouts)

    def parts_of(self, split: str) -> tuple[str, ...]:
        """The parts of a split, or of several, as in train+val; () if one is unknown."""
        if split in self.splits:
            return self.splits[split]
        splits = split.split('+')
        if not self.splits.keys() >= set(splits):
            return ()
        return tuple(dict.fromkeys(part for each in splits for part in self.splits[each]))

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def lut(self) -> np.ndarray:
        """(256,) uint8: raw byte -> class index, IGNORE, or INVALID, in the dataset's first layout."""
        return self.layouts[0].lut[:256]

    @property
    def class_to_raw(self) -> np.ndarray:
        """(num_classes,) uint8: the raw value of each class, as in submissions."""
        return np.array([np.flatnonzero(self.lut == i)[0] for i in range(self.num_classes)], np.uint8)

    @property
    def layout(self) -> str:
        """The files expected below the root, in one line."""
        parts = '|'.join(dict.fromkeys(part for parts in self.splits.values() for part in parts))
        return ', or '.join(
            dict.fromkeys(layout.describe('|'.join(layout.parts or (parts,))) for layout in self.layouts)
        )


def check_labels(labels: np.ndarray, num_classes: int) -> None:
    """Refuses labels without a class, which a loss would count in silence.

    Raises:
        DataError: names the first value that is neither a class index nor IGNORE, or the dtype if it is not
            an integer.
    """
    if labels.dtype.kind not in 'iu':
        raise DataError(f'labels are {labels.dtype}: give integers, class indices or {IGNORE}')
    bad = (labels != IGNORE) & ((labels < 0) | (labels >= num_classes))
    if bad.any():
        raise DataError(
            f'the batch has the label {labels[bad][0]}, but the network has {num_classes} classes, 0 to '
            f'{num_classes - 1}: map it to one of them, or to {IGNORE}, which is ignored'
        )


def check_pixels(labels: Any, shape: Sequence[int], num_classes: int) -> None:
    """Refuses labels that a function of arrays would broadcast, round or count wrongly.

    Args:
        labels: an array of any library; values that `known` does not see are not looked at.
        shape: of the pixels that they are for.
        num_classes: K.

    Raises:
        DataError: another shape or dtype, a label that is no class, or more classes than labels have.
    """
    if num_classes > IGNORE:
        raise DataError(f'{num_classes} classes: at most {IGNORE} can be used, because {IGNORE} is ignored')
    if tuple(labels.shape) != tuple(shape):
        raise DataError(f'labels of shape {tuple(labels.shape)} for pixels of shape {tuple(shape)}')
    if labels.dtype.kind not in 'iu':
        raise DataError(f'labels are {labels.dtype}: give integers, class indices or {IGNORE}')
    if (values := known(labels)) is not None:
        check_labels(values, num_classes)


def known(array: Any) -> np.ndarray | None:
    """The values of an array of any library; None if jax traces them, or another process has them."""
    try:
        return np.asarray(array)
    except (TypeError, RuntimeError):  # as jax says so
        return None


def check_sample(sample: Mapping, num_classes: int | None, channels: int | None, source: str) -> Sample:
    """Returns a sample with a label of uint8; refuses what would be cut, padded or counted wrongly.

    Args:
        sample: as a source of the user's own gives it.
        num_classes: of the dataset; None if it is not known: labels must fit into a byte.
        channels: of the network's input; None for any.
        source: what errors call the source.

    Raises:
        DataError: something is missing, image and label do not fit together, or a label is no class.
    """
    if not isinstance(sample, Mapping) or (missing := [key for key in _SAMPLE if key not in sample]):
        lacks = f'lacks {", ".join(missing)}' if isinstance(sample, Mapping) else 'is no dict'
        raise DataError(f'a sample of the {source} {lacks}: give name, image and label')
    image, label = sample['image'], sample['label']
    kind = lambda x: f'{x.shape} {x.dtype}' if isinstance(x, np.ndarray) else f'of type {type(x).__name__}'
    where = f'the {source} gives for {sample["name"]!r} an image {kind(image)} and a label {kind(label)}'
    if not (isinstance(image, np.ndarray) and image.ndim == 3 and channels in (None, image.shape[2])):
        raise DataError(f'{where}: the image must be a NumPy array (H, W, {channels or "channels"})')
    if image.dtype != np.uint8:
        raise DataError(f'{where}: the image must hold levels from 0 to 255 as uint8')
    if not isinstance(label, np.ndarray) or label.shape != image.shape[:2]:
        raise DataError(f'{where}: the label must be a NumPy array of {image.shape[:2]}, as the image')
    if num_classes is None and label.dtype == np.uint8:
        return sample  # type: ignore[return-value]  # its labels are looked at where the classes are known
    if num_classes is None and label.dtype.kind in 'iu' and ((label < 0) | (label > IGNORE)).any():
        raise DataError(
            f'{where}, from {label.min()} to {label.max()}: give class indices, or {IGNORE}, which is ignored'
        )
    try:
        check_labels(label, IGNORE if num_classes is None else num_classes)
    except DataError as error:
        raise DataError(f'{where}: {error}') from error
    return {**sample, 'label': label.astype(np.uint8, copy=False)}  # type: ignore[typeddict-item]
