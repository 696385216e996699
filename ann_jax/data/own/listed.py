"""Finds the images and labels that lists name."""

import functools
import logging
import os

from ann_jax.data.disk import hidden
from ann_jax.data.folders import Found
from ann_jax.data.layout import Layout
from ann_jax.data.own.lists import find_file, read_list
from ann_jax.data.own.matching import looks_like_label
from ann_jax.data.own.naming import bare_key, key_of
from ann_jax.errors import DataError

logger = logging.getLogger(__name__)

_LOOKED_AT = 5  # lines that tell which column holds the labels


def from_list(found: Found, layout: Layout, root: str, path: str, folders: tuple[str, str]) -> Found:
    """The samples that a list names."""
    paths = {path: key for key, path in found.images.items()}
    around = os.path.dirname(path), os.path.dirname(os.path.abspath(root))
    locate = lambda text, folder: find_file(text, (root, os.path.join(root, folder), *around))
    endings = (found.naming or layout).image_endings

    def key(text):
        text = os.path.normpath(text.replace('\\', '/'))
        forms = text + '/', text, text + layout.image_endings[0]
        keys = [key_of(form, (*ends, '/')) for form in forms for ends in (endings, layout.image_endings)]
        return next((k for k in keys if k in found.images), None) or paths.get(
            _below(locate(text, folders[0]) or '', root)
        )

    rows = read_list(path, lambda text: bool(key(text) or any(locate(text, folder) for folder in folders)))
    if not any(len(row.cells) > 1 for row in rows):
        stem = lambda text: key_of(text, layout.image_endings) or bare_key(text)
        return found._replace(keys=[key(row.cells[0]) or stem(row.cells[0]) for row in rows])

    def paired(row):
        if len(row.cells) < 2:
            raise DataError(f'line {row.number} of {path} names {row.cells[0]} and no label: add it')
        image, label = (locate(*each) for each in zip(row.cells, folders, strict=True))
        return row, image or found.images.get(key(row.cells[0])), label

    turn = lambda row: row._replace(cells=row.cells[::-1])
    some = rows[:: -(-len(rows) // _LOOKED_AT)]
    if layout.own and _label_first(root, [paired(row) for row in some], [paired(turn(row)) for row in some]):
        logger.info('%s names the label before the image, and is read so', path)
        rows = [turn(row) for row in rows]
    return _from_pairs(root, path, [paired(row) for row in rows], folders)


def _label_first(root, pairs, turned):
    """Whether the first of two columns holds the labels, by what exists and what the pictures look like.

    Args:
        root: of the dataset.
        pairs: [(row, image, label)] of some lines, taken as an image and its label; None if there is none.
        turned: the same, taken as a label and its image.
    """
    if any(None in files for _, *files in turned):
        return False
    if all(None in files for _, *files in pairs):
        return True
    look = lambda path: looks_like_label(os.path.join(root, path))
    # In most lists the first look ends it.
    return all(look(image) is False and look(label) for _, image, label in turned[:1]) and all(
        image and label and look(label) is False and look(image) for _, image, label in pairs
    )


def _from_pairs(root, path, pairs, folders=()):
    """Samples of [(row, image, label)] of a list; what does not exist is None."""
    images: dict[str, str] = {}
    labels: dict[str, str] = {}
    keys, problems = [], []
    for row, *files in pairs:
        if None in files:
            text = row.cells[min(files.index(None), len(row.cells) - 1)]
            below = os.path.join(root, text.lstrip('/'))
            absent = f'line {row.number} of {path} names {below}, which does not exist'
            own = (folders[files.index(None)],) if folders else ()
            near = _near([os.path.join(root, folder, text.lstrip('/')) for folder in ('', *own)])
            cure = (
                f'there is {near}: write that instead, or rename it' if near else 'add it, or remove the line'
            )
            problems.append((bare_key(text), f'{absent}: {cure}'))
            continue
        image, label = (_below(file, root) for file in files)
        # A name twice is a sample twice; other files of the name are other samples.
        names = (
            bare_key(os.path.splitext(image)[0]),
            bare_key(image),
            f'{bare_key(image)} (line {row.number})',
        )
        name = next(n for n in names if (images.get(n, image), labels.get(n, label)) == (image, label))
        images[name], labels[name] = image, label
        keys.append(name)
    return Found(images, labels, keys, problems=tuple(problems))


def _near(paths):
    """A file with the name of one of these but for upper and lower case, or the ending; '' if none has it."""
    for path in paths:
        folder, name = os.path.split(path.replace('\\', '/'))
        names = [n for n in _names(folder) if not hidden(n)]
        for same in (str.casefold, lambda n: os.path.splitext(n)[0].casefold()):
            if found := next((n for n in names if same(n) == same(name)), ''):
                return os.path.join(folder, found)
    return ''


@functools.lru_cache(maxsize=4)
def _names(folder):
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def _below(path, root):
    """A path below the root as such, even if a list names it in full."""
    inside = os.path.relpath(path, root) if os.path.isabs(path) else path
    return path if inside.startswith('..') else inside


def from_two_lists(root: str, image_list: str, label_list: str) -> Found:
    """Pairs line n of one list with line n of the other."""
    found = []
    for name in (image_list, label_list):
        path = os.path.join(root, name)
        if not os.path.isfile(path):
            return Found({}, {}, None, missing=path)
        folders = root, os.path.dirname(path), os.path.dirname(os.path.abspath(root))
        locate = functools.partial(find_file, folders=folders)
        found.append([(row, locate(row.cells[0])) for row in read_list(path, locate, columns=1)])
    if len(found[0]) != len(found[1]):
        counts = f'{image_list} lists {len(found[0])} images, {label_list} {len(found[1])} labels'
        raise DataError(f'{counts} in {root}: line n of one must belong to line n of the other')
    pairs = []
    for (row, image), (label_row, label) in zip(*found, strict=True):
        pairs.append((row._replace(cells=row.cells + label_row.cells), image, label))
    return _from_pairs(root, os.path.join(root, image_list), pairs)
