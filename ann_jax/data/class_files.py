"""Reads the names and colours of classes: from a list, a number, or a text file."""

import os

from ann_jax.data.classes import INVALID
from ann_jax.errors import ConfigError


def parse_classes(text: str, root: str) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Returns the names and the colours, () if there are none.

    Args:
        text: names separated by commas; or their number; or a text file (in the current folder or below
            `root`) with a name per line, optionally followed by red, green and blue.
        root: folder of the dataset.

    Raises:
        ConfigError: there are no classes or too many, a name or colour appears twice, or only some classes
            have colours.
    """
    wrong = lambda why: ConfigError(
        f'dataset.classes={text!r}: {why}; give names separated by commas, their number, or a text file '
        'with a name per line'
    )
    colors = ()
    path = next((p for p in (text, os.path.join(root, text)) if os.path.isfile(os.path.expanduser(p))), None)
    if path:
        with open(os.path.expanduser(path), encoding='utf-8-sig') as file:
            lines = [line.strip() for line in file if line.strip()]
        names, colors = zip(*map(_split_color, lines), strict=True) if lines else ((), ())
        if any(colors) and not all(colors):
            raise wrong(f'{names[colors.index(())]!r} has no colour')
        colors = colors if any(colors) else ()
    elif text.strip().isdigit():
        names = tuple(f'class {i}' for i in range(int(text)))
    elif text.endswith('.txt'):
        raise wrong('there is no such file')
    else:
        names = tuple(name.strip() for name in text.split(',') if name.strip())
    if not 0 < len(names) <= INVALID:
        raise wrong(f'there are {len(names)} classes, of at most {INVALID}')
    for kind, values in (('class', names), ('colour', colors)):
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise wrong(f'the {kind} {twice[0]} appears twice')
    return names, colors


def _split_color(line):
    """'road 128 64 128', separated by blanks or commas -> ('road', (128, 64, 128))."""
    words = line.replace(',', ' ').split()
    if len(words) > 3 and all(word.isdigit() and int(word) < 256 for word in words[-3:]):
        return ' '.join(words[:-3]), tuple(map(int, words[-3:]))
    return line, ()
