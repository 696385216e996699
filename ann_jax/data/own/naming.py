"""Tells by their names which files are images, which are labels, and which belong together."""

import bisect
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

LABEL_ENDINGS = ('.png', '.gif', '.bmp', '.tif', '.tiff', '.webp', '.jpg', '.jpeg')
_LABEL_WORD = re.compile(r'mask|label|lbl|seg|ann|gt|ground.?truth|target|matte|L\.', re.IGNORECASE)


class Naming(NamedTuple):
    """The endings of images and of labels; without them, an image and its label have one name."""

    image_endings: tuple[str, ...]
    label_ending: str


def key_of(name: str, endings: Iterable[str]) -> str | None:
    """What an image and its label have in common: the path without its ending; None if it has none of them.

    Paths have slashes on every system, and accents are composed: some systems store them as two characters.
    """
    stem = without_ending(name, endings)
    return (
        None
        if stem == name or not os.path.basename(stem)
        else unicodedata.normalize('NFC', stem.replace(os.sep, '/'))
    )


def bare_key(name: str) -> str:
    """As `key_of`, of a name that has no ending to remove."""
    return key_of(name + '/', ('/',)) or ''


def without_ending(name: str, endings: Iterable[str]) -> str:
    """Removes the first of the endings that matches, in upper or lower case, from a name."""
    found = next((e for e in endings if name.lower().endswith(e.lower())), '')
    return name[: len(name) - len(found)]


def candidates(
    images: Sequence[str], labels: Sequence[str], naming: Naming, shared: bool = False
) -> list[Naming]:
    """The endings by which most labels belong to an image: none, one, or several if it cannot be told.

    Args:
        images: names of the files in the folder of images.
        labels: names of the files in the folder of labels.
        naming: the endings that were expected.
        shared: whether both are one folder.
    """
    labels = [name for name in labels if name.lower().endswith(LABEL_ENDINGS)]
    if shared:
        names = sorted({*labels, *(name for name in images if name.lower().endswith(naming.image_endings))})
        return _two_endings(names, naming) or _two_words(names) or _longer_names(names, naming)
    images = [name for name in images if name.lower().endswith(naming.image_endings)]
    for suffix in _common_suffixes(images):
        endings = tuple(suffix + ending for ending in naming.image_endings)
        keys = {key for key in (key_of(name, endings) for name in images) if key is not None}
        if found := _label_endings(keys, labels, len(labels), plain=True):
            return [Naming(endings, ending) for ending in found]
    return []


def _label_endings(keys, labels, total, plain):
    """What follows the keys in the names of most of `total` labels; several if there are several kinds."""
    forms = sorted(unicodedata.normalize('NFC', name.replace(os.sep, '/')) for name in labels)
    known = set(forms)
    votes: set[str] = set()
    for key in sorted(keys)[:50]:
        place = bisect.bisect_left(forms, key)
        votes.update(name[len(key) :] for name in forms[place : place + 50] if name.startswith(key))
    matched = {}
    for ending in votes:
        word, is_longer = os.path.splitext(ending)
        # Not by a number, as in a_1.jpg and a_2.png, which says that they differ.
        if re.search(r'[^\W\d_]', word) if is_longer else plain:
            matched[ending] = sum(key + ending in known for key in keys)
    most = max(matched.values(), default=0)
    # Of several kinds, such as of classes and of instances, there are as many labels as images each.
    kinds = sorted(ending for ending, count in matched.items() if 2 * count > most)
    return kinds if 2 * sum(matched[kind] for kind in kinds) > total else []


def _common_suffixes(names):
    """'' and the words that all names end with, such as _sat, from short to long."""
    stems = [os.path.splitext(os.path.basename(name))[0] for name in names]
    common = os.path.commonprefix([stem[::-1] for stem in stems])[::-1]
    suffixes = [common[match.start() :] for match in re.finditer(r'[-_. ]', common)]
    left_over = lambda suffix: all(len(stem) > len(suffix) for stem in stems)
    return ['', *(s for s in reversed(suffixes) if re.search(r'[^\W\d_]', s) and left_over(s))]


def _two_endings(names, naming):
    """a.jpg and a.png in one folder: the image and the label are told apart by their endings."""
    kinds: dict[str, set[str]] = {}
    for name in names:
        stem, ending = os.path.splitext(name)
        kinds.setdefault(unicodedata.normalize('NFC', stem), set()).add(ending.lower())
    pairs = [pair for pair in kinds.values() if len(pair) > 1]
    for label in dict.fromkeys((naming.label_ending.lower(), '.png', '.gif', '.bmp')):
        if pairs and all(label in pair and len(pair) == 2 for pair in pairs):
            return [Naming(tuple(e for e in naming.image_endings if e != label), label)]
    return []


def _two_words(names):
    """a_sat.jpg and a_mask.png in one folder: one of two words says that it is a label."""
    keys: dict[str, set[str]] = {}
    for name in names:
        if match := re.fullmatch(r'(.+)([-_. ][^-_. /\\]+\.\w+)', name):
            keys.setdefault(match[2], set()).add(match[1])
    endings = sorted(keys, key=lambda ending: -len(keys[ending]))[:2]
    if len(endings) < 2 or 4 * len(keys[endings[0]] & keys[endings[1]]) <= len(names):
        return []
    said = [ending for ending in endings if _LABEL_WORD.match(ending[1:])]
    return [Naming((other,), said[0]) for other in endings if other != said[0]] if len(said) == 1 else []


def _longer_names(names, naming):
    """a.png and a_mask.png in one folder: the label has the name of the image and a word more."""
    keys = {unicodedata.normalize('NFC', os.path.splitext(name)[0].replace(os.sep, '/')) for name in names}
    found = _label_endings(keys, names, len(names) / 2 - 1, plain=False)
    return [Naming(naming.image_endings, ending) for ending in found]
