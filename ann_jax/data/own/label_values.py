"""Tells from labels, and from a file of classes if there is one, which classes they have."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ann_jax.data.decode.reading import read_file
from ann_jax.data.label_files import decode_raw
from ann_jax.data.layout import INVALID
from ann_jax.data.own.class_files import Classes, Color, parse_classes
from ann_jax.errors import ConfigError, DataError
from ann_jax.typing import IGNORE

BLACK = (0, 0, 0)
_BACKGROUND = ('background', '_background_', 'bg', 'unlabeled', 'unlabelled', 'void', 'other', 'others')


@dataclass
class Values:
    """What labels hold."""

    files: int = 0
    values: Counter[int] = field(default_factory=Counter)  # value -> pixels, of labels of values
    colors: Counter[Color] = field(default_factory=Counter)  # colour -> pixels, of labels of colours
    # index -> its colours, of labels with a palette
    palettes: dict[int, set[Color]] = field(default_factory=dict)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # height, width -> labels
    lossy: str = ''  # the format, if it changes values
    errors: list[str] = field(default_factory=list)

    @property
    def by_color(self) -> bool:
        """Whether colours tell the classes: of RGB, or of palettes in different orders."""
        return bool(self.colors) or any(len(colors) > 1 for colors in self.palettes.values())


def survey_labels(paths: Sequence[str], most: int = 200) -> Values:
    """Counts the values and colours of labels: of all, or of `most` from first to last."""
    found = Values()
    shown: Counter[Color] = Counter()  # by palettes
    greys: Counter[int] = Counter()  # of pictures in colours that are grey
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int))]
    for path in chosen:
        try:
            raw = decode_raw(read_file(path, 'label'), path)
        except DataError as error:
            found.errors.append(str(error))
            continue
        found.files += 1
        found.lossy = found.lossy or raw.lossy
        found.sizes[raw.values.shape[:2]] += 1
        values = raw.values
        if values.ndim == 3 and (values == values[..., :1]).all():
            for value, count in zip(*np.unique(values[..., 0], return_counts=True), strict=True):
                greys[int(value)] += int(count)
            continue
        if values.ndim == 3:
            codes = values.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
            for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
                found.colors[code >> 16, code >> 8 & 255, code & 255] += int(count)
            continue
        for value, count in zip(*np.unique(values, return_counts=True), strict=True):
            found.values[int(value)] += int(count)
            if raw.palette is not None:
                red, green, blue = raw.palette[value].tolist()
                found.palettes.setdefault(int(value), set()).add((red, green, blue))
                shown[red, green, blue] += int(count)
    if found.by_color:  # palettes count as the colours that they show
        found.colors.update(shown + Counter({(value,) * 3: count for value, count in greys.items()}))
        found.values.clear()
    else:
        found.values.update(greys)
    return found


@dataclass
class ClassPlan:
    """The classes of labels, and what to write so that they are read."""

    names: tuple[str, ...]
    colors: tuple[Color, ...] = ()  # () if values tell the classes
    file: str = ''  # file of classes that says it all, below the root
    label_map: dict[int, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def choose_classes(found: Values, files: Iterable[str], root: str) -> ClassPlan:
    """Chooses classes that fit the labels.

    Args:
        found: of the labels.
        files: that may hold classes, below the root.
        root: of the dataset.

    Raises:
        DataError: there are too many values or colours for classes, or one colour only.
    """
    known: list[tuple[str, Classes]] = []
    unread = []
    for file in files:
        try:
            known.append((file, parse_classes(os.path.join(root, file), root)))
        except (ConfigError, DataError) as error:
            if 'class' in os.path.basename(file).lower():
                unread.append(str(error))
    kinds = found.colors or found.values
    if found.lossy:
        plan = ClassPlan(
            ('background', 'object'),
            label_map=dict.fromkeys(range(128), 0) | dict.fromkeys(range(128, 256), 1),
        )
        plan.notes.append(f'labels are {found.lossy}, which changes values; taken as black and white masks')
        return plan
    if len(kinds) > INVALID:
        raise DataError(
            f'labels hold {len(kinds)} different {"colours" if found.colors else "values"}, more than '
            f'{INVALID} classes: they are photographs, depths or instances, or were resized or saved as '
            'JPEG; set up a folder that holds images and labels of classes only'
        )
    options = (_by_color if found.colors else _by_value)(found, known)
    best = max(options, key=lambda option: option[0])[1]
    shown = ' '.join(map(str, next(iter(found.colors), ()) or kinds))
    if len(best.names) == 1:
        raise DataError(
            f'labels are {shown} all over, so that there is nothing to learn: set up a folder whose labels '
            'hold several classes'
        )
    if len(kinds) == 1:
        best.notes.append(f'labels are {shown} all over: other values, if there are any, need a class too')
    if below := [value for value in found.values if value < 0]:
        # Signed files use these for pixels without a class.
        plain = {i: i for i in range(len(best.names))} | {IGNORE: IGNORE}
        best.label_map = (best.label_map or plain) | dict.fromkeys(below, IGNORE)
    notes = [
        f'{file} names {len(c.names)} classes, which do not fit the labels: not used' for file, c in known
    ]
    if known and best.names[-1] not in known[0][1].names:
        best.notes += notes[:1]
    if not known:
        best.notes += unread[:1]
    return best


def _by_color(found, known):
    """Yields (rank, plan) of labels of colours."""
    black = BLACK in found.colors
    for file, classes in known:
        if classes.colors:
            lines = dict(zip(classes.colors, classes.names, strict=True))
            unknown = sorted(found.colors.keys() - lines.keys() - {BLACK})
            plan = ClassPlan(classes.names, classes.colors, file)
            if black and BLACK not in lines:
                lines = {BLACK: 'background', **lines}
                plan.notes.append(f'black, which {file} lacks, was added as background')
            for color in unknown:
                lines[color] = f'class {len(lines)}'
                plan.notes.append(f'the colour {" ".join(map(str, color))}, which {file} lacks, was added')
            if plan.notes:
                plan.names, plan.colors, plan.file = tuple(lines.values()), tuple(lines), ''
            yield (1, -len(unknown), len(lines)), plan
    colors = sorted(found.colors, key=lambda color: (color != BLACK, color))
    names = tuple('background' if color == BLACK else f'class {i}' for i, color in enumerate(colors))
    yield (0, 0, 0), ClassPlan(names, tuple(colors), notes=['no file names the classes: name them'])


def _by_value(found, known):
    """Yields (rank, plan) of labels of values."""
    seen = {value for value in found.values if value >= 0}
    palette = [(index, color) for index, colors in found.palettes.items() for color in colors]
    for file, (names, colors, label_map) in known:
        allowed = {*(label_map or range(len(names))), IGNORE}
        # Index 255 is a border of a colour of its own, as in VOC.
        shown = {color for index, color in palette if index != IGNORE or color in colors}
        if any(
            color in colors[:i] + colors[i + 1 :] for i, color in palette if color not in colors[i : i + 1]
        ):
            if shown <= {*colors, BLACK}:
                yield (3, len(names)), ClassPlan(names, colors, file)
            continue  # by value, the classes would be swapped
        if colors and shown and shown <= {*colors, BLACK} and (BLACK in colors or BLACK not in shown):
            yield (3, len(names)), ClassPlan(names, colors, file)
        bare = os.path.basename(file) == 'meta.json' and names[0].lower() not in _BACKGROUND
        # Supervisely lists no background, which is 0 in its masks.
        if seen <= allowed and not bare and not (seen == {0, IGNORE} and len(names) == 2):
            plain = {v: i for v, i in (label_map or {}).items() if v != IGNORE}
            plan = ClassPlan(names, label_map=plain)
            if not label_map and names[0].lower() not in _BACKGROUND and len(names) - 1 not in seen:
                plan.notes.append(
                    f'value 0 is taken for {names[0]}, the first in {file}, and no label holds the last, '
                    f'{names[-1]}: if 0 is the background, write it before {names[0]} in `classes`'
                )
            yield (2, len(names)), plan
            continue
        full = names if names[0].lower() in _BACKGROUND else ('background', *names)
        note = [] if full == names else [f'{file} lacks the background, which was added']
        if seen <= {*range(len(full)), IGNORE} and not (seen == {0, IGNORE} and len(full) == 2):
            yield (1, len(full)), ClassPlan(full, notes=note)
        elif seen <= {0, IGNORE} and len(full) == 2:
            yield (2, 2), ClassPlan(full, label_map={0: 0, IGNORE: 1}, notes=note)
    yield (0, 0), _by_value_alone(seen)


def _by_value_alone(seen):
    """Classes of values that no file names."""
    plan = ClassPlan((), notes=['no file names the classes: name them'])
    rest = sorted(seen - {IGNORE}) or [0]
    if seen <= {0, 1, IGNORE}:
        plan.names = ('background', 'object')
        if IGNORE in seen and 1 not in seen:
            plan.label_map = {0: 0, IGNORE: 1}
        return plan
    if rest == list(range(1, len(rest) + 1)) and len(rest) > 1:
        plan.names = tuple(f'class {value}' for value in rest)
        plan.label_map = {0: IGNORE, IGNORE: IGNORE} | {value: value - 1 for value in rest}
        plan.notes.append('no label holds 0, so that 1 is the first class')
        return plan
    contiguous = max(rest) < INVALID and max(rest) + 1 <= 2 * len(rest) + 4
    if contiguous:
        plan.names = tuple(f'class {i}' for i in range(max(rest) + 1))
        return plan
    # Far apart, as in 0, 85, 170, 255, where the last is a class too.
    apart = all(b - a > 1 for a, b in zip(rest, rest[1:], strict=False))
    values = sorted(seen) if apart and IGNORE in seen else rest
    plan.names = tuple(f'class {i} (value {value})' for i, value in enumerate(values))
    plan.label_map = {value: i for i, value in enumerate(values)} | (
        {IGNORE: IGNORE} if IGNORE not in values else {}
    )
    return plan


def class_files(names: Iterable[str]) -> list[str]:
    """Those of the files that may hold classes, by their names, from the top of the folder down."""
    words = 'label class categor color colour palette names codes meta config data.y id2'.split()
    endings = ('.txt', '.csv', '.tsv', '.json', '.yaml', '.yml', '.names')
    stem = lambda name: os.path.basename(name).lower()
    found = [n for n in names if stem(n).endswith(endings) and any(word in stem(n) for word in words)]
    return sorted(found, key=lambda name: (name.count('/'), name))[:20]
