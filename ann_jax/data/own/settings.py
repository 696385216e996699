"""The user's own dataset, described by a few settings instead of a row of the table."""

import os
import re

from ann_jax.data import label_map as maps
from ann_jax.data.decode.images import IMAGE_ENDINGS
from ann_jax.data.layout import Dataset, HeldOut, Layout, Own
from ann_jax.data.own.class_files import parse_classes
from ann_jax.data.palette import distinct_colors
from ann_jax.errors import ConfigError
from ann_jax.typing import IGNORE


def own_dataset(
    *,
    name: str,
    classes: str,
    root: str = '',
    images: str = 'images/{split}',
    labels: str = 'labels/{split}',
    lists: str = '',
    image_ending: str = '',
    label_ending: str = '.png',
    label_map: str = '',
    reduce_zero_label: bool = False,
    splits: tuple[str, str] = ('train', 'val'),
    val_share: float = 0,
) -> Dataset:
    """Describes folders of images and labels.

    Args:
        name: of the dataset.
        classes: class names, separated by commas; or their number; or a file (in the current folder or below
            the root) with a name per line, also with colours, which labels may then hold instead of values,
            or with the values of labels: see `parse_classes`. What has the name `ignore` is ignored.
        root: folder of the files.
        images: folder below the root, where `{split}` stands for the split; or a text file of paths.
        labels: as `images`, and may be the same folder; line n of a text file is the label of line n of the
            images.
        lists: text file below the root with the names in a split, or with an image and its label per line;
            '' for the whole folder.
        image_ending: ending of image files, such as '_sat.jpg'; '' for any.
        label_ending: ending of label files, such as '_mask.png'. With '.png', the default, another ending is
            found if no label has the name of an image.
        label_map: pairs 'raw:class', separated by commas, where a class is an index, a name or `ignore`, and
            a raw value may be a range or `others`; '' if values are class indices and 255 is ignored.
        reduce_zero_label: 0 is ignored, 1 is the first class and so on; 255 stays ignored.
        splits: of training, which may be several, as in train+val, and of evaluation.
        val_share: share of the first split that is held out and makes the second; 0 if both have files.

    Raises:
        ConfigError: a setting cannot be parsed, there is one class only, or all splits would read the same
            files.
    """
    names, colors, values, ignored = _without_ignored(*parse_classes(classes, root))
    _refuse_one_class(names, classes)
    _check_splits(splits, val_share, images, labels, lists)
    color_map = None
    if colors:
        color_map = dict.fromkeys([(0, 0, 0), *ignored], IGNORE) | {
            color: i for i, color in enumerate(colors)
        }
    if label_map.strip() and reduce_zero_label:
        raise ConfigError(
            f'dataset.label_map={label_map!r} and dataset.reduce_zero_label exclude each other: write the '
            f'shift into label_map, such as 0:ignore,1-{len(names)}:0-{len(names) - 1}'
        )
    known = None
    if label_map.strip():
        known = maps.parse(label_map, names)
    elif reduce_zero_label:
        known = maps.shifted(len(names))
        label_map = maps.write(known.values)
    elif values:
        known = maps.LabelMap(values, None, False)
    part = lambda text: os.path.expanduser(text).replace('{split}', '{part}')
    layout = Layout(
        images=part(images),
        labels=part(labels),
        lists=part(lists) or None,
        image_endings=(image_ending,) if image_ending else IMAGE_ENDINGS,
        label_ending=label_ending,
        label_map=known and known.values,
        others=known and known.others,
        color_map=color_map,
        own=Own(
            label_map.strip(), bool(known and known.coarse), dict(zip(colors, names, strict=False)), ignored
        ),
    )
    return Dataset(
        name=name,
        classes=names,
        colors=colors or distinct_colors(len(names)),
        splits={split: tuple(split.split('+')) for split in splits},
        layouts=(layout,),
        held_out=HeldOut(*splits, val_share),
    )


def _refuse_one_class(names, classes):
    if len(names) != 1:
        return
    words = re.findall(r'[^\s;|/]+', classes)
    if len(words) > 1 and names[0] == classes.strip():
        cure = f', or write commas between names, as in dataset.classes={",".join(words)}'
    else:
        cure = f', as in dataset.classes=background,{names[0]}'
    raise ConfigError(
        f'dataset.classes={classes!r} is one class, so every pixel has it and there is nothing to learn: '
        f'name the background too{cure}'
    )


def _check_splits(splits, val_share, images, labels, lists):
    """Refuses splits that would read the same files, and shares that cannot be held out."""
    if val_share and '+' in splits[0]:
        raise ConfigError(
            f'dataset.val_share={val_share:g} holds out a share of one split, not of {splits[0]}: set '
            'val_share=0, or train_split to one of them'
        )
    if val_share and len(set(splits)) == 1:
        raise ConfigError(
            f'dataset.val_share={val_share:g} holds out a split of another name than {splits[0]}: '
            'set eval_split=val, or val_share=0'
        )
    if not (val_share or len(set(splits)) == 1 or any('{split}' in t for t in (images, labels, lists))):
        raise ConfigError(
            f'dataset.images={images!r} and dataset.lists={lists!r} are the same files for the splits '
            f'{" and ".join(splits)}: put {{split}} where their paths differ, or hold out a share of them '
            'with --config.dataset.val_share=0.1'
        )


def _without_ignored(names, colors, values):
    """Takes out the classes called `ignore`; returns also their colours."""
    if 'ignore' not in names or not (colors or values):  # a mere list of names may have such a class
        return names, colors, values, ()
    kept = [i for i, name in enumerate(names) if name != 'ignore']
    index = {old: new for new, old in enumerate(kept)}
    values = values or {i: i for i in range(len(names))} | {IGNORE: IGNORE}
    ignored = tuple(color for color, name in zip(colors, names, strict=False) if name == 'ignore')
    pick = lambda items: tuple(items[i] for i in kept) if items else ()
    return pick(names), pick(colors), {raw: index.get(old, IGNORE) for raw, old in values.items()}, ignored
