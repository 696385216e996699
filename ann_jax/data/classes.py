"""The datasets: one table of names, colours, label maps and layouts.

Names, colours and raw values come from `names.py`; layouts are those of the unpacked archives. In CamVid,
values 0 .. 10 are classes and 11 is unlabelled. In ADE20K, value 0 is "other objects", which is not scored.
"""

from dataclasses import replace

from ann_jax.data import names
from ann_jax.data.layout import Dataset, Layout
from ann_jax.data.names import voc_colors
from ann_jax.data.palette import distinct_colors
from ann_jax.typing import IGNORE

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
