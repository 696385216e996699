"""The setting `label_map`: which class the raw values of labels mean."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ann_jax.data.layout import INVALID
from ann_jax.errors import ConfigError
from ann_jax.typing import IGNORE

MOST_VALUES = 65_536  # raw values that can be listed
_LOWEST, _HIGHEST = -(2**31), 2**32 - 1  # of integers of 32 bits, with and without a sign
_NOISE = 8  # values of a range that JPEG's changes usually stay in


class LabelMap(NamedTuple):
    """What raw values mean."""

    values: dict[int, int]  # raw value -> class index or IGNORE
    others: int | None  # what all other values mean; None: they are errors
    coarse: bool  # every 8-bit value lies in a range, so that small changes of a value do not matter


def parse(text: str, names: Sequence[str]) -> LabelMap:
    """Parses '0:ignore,1:road,2-5:car,10-19:0-9,others:1'.

    Args:
        text: pairs 'raw:class', separated by commas. A raw value is a whole number, a range or `others`; a
            class is an index, a name, `ignore` or, after a range of equal length, a range of indices.
        names: of the classes.

    Raises:
        ConfigError: an item cannot be parsed, a value has two meanings, or there are too many.
    """
    values: dict[int, int] = {}
    others = None
    coarse: set[int] = set()
    for item in filter(None, (item.strip() for item in text.split(','))):
        raw, _, target = (word.strip() for word in item.partition(':'))
        if raw == 'others':
            before, others = others, _targets(item, target, 1, names)[0]
            if before not in (None, others):
                raise ConfigError(f'dataset.label_map: {item!r} gives others a second meaning: name it once')
            continue
        first, last = _range(raw) or (0, -1)
        if not _LOWEST <= first <= last <= _HIGHEST:
            raise ConfigError(
                f'dataset.label_map: {raw!r} in {item!r} is neither a whole number of up to 32 bits, a range '
                'such as 0-127, nor others'
            )
        if len(values) + last - first >= MOST_VALUES:
            raise ConfigError(
                f'dataset.label_map: with {item!r} it lists more than {MOST_VALUES} values, the most that it '
                'takes: name the largest class by others, as in others:1'
            )
        targets = _targets(item, target, last - first + 1, names)
        for value, index in zip(range(first, last + 1), targets, strict=True):
            if values.setdefault(value, index) != index:
                raise ConfigError(f'dataset.label_map: {item!r} gives {value} a second meaning: name it once')
        if last - first + 1 >= _NOISE and len(set(targets)) == 1:
            coarse.update(range(first, last + 1))
    return LabelMap(values, others, coarse >= set(range(256)))


def shifted(count: int) -> LabelMap:
    """0 is ignored, 1 is class 0 and so on, and 255 is ignored, as mmsegmentation's reduce_zero_label."""
    return LabelMap({0: IGNORE, **{i + 1: i for i in range(count)}, 255: IGNORE}, None, False)


def write(values: Mapping[int, int]) -> str:
    """The shortest text that `parse` reads as these values."""
    runs: list[list[int]] = []  # first and last raw value, first class, step from class to class
    for raw, index in sorted(values.items()):
        if runs:
            first, last, start, step = runs[-1]
            steps = (0, 1) if first == last else (step,)
            fits = [s for s in steps if raw == last + 1 and index == start + s * (raw - first)]
            if fits and (fits[0] == 0 or IGNORE not in (start, index)):
                runs[-1] = [first, raw, start, fits[0]]
                continue
        runs.append([raw, raw, index, 0])
    show = lambda index: 'ignore' if index == IGNORE else str(index)
    return ','.join(
        (f'{first}:' if first == last else f'{first}-{last}:')
        + (f'{start}-{start + last - first}' if step else show(start))
        for first, last, start, step in runs
    )


def _range(text):
    """'3-5' -> (3, 5), '-3' -> (-3, -3); None if it is neither."""
    found = re.fullmatch(r'(-?\d+)(?:\s*-\s*(-?\d+))?', text, re.ASCII)
    return found and (int(found[1]), int(found[2] or found[1]))


def _targets(item, text, count, names):
    """The class index, or IGNORE, of each of `count` raw values."""
    if text == 'ignore' and text in names:
        raise ConfigError(
            f'dataset.label_map: {item!r} may mean the class ignore or that the value is ignored: write '
            f'{names.index(text)} for the class, or {IGNORE} to ignore it'
        )
    if text in names:
        return [names.index(text)] * count
    if text == 'ignore':
        return [IGNORE] * count
    first, last = _range(text) or (INVALID, INVALID)
    if first == last and (0 <= first < len(names) or first == IGNORE):
        return [first] * count
    if 0 <= first < last < len(names) and last - first + 1 == count:
        return list(range(first, last + 1))
    raise ConfigError(
        f'dataset.label_map: {item!r} names no class: write raw:class, where class is an index below '
        f'{len(names)}, ignore, or one of {", ".join(names)}; or two ranges of one length, such as 1-9:0-8'
    )
