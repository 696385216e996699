"""Finds out how a folder of images and labels is laid out, so that settings can be written for it."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import NamedTuple

from ann_jax.data.decode.images import IMAGE_ENDINGS
from ann_jax.data.disk import walk
from ann_jax.data.layout import LISTS
from ann_jax.data.own.lists import MixedSplitsError, find_file, read_list
from ann_jax.data.own.matching import (
    LABEL_DIR,
    OTHER_DIR,
    SPLIT,
    Rank,
    Tree,
    names_below,
    pair,
    picture_folders,
    rank,
)
from ann_jax.data.own.naming import LABEL_ENDINGS, Naming, key_of
from ann_jax.errors import DataError

_MOST_FOLDERS = 60  # that are tried with each other
_TRAIN = ('train', 'training', 'trn', 'default', 'trainval')
_VAL = ('val', 'valid', 'validation', 'dev', 'eval')
_TEST = ('test', 'testing', 'tst')


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
    found = next((m[1] for part in reversed(parts) for m in [SPLIT.search(part)] if m), '')
    if not found:
        return path, ''
    exact = re.compile(rf'(?<![A-Za-z]){re.escape(found)}(?=[^A-Za-z]|annot|mask|label|$)')
    return '/'.join(exact.sub('{split}', part) for part in parts), found


def are_one_split(one: str, other: str) -> bool:
    """Whether two names mean one split, as trn and train do, or val and validation."""
    one, other = one.lower(), other.lower()
    return any(one in names and other in names for names in (_TRAIN, _VAL, _TEST, (one,)))


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
    except MixedSplitsError:
        raise
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
    names = names_below(tree, plan.images)
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


_Groups = dict[str, dict[str, str]]  # template of a folder -> {split: folder}
_Pairs = dict[str, tuple[str, str]]  # what is common to the names -> (image, label), below the root


class _Fit(NamedTuple):
    """Folders, as templates, of which at least one split pairs up."""

    rank: Rank
    images: str
    labels: str
    naming: Naming | None


def _from_folders(root: str, tree: Tree) -> Plan | None:
    """A plan by the folders that fit each other best."""
    groups: _Groups = {}
    for folder in picture_folders(tree):
        template, split = split_of(folder)
        groups.setdefault(template, {})[split] = folder
    fits = _likely(_fits(root, tree, groups))
    if not fits:
        return None
    best = max(fits, key=lambda fit: fit.rank)
    images, labels, naming = best.images, best.labels, best.naming
    alike = _paired_alike(tree, groups, best)
    both = {split: pairs for splits in alike.values() for split, pairs in splits.items()}
    plan = Plan()
    others = {fit.labels for fit in fits if fit.images == images and not OTHER_DIR.search(fit.labels)}
    plan.alternatives = sorted(others - {images, *(l for _, l in alike)})
    if '' in both or not _choose_splits(plan, both):  # the name of a split stands for none
        plan.val_share = 0.1
    if naming is None or len(alike) > 1:
        if images == labels and naming:
            images = labels = os.path.commonpath([i for i, _ in alike]) or '.'
        else:
            for splits in alike.values():
                for split, pairs in splits.items():
                    split = split if '{split}' in images else plan.train_split
                    plan.pairs.setdefault(split, []).extend(sorted(pairs.values()))
            return plan
    if '{split}' in images and '' not in both and plan.train_split not in both:
        split = min(both, key=_order)
        images, labels = groups[images][split], groups[labels][split]
    used = [image for pairs in both.values() for image, _ in pairs.values()]
    plan.image_ending, plan.label_ending = _endings(naming, used)
    plan.images, plan.labels = _above_one_name(images, labels)
    return plan


def _fits(root: str, tree: Tree, groups: _Groups) -> list[_Fit]:
    """All folders that pair up, by the split of each that is most likely that of training."""
    fits = []
    some = list(groups.items())[:_MOST_FOLDERS]  # the others are like these, see `_alike`
    for images, image_folders in some:
        for labels, label_folders in some:
            for split in sorted(image_folders.keys() & label_folders.keys(), key=_order)[:1]:
                folders = image_folders[split], label_folders[split]
                if found := pair(tree, *folders):
                    fits.append(_Fit(rank(root, *folders, *found), images, labels, found[0]))
    return fits


def _likely(fits: list[_Fit]) -> list[_Fit]:
    """Those that look most like images and their labels, and have more than half of the most pairs.

    What the pictures look like says more than their number, and that more than names.
    """
    # Without photographs, labels of one kind are no images of those of another.
    fits = [fit for fit in fits if fit.rank.photos or not LABEL_DIR.search(fit.images)]
    looks = max((fit.rank.looks for fit in fits), default=None)
    fits = [fit for fit in fits if fit.rank.looks == looks and fit.rank.drawn]
    most = max((fit.rank.pairs for fit in fits), default=0)
    return [fit for fit in fits if 2 * fit.rank.pairs > most]


def _paired_alike(tree: Tree, groups: _Groups, best: _Fit) -> dict[tuple[str, str], dict[str, _Pairs]]:
    """{(images, labels): {split: pairs}} of all folders that relate as the best do."""
    alike = {}
    for images, labels in _alike(best.images, best.labels, groups):
        splits = {
            split: found[1]
            for split in groups[images].keys() & groups[labels].keys()
            if (found := pair(tree, groups[images][split], groups[labels][split])) and found[0] == best.naming
        }
        if splits:
            alike[images, labels] = splits
    return alike


def _endings(naming: Naming, images: Iterable[str]) -> tuple[str, str]:
    """The settings `image_ending` and `label_ending` for a naming of these images."""
    if naming.image_endings[0] in IMAGE_ENDINGS:
        return '', naming.label_ending
    lowered = {image.lower() for image in images}
    used = [e for e in naming.image_endings if any(image.endswith(e.lower()) for image in lowered)]
    # No setting names several, but reading finds them.
    return (used[0], naming.label_ending) if len(used) == 1 else ('', '.png')


def _above_one_name(images: str, labels: str) -> tuple[str, str]:
    """The folders above two that end in one name: images and labels, of images/x and labels/x."""
    while images != labels and '/' in images and '/' in labels:
        (image_parent, _, name), (label_parent, _, other) = images.rpartition('/'), labels.rpartition('/')
        if name != other or '{split}' in name:
            break
        images, labels = image_parent, label_parent
    return images, labels


def _alike(images: str, labels: str, groups: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs of folders whose paths differ as these do: x/images and x/masks, and y/images and y/masks."""
    if images == labels:
        return [(folder, folder) for folder in groups]
    one, other = _relation(images, labels)
    tops = [folder[: len(folder) - len(one)] for folder in groups if f'/{folder}'.endswith(f'/{one}')]
    return [(top + one, top + other) for top in tops if top + other in groups]


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
