"""What a survey says about a dataset: what would be learned wrong, or not at all, and what helps."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    layouts = getattr(dataset, 'layouts', ())
    given = _Split(split, dataset.classes, layouts[0].own if layouts else None, found, train)
    judges = _JUDGES if given.labelled else (_no_labelled_pixel,)
    told = (judge(given) for judge in judges)
    return [each._replace(text=f'{split}: {each.text}') for each in told if each]


@dataclass(frozen=True)
class _Split:
    """What is known of a split."""

    name: str
    classes: Sequence[str]
    own: Any  # the `layout.Own` of a dataset of the user, if it is one
    found: Survey
    train: bool

    @property
    def labels(self) -> str:
        sampled = ' sampled' if self.found.read < self.found.total else ''
        return f'the {self.found.read} labels{sampled}'

    @property
    def labelled(self) -> int:
        return self.found.pixels[:-1].sum()

    @property
    def ignored(self) -> int:
        return self.found.pixels[-1]

    @property
    def absent(self) -> list[str]:
        return [name for name, n in zip(self.classes, self.found.pixels[:-1], strict=True) if not n]

    @property
    def values_are_classes(self) -> bool:
        return bool(self.own) and not self.own.label_map and not self.found.painted

    @property
    def all_masks(self) -> bool:
        """Whether all labels hold class 0 and 255 alone."""
        return self.values_are_classes and self.found.pixels[0] == self.labelled and self.ignored > 0


def _no_labelled_pixel(split):
    if not split.own:
        cure = 'the labels of test sets are often not published: choose another split'
    elif split.found.painted:
        cure = 'give the colours of the labels a line each in the class file'
    else:
        cure = 'give values a class with --config.dataset.label_map, such as 0:0,255:1'
    return Finding('no labelled pixel', f'every pixel of {split.labels} is ignored; {cure}', fatal=True)


def _one_class(split):
    if len(split.classes) == 1:
        return Finding('one class', f'{split.classes[0]} is the only class: name the background too')


def _masks(split):
    """Masks in which 255, which is ignored, may be a class."""
    masks, kind = split.found.masks, 'masks of 0 and 255'
    last = len(split.classes) - 1
    if split.all_masks:
        return Finding(
            kind,
            f'{split.labels} hold only 0 and 255, and 255 is ignored, so no pixel is '
            f'{_list(split.classes[1:])}: if 255 is a class, set --config.dataset.label_map=0:0,255:1',
            fatal=split.train,
        )
    if not split.values_are_classes or not masks:
        return None
    some = f'{len(masks)} of {split.labels} hold only 0 and 255, such as that of {masks[0]}, but others hold'
    if len(split.classes) == 2:
        return Finding(
            kind,
            f'{some} 1: if 255 is {split.classes[1]} in these, set --config.dataset.label_map=0:0,1:1,255:1',
        )
    if _MANY * len(masks) > split.found.read and not split.absent:
        return Finding(
            kind,
            f'{some} more: set --config.dataset.label_map=0-{last}:0-{last},255:ignore, with the class of '
            '255 in place of ignore if it has one',
        )


def _absent_classes(split):
    if not split.absent or _masks(split):
        return None
    rule = 'cannot be learned' if split.train else 'is not scored'
    sampled = split.found.read < split.found.total
    cure = '--mode=check counts all' if sampled else 'add samples with it, or leave out the class'
    if split.values_are_classes and split.ignored:
        last = len(split.classes) - 1
        cure += (
            '; if 255, which is ignored, is such a class, write it in place of ignore in '
            f'--config.dataset.label_map=0-{last}:0-{last},255:ignore'
        )
    return Finding(
        'classes never seen' if split.train else f'classes absent from {split.name}',
        f'no pixel of {split.labels} is {_list(split.absent)}; what no label has {rule}: {cure}',
    )


def _black_ignored(split):
    if split.found.black and split.own and (0, 0, 0) not in (*split.own.listed, *split.own.ignored):
        share = 100 * split.found.black / split.found.pixels.sum()
        return Finding(
            'black ignored',
            f'{share:.1f} % of the pixels of {split.labels} are ignored because they are black, which has no '
            "line in the class file: add one, such as 'background 0 0 0' or 'ignore 0 0 0'",
        )


def _mostly_ignored(split):
    if split.ignored > split.labelled and not split.all_masks:
        share = 100 * split.ignored / (split.ignored + split.labelled)
        cure = ': give their values a class with --config.dataset.label_map' if split.own else ''
        return Finding('mostly ignored', f'{share:.0f} % of the pixels of {split.labels} are ignored{cure}')


def _palettes(split):
    if split.found.clash:
        return Finding(*_palettes_differ(*split.found.clash))


def _lossy_labels(split):
    if lossy := split.found.lossy:
        return Finding(
            'JPEG labels',
            f'{len(lossy)} labels are JPEG or lossy WebP, so edges are inexact, such as that of {lossy[0]}: '
            'save labels as PNG from what they were made of',
        )


def _flat_images(split):
    if not (flat := split.found.flat):
        return None
    name, low, high = flat[0]
    cure = 'remove blank ones, and save others scaled to 0 to 255'
    if len(flat) == split.found.decoded and max(high for _, _, high in flat) > 1:  # it is for all
        cure = 'set --config.dataset.image_range=auto (or LOW,HIGH, the values that become 0 and 255)'
    return Finding(
        'images of few levels',
        f'{len(flat)} of {split.found.decoded} images use less than {FEW_LEVELS} of the 256 levels, such as '
        f'{name} ({low} to {high}): {cure}',
    )


_JUDGES: tuple[Callable[[_Split], Finding | None], ...] = (
    _one_class,
    _masks,
    _absent_classes,
    _black_ignored,
    _mostly_ignored,
    _palettes,
    _lossy_labels,
    _flat_images,
)


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
        'good; remove them from one of the two'
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
        'one class: if the colours are right, give them in a class file, so that they count'
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
