"""Finds the images and labels of a dataset in folders."""

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ann_jax.data.disk import walk
from ann_jax.data.layout import Layout
from ann_jax.data.own.naming import Naming, candidates, key_of


class Found(NamedTuple):
    """The files of a part in one layout: paths below the root, or records of an archive, by key."""

    images: dict
    labels: dict
    keys: list[str] | None  # the samples, if a list names them
    missing: str = ''  # missing folder or file
    clash: str = ''  # message if two files share a name
    problems: tuple[tuple[str, str], ...] = ()  # with pairs from a list: key and message
    naming: Naming | None = None  # the endings; None: the layout's
    # In the folders of images and of labels: all files that are not the other.
    names: tuple[list[str], list[str]] = ([], [])


def names_below(folder: str) -> list[str]:
    """Paths below a folder; none if it does not exist."""
    below = lambda where, name: os.path.normpath(os.path.join(os.path.relpath(where, folder), name))
    return [below(where, name) for where, names in walk(folder) for name in names]


def by_key(
    names: Iterable[str], endings: Sequence[str], folder: str, root: str
) -> tuple[dict[str, str], str]:
    """{key: path below the root} of those with one of the endings; a message if two share a key."""
    files: dict[str, str] = {}
    clash = ''
    for name in names:
        key = key_of(name, endings)
        if key is None:
            continue
        path = os.path.normpath(os.path.join(folder, name))
        if key in files:
            other, this = (os.path.join(root, file) for file in (files[key], path))
            clash = f'{other} and {this} share a name: rename one of them, or move it to another folder'
        files[key] = path
    return files, clash


def from_folders(layout: Layout, root: str, images: str, labels: str) -> Found:
    """All files of a folder of images and a folder of labels, which may be one folder or lie in another."""
    tops = [os.path.join(root, folder) for folder in (images, labels)]
    missing = next((top for top in tops if not os.path.isdir(top)), '')
    image_names, label_names = map(names_below, tops)
    shared = os.path.normpath(tops[0]) == os.path.normpath(tops[1])
    image_names = _outside(image_names, *tops)
    label_names = _outside(label_names, *tops[::-1])
    naming = Naming(layout.image_endings, layout.label_ending)
    several = ''
    if layout.own and naming.label_ending == '.png' and image_names and label_names:
        naming, several = _naming(image_names, label_names, naming, shared, tops[1])
    label_files, label_clash = by_key(label_names, (naming.label_ending,), labels, root)
    if shared:  # labels stored among the images are not images
        image_names = _without(image_names, images, label_files)
    image_files, clash = by_key(image_names, naming.image_endings, images, root)
    if shared:
        label_names = _without(label_names, labels, image_files)
    clash = several or clash or label_clash
    return Found(image_files, label_files, None, missing, clash, (), naming, (image_names, label_names))


def _without(names, folder, files):
    paths = set(files.values())
    return [name for name in names if os.path.normpath(os.path.join(folder, name)) not in paths]


def _outside(names, top, other):
    """The names that are not in the other folder, if that lies in this one."""
    inside = os.path.relpath(other, top)
    if inside.split(os.sep)[0] in ('.', '..'):
        return names
    return [name for name in names if not name.startswith(inside + os.sep)]


def _naming(images, labels, naming, shared, folder):
    """The endings by which the files are paired: as set if that pairs any, else as most are named.

    Also returns a message if there are several that could be.
    """
    keys = lambda names, endings: {key_of(name, endings) for name in names} - {None}
    if not shared and keys(images, naming.image_endings) & keys(labels, (naming.label_ending,)):
        return naming, ''
    found = candidates(images, labels, naming, shared)
    if len(found) > 1:
        endings = ' or '.join(f'--config.dataset.label_ending={each.label_ending}' for each in found)
        return naming, f'{folder} holds several labels of each image: set {endings}'
    return (found[0] if found else naming), ''
