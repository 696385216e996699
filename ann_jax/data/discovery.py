"""Finds out how a folder of images and labels is laid out, so that settings can be written for it."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePath

import numpy as np

from ann_jax.data.classes import LISTS
from ann_jax.data.disk import walk
from ann_jax.data.images import IMAGE_ENDINGS
from ann_jax.data.lists import find_file, read_list
from ann_jax.data.naming import LABEL_ENDINGS, Naming, candidates, key_of
from ann_jax.data.reading import open_picture, read_file
from ann_jax.errors import DataError

_TRAIN = ('train', 'training', 'trn', 'default', 'trainval')
_VAL = ('val', 'valid', 'validation', 'dev', 'eval')
_TEST = ('test', 'testing', 'tst')
_SPLIT = re.compile(
    r'(?<![A-Za-z])(trainval|training|train|trn|validation|valid|val|dev|eval|testing|test|tst|default)'
    r'(?=[^A-Za-z]|annot|mask|label|$)',
    re.IGNORECASE,
)
_LABEL_DIR = re.compile(
    r'mask|label|annot|ann_dir|(^|[^a-z])(gt|lbl|seg|ann)|semantic|truth|manual|target', re.I
)
_IMAGE_DIR = re.compile(r'image|img|jpe?g|photo|picture|rgb|sat|input|raw|frame|leftimg8bit', re.I)
# Pictures of labels that are for people, or tell apart what class maps do not.
_OTHER_DIR = re.compile(
    r'object|instance|human|overlay|colou?r|visual|depth|dispar|panoptic|preview|merged|rgb', re.I
)
_MOST_FOLDERS = 60
_MOST_VALUES = 128  # of one label; photographs have more
_SEVERAL = 4  # folders beside each other that are parts of one, such as cities


@dataclass
class Plan:
    """How the files of a folder are found: values of the settings of `dataset`, and what is there."""

    images: str = ''
    labels: str = ''
    lists: str = ''
    image_ending: str = ''
    label_ending: str = '.png'
    train_split: str = 'train'
    eval_split: str = 'val'
    val_share: float = 0.0
    others: list[str] = field(default_factory=list)  # further splits with labels
    alternatives: list[str] = field(default_factory=list)  # further folders that may hold the labels
    # split -> [(image, label)], below the root, if no settings but lists of these describe it
    pairs: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def settings(self) -> dict[str, str | float]:
        """The settings, without `root`."""
        return {
            key: value for key, value in vars(self).items() if key not in ('others', 'alternatives', 'pairs')
        }


def discover(root: str) -> Plan | None:
    """Finds images and labels that belong together, and the splits; None if there are none."""
    tree = {_posix(os.path.relpath(where, root)): names for where, names in walk(root)}
    plan = _from_pairs(root, tree)
    if plan is None:
        plan = _from_folders(root, tree)
        if plan and '{split}' not in plan.images:
            _add_lists(plan, root, tree)
    return plan


def _posix(path):
    return PurePath(path).as_posix()


def split_of(path: str) -> tuple[str, str]:
    """A path with {split} in place of the name of a split, and that name ('' if there is none)."""
    parts = path.split('/')
    # The last: the folder of a dataset may have such a name too.
    found = next((m[1] for part in reversed(parts) for m in [_SPLIT.search(part)] if m), '')
    if not found:
        return path, ''
    exact = re.compile(rf'(?<![A-Za-z]){re.escape(found)}(?=[^A-Za-z]|annot|mask|label|$)')
    return '/'.join(exact.sub('{split}', part) for part in parts), found


def _choose_splits(plan: Plan, splits: Iterable[str]) -> bool:
    """Sets the splits of training and evaluation; False if there is no split for training."""
    by_name = {name.lower(): name for name in sorted(splits)}
    first = lambda names: next((by_name[name] for name in names if name in by_name), '')
    train, val = first(_TRAIN), first(_VAL)
    if not train:
        return False
    plan.train_split, plan.eval_split = train, val or 'val'
    plan.val_share = 0.0 if val else 0.1
    plan.others = sorted(set(by_name.values()) - {train, val})
    return True


# --- Lists


def _lists(tree):
    """{template: {split: path}} of files that may be lists."""
    found: dict[str, dict[str, str]] = {}
    for folder, names in tree.items():
        for name in names:
            if name.lower().endswith(LISTS) and folder.count('/') < 3:
                path = name if folder == '.' else f'{folder}/{name}'
                template, split = split_of(path)
                found.setdefault(template, {})[split] = path
    return found


def _rows(root, path, known):
    try:
        return read_list(os.path.join(root, path), known, columns=1000)[:200]
    except DataError:
        return []


def _from_pairs(root, tree):
    """A plan by lists of images and labels, if there are any."""
    for template, splits in sorted(_lists(tree).items(), key=lambda item: '{split}' not in item[0]):
        good = []
        for split, path in splits.items():
            folders = (
                root,
                os.path.dirname(os.path.join(root, path)),
                os.path.dirname(os.path.abspath(root)),
            )
            known = lambda text, folders=folders: (
                text.lower().endswith(LABEL_ENDINGS) and find_file(text, folders)
            )
            rows = _rows(root, path, known)
            if rows and all(len(row.cells) == 2 and all(map(known, row.cells)) for row in rows):
                good.append(split)
        plan = Plan(images='.', labels='.', lists=template)
        if good == ['']:
            plan.val_share = 0.1
            return plan
        if good and _choose_splits(plan, good):
            return plan
    return None


def _add_lists(plan, root, tree):
    """Adds the lists of names that tell the splits of one folder of images."""
    endings = (plan.image_ending,) if plan.image_ending else IMAGE_ENDINGS
    names = _names(tree, plan.images)
    keys = {key_of(name, endings) for name in names} | set(names)
    known = lambda text: _posix(os.path.normpath(text.replace('\\', '/'))) in keys
    best, most = None, 0
    for template, splits in _lists(tree).items():
        counts = {}
        for split, path in splits.items():
            rows = _rows(root, path, known)
            if rows and all(len(row.cells) == 1 and known(row.cells[0]) for row in rows):
                counts[split] = len(rows)
        trial = Plan(**{**vars(plan), 'lists': template})
        if sum(counts.values()) > most and '' not in counts and _choose_splits(trial, counts):
            best, most = trial, sum(counts.values())
    if best:
        vars(plan).update(vars(best))


# --- Folders


def _names(tree, folder):
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


def _picture_folders(tree):
    """Folders that hold pictures; many folders beside each other count as the one that they lie in."""
    folders = [
        f
        for f, names in tree.items()
        if any(n.lower().endswith((*IMAGE_ENDINGS, *LABEL_ENDINGS)) for n in names)
    ]
    while crowded := _crowded(folders):
        folders = sorted({_parent(folder) if _parent(folder) in crowded else folder for folder in folders})
    return folders[:_MOST_FOLDERS]


def _parent(folder):
    """The folder around one whose name says nothing; '' if it says something."""
    around, _, name = folder.rpartition('/')
    said = any(pattern.search(name) for pattern in (_SPLIT, _LABEL_DIR, _IMAGE_DIR))
    return '' if said or folder == '.' else around or '.'


def _crowded(folders):
    counts = Counter(filter(None, map(_parent, folders)))
    return {parent for parent, count in counts.items() if count >= _SEVERAL}


def _from_folders(root, tree):
    """A plan by the folders that fit each other best."""
    groups: dict[str, dict[str, str]] = {}
    for folder in _picture_folders(tree):
        template, split = split_of(folder)
        groups.setdefault(template, {})[split] = folder
    ranked = []
    for images, image_folders in groups.items():
        for labels, label_folders in groups.items():
            for split in sorted(image_folders.keys() & label_folders.keys(), key=_order)[:1]:
                folders = image_folders[split], label_folders[split]
                if found := _pair(tree, *folders):
                    ranked.append((_rank(root, *folders, *found), images, labels, found[0]))
    # What the pictures look like says more than their number, and that more than names.
    looks = max((rank[:3] for rank, *_ in ranked), default=(False,))
    ranked = [entry for entry in ranked if entry[0][:3] == looks and looks[0]]
    most = max((rank[-1] for rank, *_ in ranked), default=0)
    ranked = [entry for entry in ranked if 2 * entry[0][-1] > most]
    if not ranked:
        return None
    _, images, labels, naming = max(ranked, key=lambda entry: entry[0])
    plan = Plan()
    paired = lambda i, l: {
        split: found[1]
        for split in groups[i].keys() & groups[l].keys()
        if (found := _pair(tree, groups[i][split], groups[l][split]))
    }
    alike = [(i, l) for _, i, l, n in ranked if n == naming and _relation(i, l) == _relation(images, labels)]
    both = {split: found for pair in alike for split, found in paired(*pair).items()}
    unused = {l for _, i, l, _ in ranked if (i, l) not in alike and i == images and not _OTHER_DIR.search(l)}
    plan.alternatives = sorted(unused - {images, *(l for _, l in alike)})
    if not ('' not in both and _choose_splits(plan, both)):  # the name of a split stands for none
        plan.val_share = 0.1
    if naming is None or len(alike) > 1:
        if images == labels and naming:
            images = labels = os.path.commonpath([i for i, _ in alike]) or '.'
        else:
            for pair in alike:
                for split, found in paired(*pair).items():
                    split = split if '{split}' in images else plan.train_split
                    plan.pairs.setdefault(split, []).extend(sorted(found.values()))
            return plan
    if '{split}' in images and '' not in both and plan.train_split not in both:
        split = min(both, key=_order)
        images, labels = groups[images][split], groups[labels][split]
    plan.label_ending = naming.label_ending
    if naming.image_endings[0] not in IMAGE_ENDINGS:
        used = {image.lower() for found in both.values() for image, _ in found.values()}
        endings = [e for e in naming.image_endings if any(image.endswith(e.lower()) for image in used)]
        if len(endings) == 1:
            plan.image_ending = endings[0]
        else:  # no setting names several, but reading finds them
            plan.label_ending = '.png'
    # Subfolders of one name on both sides: images/train/x and labels/train/x.
    while images != labels and '/' in images and '/' in labels:
        (image_parent, _, name), (label_parent, _, other) = images.rpartition('/'), labels.rpartition('/')
        if name != other or '{split}' in name:
            break
        images, labels = image_parent, label_parent
    plan.images, plan.labels = images, labels
    return plan


def _relation(images, labels):
    """What tells the folder of labels from that of images: ('images', 'masks') for x/images and x/masks."""
    if images == labels:
        return '', ''
    one, other = images.split('/'), labels.split('/')
    if '{split}' in (one[-1], other[-1]) or one[-1] == other[-1]:
        return images, labels
    while len(one) > 1 and len(other) > 1 and one[0] == other[0]:
        del one[0], other[0]
    return '/'.join(one), '/'.join(other)


def _order(split):
    """Splits from that of training to none."""
    names = (*_TRAIN, *_VAL, *_TEST, '')
    return names.index(split.lower()) if split.lower() in names else len(names)


def _pair(tree, images, labels):
    """(naming, {key: (image, label)}) of the files of two folders, or None.

    The naming is None if no endings tell what belongs together.
    """
    shared = images == labels
    image_names, label_names = _names(tree, images), _names(tree, labels)
    join = lambda folder, name: name if folder == '.' else f'{folder}/{name}'
    if not shared:
        image_names = [n for n in image_names if not _inside(join(images, n), labels, images)]
        label_names = [n for n in label_names if not _inside(join(labels, n), images, labels)]
    usual = Naming(IMAGE_ENDINGS, '.png')
    keys = lambda names, endings: {k: n for n in names if (k := key_of(n, endings)) is not None}
    plain = not shared and keys(image_names, IMAGE_ENDINGS).keys() & keys(label_names, ('.png',)).keys()
    options = [usual] if plain else candidates(image_names, label_names, usual, shared)
    # Of several kinds of labels, the one whose values are classes.
    other = lambda n: (bool(_OTHER_DIR.search(n.label_ending)), 'trainids' not in n.label_ending.lower())
    naming, one, two = None, {}, {}
    if options:
        naming = min(options, key=other)
        two = keys(label_names, (naming.label_ending,))
        taken = set(two.values()) if shared else set()
        one = keys([n for n in image_names if n not in taken], naming.image_endings)
    elif not shared:
        one, two = _without_words(image_names, IMAGE_ENDINGS), _without_words(label_names, LABEL_ENDINGS)
    common = one.keys() & two.keys()
    if not common or not options and 2 * len(common) <= len(two):
        return None
    return naming, {key: (join(images, one[key]), join(labels, two[key])) for key in common}


def _inside(path, folder, around):
    """Whether a path lies in a folder that lies in another."""
    return (around == '.' or folder.startswith(around + '/')) and path.startswith(folder + '/')


def _without_words(names, endings):
    """Names without the word that all begin with: image_1 and mask_1 become 1."""
    stems = {key: n for n in names if (key := key_of(n, endings)) is not None}
    word = re.match(r'[^\W\d_]+[-_. ]*', os.path.commonprefix(list(stems)))
    cut = len(word[0]) if word else 0
    return {key[cut:]: n for key, n in stems.items() if key[cut:]}


def _rank(root, images, labels, naming, found):
    """How well two folders fit: what their pictures look like, what their names say, and how many pairs."""
    some = [found[key] for key in sorted(found)[:: max(1, len(found) // 5)][:5]]
    photos, drawn = ([_looks_like_label(os.path.join(root, pair[n])) for pair in some] for n in (0, 1))
    mostly = lambda looks: 2 * sum(map(bool, looks)) >= len([look for look in looks if look is not None])
    word = lambda pattern, text: bool(pattern.search(text))
    last = labels if images != labels or naming is None else naming.label_ending
    said = (
        word(_LABEL_DIR, last)
        - 2 * word(_OTHER_DIR, last)
        + word(_IMAGE_DIR, images)
        - word(_LABEL_DIR, images)
    )
    return mostly(drawn), naming is not None, not mostly(photos), said, len(found)


def _looks_like_label(path):
    """Whether a picture has few values or colours; None if it cannot be read."""
    try:
        with open_picture(read_file(path, 'label'), path, 'label') as image:
            array = np.asarray(image)[::4, ::4]
    except DataError:
        return None
    if array.ndim == 3:
        return len(np.unique(array.reshape(-1, array.shape[2]), axis=0)) <= _MOST_VALUES
    return len(np.unique(array)) <= _MOST_VALUES
