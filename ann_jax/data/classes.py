"""The datasets: one table of names, colours, label maps and layouts.

Names, colours and raw values come from `names.py`; layouts are those of the unpacked archives. In CamVid,
values 0 .. 10 are classes and 11 is unlabelled. In ADE20K, value 0 is "other objects", which is not scored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ann_jax.data import names
from ann_jax.data.names import voc_colors
from ann_jax.data.palette import distinct_colors
from ann_jax.errors import DataError
from ann_jax.typing import IGNORE

LISTS = ('.txt', '.csv', '.tsv', '.lst', '.list')  # endings of lists of files
INVALID = 254  # in a lookup table: a raw value that must not occur
_TABLE = 65_536  # raw values from 0 that a lookup table holds


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


_TRAIN_VAL = {'train': ('train',), 'val': ('val',), 'trainval': ('train', 'val')}
_TRAIN_TEST = {'train': ('train',), 'test': ('test',)}

_CITYSCAPES_IDS = {raw: i for i, (raw, *_) in enumerate(names.CITYSCAPES_CLASSES)}
# Licence plate has id -1, stored as 255 in a PNG.
_CITYSCAPES_MAP = {**{i: IGNORE for i in range(34)}, 255: IGNORE, **_CITYSCAPES_IDS}
_CITYSCAPES_FINE = Layout(
    images='leftImg8bit/{part}',
    labels='gtFine/{part}',
    image_endings=('_leftImg8bit.png',),
    label_ending='_gtFine_labelIds.png',
    parts=('train', 'val', 'test'),
)


def _context(name, classes, colors, first):
    """PASCAL Context with class `first` of 60 as class 0; classes below it are not scored."""
    scored = {raw: raw - first if raw >= first else IGNORE for raw in range(60)}
    # All but 59 of the 459 classes count as background.
    among_459 = dict.fromkeys(range(460), scored[0])
    among_459 |= {raw: scored[i] for i, raw in enumerate(names.PASCAL_CONTEXT_459, 1)}
    photos = Layout(images='JPEGImages', image_endings=('.jpg',))
    lists = 'ImageSets/SegmentationContext/{part}.txt'
    mat = replace(photos, labels='trainval', label_ending='.mat', variable='LabelMap', label_map=among_459)
    return Dataset(
        name=name,
        classes=classes,
        colors=colors,
        label_map={**scored, 255: IGNORE},
        splits=_TRAIN_VAL,
        layouts=(
            replace(photos, labels='SegmentationClassContext', lists=lists),
            replace(photos, archive='trainval_merged.json', label_map=among_459),
            replace(mat, lists=lists),
            replace(mat, lists='ImageSets/Main/{part}.txt'),
        ),
        counts={'train': 4998, 'val': 5105},
    )


DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name='camvid',
            classes=names.CAMVID_NAMES,
            colors=names.CAMVID_COLORS,
            label_map={**{i: i for i in range(11)}, 11: IGNORE},
            splits={**_TRAIN_VAL, 'test': ('test',)},
            layouts=(Layout(), Layout(images='{part}', labels='{part}annot')),
            counts={'train': 367, 'val': 101, 'test': 233},
        ),
        Dataset(
            name='camvid32',
            classes=tuple(name for name, _ in names.CAMVID32_CLASSES),
            colors=tuple(color for _, color in names.CAMVID32_CLASSES),
            splits={**_TRAIN_VAL, 'test': ('test',)},
            layouts=(
                Layout(
                    images='701_StillsRaw_full',
                    labels='LabeledApproved_full',
                    image_endings=('.png',),
                    label_ending='_L.png',
                    color_map={
                        (0, 0, 0): IGNORE,  # Void
                        **{color: i for i, (_, color) in enumerate(names.CAMVID32_CLASSES)},
                    },
                    select=names.CAMVID_SPLIT,
                ),
            ),
            counts={'train': 367, 'val': 101, 'test': 233},
        ),
        Dataset(
            name='cityscapes',
            classes=tuple(name for _, name, _, _ in names.CITYSCAPES_CLASSES),
            colors=tuple(color for _, _, _, color in names.CITYSCAPES_CLASSES),
            label_map=_CITYSCAPES_MAP,
            # The labels shipped with test are blank: ignored throughout.
            splits={
                **_TRAIN_VAL,
                'test': ('test',),
                'train_extra': ('train_extra',),
                'train+extra': ('train', 'train_extra'),
                'coarse_train': ('coarse_train',),
                'coarse_val': ('coarse_val',),
                'coarse': ('coarse_train', 'train_extra'),
            },
            layouts=(
                _CITYSCAPES_FINE,
                replace(
                    _CITYSCAPES_FINE,
                    label_ending='_gtFine_labelTrainIds.png',
                    label_map={**{i: i for i in range(19)}, 255: IGNORE},
                ),
                replace(
                    _CITYSCAPES_FINE,
                    labels='gtCoarse/{part}',
                    label_ending='_gtCoarse_labelIds.png',
                    parts=('train_extra',),
                ),
                *(
                    replace(
                        _CITYSCAPES_FINE,
                        images=f'leftImg8bit/{part}',
                        labels=f'gtCoarse/{part}',
                        label_ending='_gtCoarse_labelIds.png',
                        parts=(f'coarse_{part}',),
                    )
                    for part in ('train', 'val')
                ),
            ),
            categories=tuple(category for _, _, category, _ in names.CITYSCAPES_CLASSES),
            counts={
                'train': 2975,
                'val': 500,
                'test': 1525,
                'train_extra': 19998,
                'coarse_train': 2975,
                'coarse_val': 500,
            },
        ),
        Dataset(
            name='ade20k',
            classes=names.ADE20K_NAMES,
            colors=distinct_colors(150),
            label_map={0: IGNORE, **{i + 1: i for i in range(150)}},
            splits={'train': ('training',), 'val': ('validation',), 'trainval': ('training', 'validation')},
            layouts=(Layout(labels='annotations/{part}', image_endings=('.jpg',)),),
            counts={'training': 20210, 'validation': 2000},
        ),
        _context('pascal_context', names.PASCAL_CONTEXT_NAMES, distinct_colors(60), 0),
        _context('pascal_context_59', names.PASCAL_CONTEXT_NAMES[1:], distinct_colors(59), 1),
        Dataset(
            name='coco_stuff',
            classes=tuple(name for _, name in names.COCO_STUFF_CLASSES),
            colors=distinct_colors(171),
            label_map={0: IGNORE, **{raw: i for i, (raw, _) in enumerate(names.COCO_STUFF_CLASSES)}},
            splits=_TRAIN_TEST,
            layouts=(
                Layout(
                    images='images',
                    labels='annotations',
                    lists='imageLists/{part}.txt',
                    image_endings=('.jpg',),
                    label_ending='.mat',
                    variable='S',
                ),
            ),
            counts={'train': 9000, 'test': 1000},
        ),
        Dataset(
            name='nyud_v2',
            classes=names.NYUD_NAMES,
            colors=distinct_colors(40),
            label_map={0: IGNORE, **{i + 1: i for i in range(40)}},
            splits=_TRAIN_TEST,
            layouts=(
                Layout(archive='nyu_depth_v2_labeled.mat'),
                Layout(),
                Layout(images='images', labels='labels', lists='{part}.txt'),
            ),
            counts={'train': 795, 'test': 654},
        ),
        Dataset(
            name='voc',
            classes=names.VOC_NAMES,
            colors=voc_colors(21),
            # SBD labels more images of VOC 2012: as its authors distribute it, and merged as trainaug.
            splits={
                **_TRAIN_VAL,
                'trainaug': ('trainaug',),
                'train+aug': ('train', 'aug'),
                'train+sbd': ('train', 'sbd'),
            },
            layouts=tuple(
                Layout(
                    images='JPEGImages',
                    labels=labels,
                    lists=f'ImageSets/{lists}.txt',
                    image_endings=('.jpg',),
                    parts=parts,
                    # Some converters write only SBD's labels into SegmentationClassAug.
                    fallback='SegmentationClass' if labels.endswith('Aug') else None,
                )
                for labels, lists, parts in (
                    ('SegmentationClass', 'Segmentation/{part}', ('train', 'val')),
                    ('SegmentationClassAug', 'Segmentation/{part}', ('trainaug', 'aug')),
                    ('SegmentationClassAug', 'SegmentationAug/{part}', ('trainaug',)),
                )
            )
            + (
                Layout(
                    images='benchmark_RELEASE/dataset/img',
                    labels='benchmark_RELEASE/dataset/cls',
                    image_endings=('.jpg',),
                    label_ending='.mat',
                    variable='GTcls.Segmentation',
                    without=('ImageSets/Segmentation/train.txt', 'ImageSets/Segmentation/val.txt'),
                    parts=('sbd',),
                ),
            ),
            counts={'train': 1464, 'val': 1449, 'trainaug': 10582, 'aug': 9118, 'sbd': 9118},
        ),
    )
}


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
