"""The user's own dataset, described by a few settings instead of a row of the table."""

from ann_jax.data.class_files import parse_classes
from ann_jax.data.classes import Dataset, Layout
from ann_jax.data.names import voc_colors
from ann_jax.errors import ConfigError
from ann_jax.typing import IGNORE

_IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')


def own_dataset(
    *,
    name: str,
    classes: str,
    root: str = '',
    images: str = 'images/{split}',
    labels: str = 'labels/{split}',
    lists: str = '',
    label_ending: str = '.png',
    label_map: str = '',
    splits: tuple[str, ...] = ('train', 'val'),
) -> Dataset:
    """Describes folders of images and labels.

    Args:
        name: of the dataset.
        classes: class names, separated by commas; or their number; or a text file (in the current folder or
            below the root) with a name per line, optionally followed by red, green and blue, which labels may
            then hold instead of values.
        root: folder of the files.
        images: folder below the root, where `{split}` stands for the split; or a text file of paths.
        labels: as `images`; line n of a text file is the label of line n of the images.
        lists: text file below the root with the names in a split, or with an image and its label per line;
            '' for the whole folder.
        label_ending: ending of label files, such as '_mask.png'.
        label_map: pairs 'raw:class', separated by commas, where a class is an index, a name or `ignore`, and
            a raw value may be `others`; '' if values are class indices and 255 is ignored.
        splits: splits that are read.

    Raises:
        ConfigError: a setting cannot be parsed, or all splits would read the same files.
    """
    names, colors = parse_classes(classes, root)
    if not any('{split}' in text for text in (images, labels, lists)) and len(set(splits)) > 1:
        raise ConfigError(
            f'dataset.images={images!r} and dataset.lists={lists!r} are the same files for the splits '
            f'{" and ".join(splits)}: put {{split}} where their paths differ'
        )
    color_map = {(0, 0, 0): IGNORE} | {color: i for i, color in enumerate(colors)} if colors else None
    part = lambda text: text.replace('{split}', '{part}')
    layout = Layout(
        images=part(images),
        labels=part(labels),
        lists=part(lists) or None,
        image_endings=_IMAGE_ENDINGS,
        label_ending=label_ending,
        label_map=_parse_label_map(label_map, names),
        color_map=color_map,
    )
    return Dataset(
        name=name,
        classes=names,
        colors=colors or voc_colors(len(names), first=1),
        splits={split: (split,) for split in splits},
        layouts=(layout,),
    )


def _parse_label_map(text, names):
    """'0:ignore,1:road,others:1' -> {raw value: class index or IGNORE}, or None."""
    if not text.strip():
        return None
    mapping, others = {}, None
    for item in filter(None, (item.strip() for item in text.split(','))):
        raw, _, target = (word.strip() for word in item.partition(':'))
        if target in names:
            index = names.index(target)
        elif target == 'ignore':
            index = IGNORE
        elif target.isdigit() and (int(target) < len(names) or int(target) == IGNORE):
            index = int(target)
        else:
            raise ConfigError(
                f'dataset.label_map: {item!r} names no class: write raw:class, where class is an index '
                f'below {len(names)}, ignore, or one of {", ".join(names)}'
            )
        if raw == 'others':
            others = index
        elif raw.isdigit() and int(raw) < 65536:
            mapping[int(raw)] = index
        else:
            raise ConfigError(
                f'dataset.label_map: {raw!r} in {item!r} is neither a number from 0 to 65535 nor others'
            )
    return mapping if others is None else dict.fromkeys(range(65536), others) | mapping
