"""What the datasets are: one table of names, colours, label maps and layouts, from which the rest derives.

Facts as the makers publish them. CamVid: the 11 classes of SegNet's split (value 11 is unlabelled), colours
of the CamVid label table. Cityscapes: `labels.py` of cityscapesScripts. ADE20K: the first synonym of each row
of the scene-parsing challenge's `objectInfo150.txt` (value 0 is "other objects"). PASCAL Context: the 59
frequent classes in alphabetical order, after the background. Layouts are those of the unpacked archives.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ann_jax.typing import IGNORE

INVALID = 254  # mark in a lookup table: this raw value should not occur


@dataclass(frozen=True)
class Dataset:
    """What a dataset is: its classes, how raw label values map to them, and where the files lie.

    `images`, `labels` and `lists` are folders (a file for `lists`) below the root; `{part}` stands for each
    part of the split. An image and a label belong together when their paths below those folders are equal but
    for the ending.
    """

    name: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]  # RGB of each class
    # raw value -> class index or IGNORE; None: values are class indices already, and 255 is IGNORE
    label_map: Mapping[int, int] | None = None
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # split -> parts
    images: str = 'images/{part}'
    labels: str = 'labels/{part}'
    lists: str | None = None  # file that lists the names of a part; None: every image of the folder
    image_endings: tuple[str, ...] = ('.jpg', '.jpeg', '.png')
    label_ending: str = '.png'

    def __post_init__(self):
        if not 0 < len(self.classes) == len(self.colors) <= INVALID:
            raise ValueError(f'{self.name}: {len(self.classes)} classes, {len(self.colors)} colours')

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @cached_property
    def lut(self) -> np.ndarray:
        """(256,) uint8: raw label value -> class index, IGNORE, or INVALID for a value that is not listed."""
        mapping = self.label_map
        if mapping is None:
            mapping = {**{i: i for i in range(self.num_classes)}, IGNORE: IGNORE}
        lut = np.full(256, INVALID, np.uint8)
        lut[list(mapping)] = list(mapping.values())
        return lut

    @property
    def class_to_raw(self) -> np.ndarray:
        """(num_classes,) uint8: the raw value of each class, as submissions hold it."""
        return np.array([np.flatnonzero(self.lut == i)[0] for i in range(self.num_classes)], np.uint8)

    @property
    def layout(self) -> str:
        """The files a root should hold, in one line."""
        part = '|'.join(dict.fromkeys(part for parts in self.splits.values() for part in parts))
        images = f'{self.images}/**/*{"|".join(self.image_endings)}'
        files = [images, f'{self.labels}/**/*{self.label_ending}']
        if self.lists:
            files.append(self.lists)
        return ' and '.join(files).replace('{part}', part)


def _names(text):
    return tuple(name.strip() for name in text.split(','))


def voc_colors(count, *, first=0):
    """Returns `count` distinct RGB triples of PASCAL VOC's colour map from index `first` (index 0 is black).

    The map spreads the bits of the index over the high bits of the three channels: bit 0 goes to red 128, bit
    1 to green 128, bit 2 to blue 128, bit 3 to red 64, and so on.
    """
    colors = []
    for index in range(first, first + count):
        channels = [0, 0, 0]
        for bit in range(8):
            channels[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
        colors.append(tuple(channels))
    return tuple(colors)


CAMVID_NAMES = _names(
    'Sky, Building, Pole, Road, Pavement, Tree, SignSymbol, Fence, Car, Pedestrian, Bicyclist'
)
CAMVID_COLORS = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (0, 0, 192),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)

# (label id, name, colour) in train-id order; the other ids of 0..33 are not scored.
CITYSCAPES_CLASSES = (
    (7, 'road', (128, 64, 128)),
    (8, 'sidewalk', (244, 35, 232)),
    (11, 'building', (70, 70, 70)),
    (12, 'wall', (102, 102, 156)),
    (13, 'fence', (190, 153, 153)),
    (17, 'pole', (153, 153, 153)),
    (19, 'traffic light', (250, 170, 30)),
    (20, 'traffic sign', (220, 220, 0)),
    (21, 'vegetation', (107, 142, 35)),
    (22, 'terrain', (152, 251, 152)),
    (23, 'sky', (70, 130, 180)),
    (24, 'person', (220, 20, 60)),
    (25, 'rider', (255, 0, 0)),
    (26, 'car', (0, 0, 142)),
    (27, 'truck', (0, 0, 70)),
    (28, 'bus', (0, 60, 100)),
    (31, 'train', (0, 80, 100)),
    (32, 'motorcycle', (0, 0, 230)),
    (33, 'bicycle', (119, 11, 32)),
)

ADE20K_NAMES = _names(
    'wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, '
    'earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, '
    'mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, '
    'box, column, signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, '
    'grandstand, path, stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge, '
    'bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop, stove, palm, kitchen '
    'island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, '
    'chandelier, awning, streetlight, booth, television, airplane, dirt track, apparel, pole, land, '
    'bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, '
    'canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, '
    'cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, '
    'screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, '
    'plate, monitor, bulletin board, shower, radiator, glass, clock, flag'
)

PASCAL_CONTEXT_NAMES = _names(
    'background, aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, '
    'cabinet, car, cat, ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, '
    'food, grass, ground, horse, keyboard, light, motorbike, mountain, mouse, person, plate, platform, '
    'pottedplant, road, rock, sheep, shelves, sidewalk, sign, sky, snow, sofa, table, track, train, tree, '
    'truck, tvmonitor, wall, water, window, wood'
)

_TRAIN_VAL = {'train': ('train',), 'val': ('val',), 'trainval': ('train', 'val')}
_CONTEXT = dict(
    splits=_TRAIN_VAL,
    images='JPEGImages',
    labels='SegmentationClassContext',
    lists='ImageSets/SegmentationContext/{part}.txt',
    image_endings=('.jpg',),
)

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name='camvid',
            classes=CAMVID_NAMES,
            colors=CAMVID_COLORS,
            label_map={**{i: i for i in range(11)}, 11: IGNORE},
            splits={**_TRAIN_VAL, 'test': ('test',)},
        ),
        Dataset(
            name='cityscapes',
            classes=tuple(name for _, name, _ in CITYSCAPES_CLASSES),
            colors=tuple(color for _, _, color in CITYSCAPES_CLASSES),
            label_map={
                **{i: IGNORE for i in range(34)},
                255: IGNORE,  # licence plate: id -1, which is 255 in a PNG's byte
                **{raw: i for i, (raw, _, _) in enumerate(CITYSCAPES_CLASSES)},
            },
            splits={
                **_TRAIN_VAL,
                'test': ('test',),
            },  # the labels shipped with test are blank: ignored throughout
            images='leftImg8bit/{part}',
            labels='gtFine/{part}',
            image_endings=('_leftImg8bit.png',),
            label_ending='_gtFine_labelIds.png',
        ),
        Dataset(
            name='ade20k',
            classes=ADE20K_NAMES,
            colors=voc_colors(150, first=1),
            label_map={0: IGNORE, **{i + 1: i for i in range(150)}},
            splits={'train': ('training',), 'val': ('validation',), 'trainval': ('training', 'validation')},
            images='images/{part}',
            labels='annotations/{part}',
            image_endings=('.jpg',),
        ),
        Dataset(
            name='pascal_context',
            classes=PASCAL_CONTEXT_NAMES,
            colors=voc_colors(60),
            **_CONTEXT,
        ),
        Dataset(
            name='pascal_context_59',
            classes=PASCAL_CONTEXT_NAMES[1:],
            colors=voc_colors(59, first=1),
            label_map={0: IGNORE, **{i + 1: i for i in range(59)}, 255: IGNORE},
            **_CONTEXT,
        ),
    )
}
