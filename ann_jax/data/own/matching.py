"""Tells which folders of a tree hold images and which their labels, by names and contents."""

import os
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

from ann_jax.data.decode.images import IMAGE_ENDINGS
from ann_jax.data.decode.reading import open_picture, read_file
from ann_jax.data.own.naming import LABEL_ENDINGS, Naming, candidates, key_of
from ann_jax.errors import DataError

SPLIT = re.compile(
    r'(?<![A-Za-z])(trainval|training|train|trn|validation|valid|val|dev|eval|testing|test|tst|default)'
    r'(?=[^A-Za-z]|annot|mask|label|$)',
    re.IGNORECASE,
)
LABEL_DIR = re.compile(
    r'mask|label|annot|ann_dir|(^|[^a-z])(gt|lbl|seg|ann)|semantic|truth|manual|target', re.I
)
_IMAGE_DIR = re.compile(r'image|img|jpe?g|photo|picture|rgb|sat|input|raw|frame|leftimg8bit', re.I)
# Pictures of labels that are for people, or tell apart what class maps do not.
OTHER_DIR = re.compile(
    r'object|instance|human|overlay|colou?r|visual|depth|dispar|panoptic|preview|merged|rgb', re.I
)
_MOST_VALUES = 128  # of one label; photographs have more
_SMALL = 1 << 18  # values of a picture that are all looked at
_SEVERAL = 4  # folders beside each other that are parts of one, such as cities
Tree = dict[str, list[str]]  # folder below the root, '.' for itself -> names of its files


def names_below(tree: Tree, folder: str) -> list[str]:
    """Paths of all files below a folder, relative to it."""
    if folder == '.':
        inside = tree.items()
        return [name if where == '.' else f'{where}/{name}' for where, names in inside for name in names]
    found = []
    for where, names in tree.items():
        if where == folder or where.startswith(folder + '/'):
            below = where[len(folder) + 1 :]
            found += [f'{below}/{name}' if below else name for name in names]
    return found


def picture_folders(tree: Tree) -> list[str]:
    """Folders that hold pictures; many folders beside each other count as the one that they lie in."""
    endings = (*IMAGE_ENDINGS, *LABEL_ENDINGS)
    folders = [folder for folder, names in tree.items() if any(n.lower().endswith(endings) for n in names)]
    while crowded := _crowded(folders):
        folders = sorted({_parent(folder) if _parent(folder) in crowded else folder for folder in folders})
    return folders


def _parent(folder):
    """The folder around one whose name says nothing; '' if it says something."""
    around, _, name = folder.rpartition('/')
    said = any(pattern.search(name) for pattern in (SPLIT, LABEL_DIR, _IMAGE_DIR))
    return '' if said or folder == '.' else around or '.'


def _crowded(folders):
    counts = Counter(filter(None, map(_parent, folders)))
    return {parent for parent, count in counts.items() if count >= _SEVERAL}


def pair(tree: Tree, images: str, labels: str) -> tuple[Naming | None, dict[str, tuple[str, str]]] | None:
    """(naming, {key: (image, label)}) of the files of two folders, or None.

    The naming is None if no endings tell what belongs together.
    """
    shared = images == labels
    image_names, label_names = names_below(tree, images), names_below(tree, labels)
    join = lambda folder, name: name if folder == '.' else f'{folder}/{name}'
    if not shared:
        image_names = [n for n in image_names if not _inside(join(images, n), labels, images)]
        label_names = [n for n in label_names if not _inside(join(labels, n), images, labels)]
    usual = Naming(IMAGE_ENDINGS, '.png')
    keys = lambda names, endings: {k: n for n in names if (k := key_of(n, endings)) is not None}
    plain = not shared and keys(image_names, IMAGE_ENDINGS).keys() & keys(label_names, ('.png',)).keys()
    options = [usual] if plain else candidates(image_names, label_names, usual, shared)
    # Of several kinds of labels, the one whose values are classes.
    other = lambda n: (bool(OTHER_DIR.search(n.label_ending)), 'trainids' not in n.label_ending.lower())
    naming, one, two = None, {}, {}
    if options:
        naming = min(options, key=other)
        two = keys(label_names, (naming.label_ending,))
        taken = set(two.values()) if shared else set()
        one = keys([n for n in image_names if n not in taken], naming.image_endings)
    elif not shared:
        # The word before the rest is on both, as in image_1 and mask_1, or on one, as in a_1 and mask_a_1.
        ways = [
            (_without_words(image_names, IMAGE_ENDINGS, i), _without_words(label_names, LABEL_ENDINGS, l))
            for i, l in ((True, True), (False, True), (True, False))
        ]
        one, two = max(ways, key=lambda way: len(way[0].keys() & way[1].keys()))
    common = one.keys() & two.keys()
    if not common or not options and 2 * len(common) <= len(two):
        return None
    return naming, {key: (join(images, one[key]), join(labels, two[key])) for key in common}


def _inside(path, folder, around):
    """Whether a path lies in a folder that lies in another."""
    return (around == '.' or folder.startswith(around + '/')) and path.startswith(folder + '/')


def _without_words(names, endings, cut_off):
    """Names by what is left without the word that all begin with, if it is cut off: image_1 becomes 1."""
    stems = {key: n for n in names if (key := key_of(n, endings)) is not None}
    word = re.match(r'[^\W\d_]+[-_. ]*', os.path.commonprefix(list(stems)))
    cut = len(word[0]) if word and cut_off else 0
    return {key[cut:]: n for key, n in stems.items() if key[cut:]}


class Rank(NamedTuple):
    """How well two folders fit; what comes first weighs most."""

    drawn: bool  # most labels have few values or colours
    named: bool  # endings tell what belongs together
    photos: bool  # most images have many
    words: int  # in the names of the folders, that say images and labels
    pairs: int

    @property
    def looks(self) -> tuple[bool, bool, bool]:
        """What the files themselves show, whatever the folders are called."""
        return self.drawn, self.named, self.photos


def rank(
    root: str, images: str, labels: str, naming: Naming | None, found: dict[str, tuple[str, str]]
) -> Rank:
    """Ranks two folders by some of their pictures, their names and the number of pairs."""
    some = [found[key] for key in sorted(found)[:: max(1, len(found) // 5)][:5]]
    photos, drawn = ([_count_values(os.path.join(root, pair[n])) for pair in some] for n in (0, 1))
    mostly = lambda counts: 2 * sum(map(_few, counts)) >= len([count for count in counts if count])
    word = lambda pattern, text: bool(pattern.search(text))
    last = labels if images != labels or naming is None else naming.label_ending
    said = (
        word(LABEL_DIR, last) - 2 * word(OTHER_DIR, last) + word(_IMAGE_DIR, images) - word(LABEL_DIR, images)
    )
    blank = all(count == 1 for count in drawn)  # a field of view, say
    return Rank(
        drawn=mostly(drawn),
        named=naming is not None,
        photos=not mostly(photos),
        words=said - 2 * blank,
        pairs=len(found),
    )


def looks_like_label(path: str) -> bool | None:
    """Whether a picture has few values or colours; None if it cannot be read."""
    count = _count_values(path)
    return _few(count) if count else None


def _few(count):
    return 0 < count <= _MOST_VALUES


def _count_values(path):
    """Number of values or colours in a picture, of some of its pixels; 0 if it cannot be read."""
    try:
        with open_picture(read_file(path, 'label'), path, 'label') as image:
            array = np.asarray(image)
            array = array[::4, ::4] if array.size > _SMALL else array
    except DataError:
        return 0
    return len(np.unique(array.reshape(-1, *array.shape[2:]), axis=0))
