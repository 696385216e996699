"""Reads lists of files: names, or an image and its label per line, in the forms that tools write."""

import csv
import functools
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ann_jax.data.disk import text_of
from ann_jax.errors import DataError

logger = logging.getLogger(__name__)

_SEPARATORS = ('', '\t', ';', '|', ',', ' ')  # '': the whole line is one name
_IMAGE_WORDS = (
    'image images img imgs filename file_name file image_path img_path image_file path name id'.split()
)
_LABEL_WORDS = (
    'label labels mask masks annotation annotations ann gt seg segmentation label_path mask_path '
    'annotation_path seg_map label_file mask_file target'
).split()
_SPLIT_WORDS = 'split subset set fold phase partition'.split()
_MOST_SPLITS = 10


class MixedSplitsError(DataError):
    """A list of several splits."""


class Row(NamedTuple):
    """A line of a list.

    Attributes:
        number: of the line, from 1.
        cells: a name, or an image and its label, as written.
    """

    number: int
    cells: tuple[str, ...]


def read_list(path: str | os.PathLike, known: Callable[[str], object], columns: int = 2) -> list[Row]:
    """Reads a list.

    Blank lines, comments (`#` at the start, or between blanks) and a line of headings are left out. Columns
    are separated by tabs, semicolons, bars, commas or blanks, whichever gives more names that are known.

    Args:
        path: of the list.
        known: whether a text names a file or a sample.
        columns: the most that a line may have.

    Raises:
        DataError: it cannot be read, or a line has more columns.
        MixedSplitsError: a column says that its lines belong to several splits.
    """
    lines = [(i, line.strip()) for i, line in enumerate(text_of(path, 'list').splitlines(), 1)]
    lines = [(i, line if known(line) else re.sub(r'(^#|\s+#\s).*', '', line)) for i, line in lines]
    lines = [(i, line) for i, line in lines if line]
    separator = _separator([line for _, line in lines[:50]], known)
    rows = [Row(i, tuple(_split(line, separator))) for i, line in lines]
    rows = [row for row in rows if row.cells]
    if rows and not any(map(known, rows[0].cells)):
        _refuse_splits(rows, path)
        rows = _without_headings(rows)
    for row in rows:
        if len(row.cells) > columns:
            raise DataError(
                f'line {row.number} of {path} has {len(row.cells)} columns: {" | ".join(row.cells)}; leave '
                + ('an image and its label' if columns == 2 else 'one path')
            )
    return rows


def _separator(lines, known):
    """The separator that gives the largest part of known names; the first if several do."""
    parts = dict.fromkeys(_SEPARATORS, 0.0)
    for line in lines:
        for separator in parts:
            cells = _split(line, separator)
            parts[separator] += sum(map(bool, map(known, cells))) / max(len(cells), 1)
    best = max(parts, key=lambda separator: parts[separator])
    if parts[best]:
        return best
    # Nothing exists, so that the form decides.
    pair = lambda cells: len(cells) > 1 and all(re.search(r'\.\w+$', cell) for cell in cells[:2])
    fits = (s for s in _SEPARATORS[1:] if lines and all(pair(_split(line, s)) for line in lines))
    return next(fits, '')


def _split(line, separator):
    if not separator:
        cells = [line[1:-1] if len(line) > 1 and line[0] == line[-1] == '"' else line]
    elif separator == ' ' and '"' not in line:
        cells = line.split()
        if len(cells) > 2:  # names with blanks: a file ends with its ending
            ends = re.split(r'(?<=\.\w{3})\s+|(?<=\.\w{4})\s+', line)
            cells = ends if len(ends) > 1 else cells
    else:
        cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
    cells = [cell.strip() for cell in cells]
    while cells and not cells[-1]:
        cells.pop()
    return cells


def _refuse_splits(rows, path):
    """Refuses a table whose lines belong to several splits, which would be mixed."""
    words = [cell.casefold() for cell in rows[0].cells]
    column = next((words.index(word) for word in _SPLIT_WORDS if word in words[1:]), None)
    if column is None:
        return
    parts = sorted({row.cells[column] for row in rows[1:] if len(row.cells) > column})
    if 1 < len(parts) <= _MOST_SPLITS:
        raise MixedSplitsError(
            f'{path} has a column {rows[0].cells[column]!r} of {", ".join(parts)}, which is not read: write '
            'the lines of each to a list of its own, such as train.csv and val.csv, and set '
            '--config.dataset.lists={split}.csv'
        )


def _without_headings(rows):
    """Removes a first line of headings, and all columns but those of the image and the label."""
    words = [re.sub(r'\W+', '_', cell.casefold()) for cell in rows[0].cells]
    image, label = (
        next((words.index(word) for word in names if word in words), None)
        for names in (_IMAGE_WORDS, _LABEL_WORDS)
    )
    if len(words) == 1:
        return rows if image is None and label is None else rows[1:]
    if image is not None and label is not None:
        last = max(image, label)
        return [
            Row(row.number, (row.cells[image], row.cells[label]) if len(row.cells) > last else row.cells)
            for row in rows[1:]
        ]
    path = re.compile(r'\.\w+$')
    titles = not any(map(path.search, rows[0].cells))
    below = all(path.search(cell) for row in rows[1:] for cell in row.cells)
    return rows[1:] if len(rows) > 1 and titles and below else rows


def find_file(text: str, folders: Sequence[str]) -> str | None:
    """Finds what a list names.

    Args:
        text: a path: absolute, or below one of the folders; with slashes or backslashes, and with `~` for the
            user's folder. Of an absolute one that does not exist, the end may lie below the root.
        folders: where to look, the root of the dataset first.

    Returns:
        The path below the root, or an absolute one, or None.
    """
    text = os.path.expanduser(text)
    for form in dict.fromkeys((text, *(unicodedata.normalize(form, text) for form in ('NFC', 'NFD')))):
        for path in dict.fromkeys((form, form.replace('\\', '/'))):
            if os.path.isabs(path) and os.path.isfile(path):
                return os.path.normpath(path)
            below = os.path.normpath(path.lstrip('/'))
            for number, folder in enumerate(folders):
                if os.path.isfile(os.path.join(folder, below)):
                    return os.path.abspath(os.path.join(folder, below)) if number else below
            # Of another computer: what follows some folder may be below the root here.
            parts = below.split('/') if re.match(r'/|[A-Za-z]:/', path) else []
            for start in range(1, len(parts) - 1):
                if re.search(r'\.\w{3,4}\b', parts[start - 1]):
                    break  # several paths
                if os.path.isfile(os.path.join(folders[0], *parts[start:])):
                    _note('/'.join(parts[:start]), folders[0])
                    return os.path.join(*parts[start:])
    return None


@functools.cache
def _note(before, root):
    logger.info(
        'a list names files in /%s, which is not there: those of the same names in %s are read', before, root
    )
