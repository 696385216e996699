"""What a survey says about a dataset: what would be learned wrong, or not at all, and what helps."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from ann_jax.data.own.survey import FEW_LEVELS, Survey

_SHOWN = 5
_MANY = 10  # a tenth


class Finding(NamedTuple):
    """Something that is told before anything is learned from it."""

    kind: str  # in a few words
    text: str  # with the split and what helps
    fatal: bool = False  # training would be in vain


def findings(split: str, dataset: Any, found: Survey, *, train: bool) -> list[Finding]:
    """Judges one split.

    Args:
        split: its name.
        dataset: its `Dataset`, or what a source of the user has in its place.
        found: the survey of its samples, or of some of them.
        train: whether it is learned from; otherwise it is scored.
    """
    drawn = getattr(dataset, 'name', '') == 'scenes'  # the embedded scenes, which are as they should be
    if drawn or not found.read:
        return []
    tell: list[Finding] = []
    add = lambda kind, text, fatal=False: tell.append(Finding(kind, f'{split}: {text}', fatal))
    some = found.read < found.total
    labels = f'the {found.read} labels sampled' if some else f'the {found.read} labels'
    layouts = getattr(dataset, 'layouts', ())
    own = layouts[0].own if layouts else None
    labelled, ignored = found.pixels[:-1].sum(), found.pixels[-1]
    if not labelled:
        add('no labelled pixel', f'every pixel of {labels} is ignored; {_cure_of_blank(own, found)}', True)
        return tell
    absent = [name for name, n in zip(dataset.classes, found.pixels[:-1], strict=True) if not n]
    values_are_classes = own and not own.label_map and not found.painted
    if len(dataset.classes) == 1:
        add('one class', f'{dataset.classes[0]} is the only class: name the background too')
    last = len(dataset.classes) - 1
    masks = values_are_classes and found.pixels[0] == labelled and ignored
    if masks:
        add(
            'masks of 0 and 255',
            f'{labels} hold only 0 and 255, and 255 is ignored, so no pixel is {_list(dataset.classes[1:])}: '
            f'if 255 is a class, set --config.dataset.label_map=0:0,255:1',
            fatal=train,
        )
    elif values_are_classes and found.masks and len(dataset.classes) == 2:
        add(
            'masks of 0 and 255',
            f'{len(found.masks)} of {labels} hold only 0 and 255, such as that of {found.masks[0]}, but '
            f'others hold 1: if 255 is {dataset.classes[1]} in these, set '
            f'--config.dataset.label_map=0:0,1:1,255:1',
        )
    elif values_are_classes and _MANY * len(found.masks) > found.read and not absent:
        add(
            'masks of 0 and 255',
            f'{len(found.masks)} of {labels} hold only 0 and 255, such as that of {found.masks[0]}, but '
            f'others hold more: set --config.dataset.label_map=0-{last}:0-{last},255:ignore, with the class '
            f'of 255 in place of ignore if it has one',
        )
    elif absent:
        rule = 'cannot be learned' if train else 'is not scored'
        cure = '--mode=check counts all' if some else 'add samples with it, or leave out the class'
        if values_are_classes and ignored:
            cure += (
                f'; if 255, which is ignored, is such a class, write it in place of ignore in '
                f'--config.dataset.label_map=0-{last}:0-{last},255:ignore'
            )
        add(
            'classes never seen' if train else f'classes absent from {split}',
            f'no pixel of {labels} is {_list(absent)}; what no label has {rule}: {cure}',
        )
    if found.black and own and (0, 0, 0) not in (*own.listed, *own.ignored):
        add(
            'black ignored',
            f'{100 * found.black / found.pixels.sum():.1f} % of the pixels of {labels} are ignored because '
            f'they are black, which has no line in the class file: add one, such as '
            f"'background 0 0 0' or 'ignore 0 0 0'",
        )
    if ignored > labelled and not masks:
        cure = ': give their values a class with --config.dataset.label_map' if own else ''
        add(
            'mostly ignored',
            f'{100 * ignored / (ignored + labelled):.0f} % of the pixels of {labels} are ignored{cure}',
        )
    if found.clash:
        add(*_palettes_differ(*found.clash))
    if found.lossy:
        add(
            'JPEG labels',
            f'{len(found.lossy)} labels are JPEG or lossy WebP, so edges are inexact, such as that of '
            f'{found.lossy[0]}: save labels as PNG from what they were made of',
        )
    if found.flat:
        name, low, high = found.flat[0]
        cure = 'remove blank ones, and save others scaled to 0 to 255'
        if len(found.flat) == found.decoded and max(high for _, _, high in found.flat) > 1:  # it is for all
            cure = (
                'set --config.dataset.image_range=auto (or LOW,HIGH, the values in the files that become 0 '
                'and 255)'
            )
        add(
            'images of few levels',
            f'{len(found.flat)} of {found.decoded} images use less than {FEW_LEVELS} of the 256 levels, such '
            f'as {name} ({low} to {high}): {cure}',
        )
    return tell


def _cure_of_blank(own, found):
    if not own:
        return 'the labels of test sets are often not published: choose another split'
    if found.painted:
        return 'give the colours of the labels a line each in the class file'
    return 'give values a class with --config.dataset.label_map, such as 0:0,255:1'


def repeats(split: str, names: Sequence[Sequence[str]]) -> list[Finding]:
    """Judges a split in which images appear more than once.

    Args:
        split: its name.
        names: of the samples with the same image, for each such image.
    """
    if not names:
        return []
    more = sum(map(len, names)) - len(names)
    text = f'{split}: {more} images are there twice, such as {_pair(*names[0][:2])}: remove one of them'
    return [Finding('images twice', f'{text}, or its line in the list')]


def shared(splits: Sequence[str], names: Sequence[tuple[str, str]]) -> list[Finding]:
    """Judges two splits with images in common.

    Args:
        splits: their names, the one that is learned from first.
        names: of the samples in the first and in the second, for each image in both.
    """
    if not names:
        return []
    train, other = splits
    text = (
        f'{len(names)} images are in {train} and in {other}, such as {_pair(*names[0])}: scores would be too '
        f'good; remove them from one of the two'
    )
    return [Finding(f'images in {train} and in {other}', text)]


def other_palettes(splits: Sequence[str], one: Survey, other: Survey) -> list[Finding]:
    """Judges two splits whose palettes differ."""
    for value, (color, name) in one.palette.items():
        theirs, user = other.palette.get(value, (color, ''))
        if theirs != color and not one.clash and not other.clash:
            kind, text = _palettes_differ(value, f'{splits[0]}/{name}', f'{splits[1]}/{user}')
            return [Finding(kind, f'{" and ".join(splits)}: {text}')]
    return []


def _palettes_differ(value, one, other):
    return 'palettes differ', (
        f'value {value} has one colour in the label of {one} and another in that of {other}, but counts as '
        f'one class: if the colours are right, give them in a class file, so that they count'
    )


def same_contents(found: Survey) -> list[list[str]]:
    """Names of samples whose images are equal, byte by byte."""
    return [names for names in found.contents.values() if len(names) > 1]


def contents_in_both(one: Survey, other: Survey) -> list[tuple[str, str]]:
    """Names of samples whose images are in both surveys."""
    return [
        (names[0], other.contents[key][0]) for key, names in one.contents.items() if key in other.contents
    ]


def same_files(files: Sequence[str]) -> list[list[str]]:
    """Files that are there more than once."""
    return [[file, file] for file, n in Counter(files).items() if n > 1]


def _pair(one, other):
    return one if one == other else f'{one} = {other}'


def _list(names):
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(names[:_SHOWN]) + more
