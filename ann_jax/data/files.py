"""Finds and pairs the images and labels of a dataset, in whichever of its layouts they are stored."""

import os
from collections.abc import Iterable
from pathlib import PurePath
from typing import NamedTuple

from ann_jax.data import archives
from ann_jax.data.classes import Dataset, Layout
from ann_jax.errors import DataError, unknown


class _Found(NamedTuple):
    """The files of a part in one layout: paths below the root, or records of an archive."""

    images: dict
    labels: dict
    keys: list[str] | None  # the samples, if a list names them
    missing: str = ''  # missing folder or file
    clash: str = ''  # message if two files share a name
    problems: tuple[str, ...] = ()  # with pairs from a list


def pair_files(dataset: Dataset, root: str, part: str) -> tuple[list[tuple], list[str]]:
    """Pairs the files of a part.

    Returns:
        [(name, image, label, number of the layout)], sorted by name or in the order of the list, and a
        message for each file without a partner. Images and labels are paths below the root or records of an
        archive.

    Raises:
        DataError: a folder or list is missing, there are no images, or two files share a name.
    """
    number, found = _choose(dataset, root, part)
    layout, (images, labels, keys, missing, clash, problems) = dataset.layouts[number], found
    if missing:
        there = ', '.join(sorted(os.listdir(root))[:8]) or 'nothing'
        kind = 'folder' if '.' not in os.path.basename(missing) else 'file'
        raise DataError(
            f'{dataset.name}: no {kind} {missing}; --config.dataset.root should hold {dataset.layout}; '
            f'it holds {there}'
        )
    if clash:
        raise DataError(clash)
    image_dir, label_dir = (
        os.path.join(root, text.replace('{part}', part)) for text in (layout.images, layout.labels)
    )
    strays = sorted(labels.keys() - images.keys()) if keys is None else []
    keys = sorted(images) if keys is None else keys
    if not keys and not problems:
        raise DataError(f'{dataset.name}: no samples in {image_dir}: expected {dataset.layout}')
    samples, problems = [], list(problems)
    for key in keys:
        if key in images and key in labels:
            samples.append((key, images[key], labels[key], number))
        elif key in images:
            missing = os.path.join(label_dir, key + layout.label_ending)
            problems.append(f'image {os.path.join(root, images[key])} has no label: add {missing}')
        else:
            missing = os.path.join(image_dir, key + layout.image_endings[0])
            problems.append(f'no image {missing}: add it, or remove {key} from the list or the labels')
    for key in strays:
        missing = os.path.join(image_dir, key + layout.image_endings[0])
        problems.append(f'label {os.path.join(root, labels[key])} has no image: add {missing}')
    return samples, problems


def _choose(dataset, root, part):
    """Returns the number of the layout that fits the files best, the first if several do, and its files."""
    best = None
    best_rank: tuple[bool, ...] = ()
    for number, layout in enumerate(dataset.layouts):
        if layout.parts and part not in layout.parts:
            continue
        found = _find(layout, root, part)
        rank = not found.missing, bool(found.labels), bool(found.images)
        if rank > best_rank:
            best, best_rank = (number, found), rank
        if all(rank):
            break
    if best is None:
        known = [part for layout in dataset.layouts for part in layout.parts]
        raise DataError(unknown(f'part of {dataset.name}', part, dict.fromkeys(known)))
    return best


def _find(layout: Layout, root: str, part: str) -> _Found:
    images, labels = layout.images.replace('{part}', part), layout.labels.replace('{part}', part)
    lines, missing = None, ''
    if layout.lists:
        path = os.path.join(root, layout.lists.replace('{part}', part))
        if os.path.isfile(path):
            lines = _read_lines(path)
            pairs = [line.split() for line in lines]
            if pairs and all(len(pair) == 2 and '.' in pair[0] and '.' in pair[1] for pair in pairs):
                return _from_paths(root, pairs)
        else:
            missing = path
    if layout.archive:
        return _from_archive(layout, root, part)
    if images.endswith('.txt'):
        return _from_two_lists(root, images, labels)

    image_files, no_images, clash = _list_files(root, images, layout.image_endings)
    label_files, no_labels, label_clash = _list_files(root, labels, (layout.label_ending,))
    if images == labels:  # labels stored among the images are not images
        paths = set(label_files.values())
        image_files = {key: path for key, path in image_files.items() if path not in paths}
    if layout.select:
        ranges = layout.select.get(part, ())
        image_files, label_files = (
            {key: path for key, path in files.items() if any(first <= key <= last for first, last in ranges)}
            for files in (image_files, label_files)
        )
    for name in layout.without:
        path = os.path.join(root, name)
        if not os.path.isfile(path):
            return _Found({}, {}, None, missing=path)
        for key in _read_lines(path):
            image_files.pop(key, None)
            label_files.pop(key, None)
    keys = None if lines is None else [without_ending(line, layout.image_endings) for line in lines]
    return _Found(image_files, label_files, keys, no_images or no_labels or missing, clash or label_clash)


def _list_files(root, folder, endings):
    """Lists the files with one of the endings: {path below `folder` without ending: path below `root`}.

    Also returns the folder if it is missing, and a message if two files share a name.
    """
    top = os.path.join(root, folder)
    if not os.path.isdir(top):
        return {}, top, ''
    files: dict[str, str] = {}
    clash = ''
    for where, _, names in os.walk(top, followlinks=True):
        for name in names:
            stem = without_ending(name, endings)
            if stem == name or name.startswith('.'):
                continue
            path = os.path.join(where, name)
            key = PurePath(os.path.relpath(os.path.join(where, stem), top)).as_posix()
            if key in files:
                other = os.path.join(root, files[key])
                clash = f'{path} and {other} share a name: remove one of them'
            files[key] = os.path.relpath(path, root)
    return files, '', clash


def without_ending(name: str, endings: Iterable[str]) -> str:
    """Removes the first of the endings that matches, in upper or lower case, from a name."""
    found = next((e for e in endings if name.lower().endswith(e.lower())), '')
    return name[: len(name) - len(found)]


def _read_lines(path):
    try:
        with open(path, encoding='utf-8-sig') as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f'cannot read the list {path}: {e}; save it as UTF-8 text') from e
    return [line for line in lines if line]


def _from_paths(root, pairs):
    """Pairs from a list: paths below the root, with or without a leading slash."""
    images, labels, problems = {}, {}, []
    for image, label in pairs:
        image, label = image.lstrip('/'), label.lstrip('/')
        absent = [path for path in (image, label) if not os.path.isfile(os.path.join(root, path))]
        if absent:
            path = os.path.join(root, absent[0])
            problems.append(f'a list names {path}, which does not exist: add it, or remove its line')
            continue
        key = os.path.splitext(image)[0]
        images[key], labels[key] = image, label
    return _Found(images, labels, list(images), problems=tuple(problems))


def _from_two_lists(root, image_list, label_list):
    """Pairs line n of one list with line n of the other."""
    lines = []
    for path in (os.path.join(root, image_list), os.path.join(root, label_list)):
        if not os.path.isfile(path):
            return _Found({}, {}, None, missing=path)
        lines.append(_read_lines(path))
    if len(lines[0]) != len(lines[1]):
        counts = f'{image_list} lists {len(lines[0])} images, {label_list} {len(lines[1])} labels'
        raise DataError(f'{counts} in {root}: line n of one must belong to line n of the other')
    return _from_paths(root, zip(*lines, strict=True))


def _from_archive(layout, root, part):
    path = os.path.join(root, layout.archive)
    if not os.path.isfile(path):
        return _Found({}, {}, None, missing=path)
    if path.endswith('.mat'):
        return _Found(*archives.nyud_slices(path, part), None)
    images, missing, clash = _list_files(root, layout.images, layout.image_endings)
    masks = archives.context_masks(path, part)
    return _Found(images, masks, sorted(masks), missing, clash)
