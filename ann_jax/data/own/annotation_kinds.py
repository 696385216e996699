"""Recognises files of annotations, which hold outlines or runs of pixels instead of pictures of labels."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ann_jax.data.disk import walk
from ann_jax.errors import DataError

KINDS = {
    'coco': 'COCO (polygons or RLE)',
    'panoptic': 'COCO panoptic',
    'labelme': 'LabelMe',
    'cvat': 'CVAT for images',
    'yolo': 'YOLO outlines',
}
ROUNDING = 0.01  # how far coordinates of YOLO, which are from 0 to 1, may lie outside
_START = 100_000  # characters of a text that are looked at
_MASK_OF_A_TAG = re.compile(r'task-\d+-annotation-\d+-by-.*-tag-.*-\d+\.(png|npy)$')
_BOXES = 'only boxes, no outlines of objects: there is nothing to learn segmentation from'
# What is recognised and not read, and what to do with it.
_OTHERS = {
    'voc boxes': ('PASCAL VOC boxes', _BOXES),
    'yolo boxes': ('YOLO boxes', _BOXES),
    'labelstudio': (
        'Label Studio JSON',
        'export the project as COCO, and convert that with python -m ann_jax.tools.annotations',
    ),
    'via': (
        'VGG Image Annotator JSON',
        'export it as COCO, and convert that with python -m ann_jax.tools.annotations',
    ),
    'damaged': ('damaged: it is no whole JSON', 'export or download it again'),
    'supervisely': (
        'Supervisely annotations without masks',
        'export the project as masks (the app Export as masks), or as COCO',
    ),
}
# Endings of files that hold images or labels in a form that is not looked into.
_UNREAD = {
    ('.zip', '.tar', '.gz', '.tgz', '.7z', '.rar'): 'an archive: unpack it',
    ('.npy', '.npz', '.mat', '.h5', '.hdf5'): 'an array: save labels as PNGs of class values',
    ('.parquet', '.arrow', '.tfrecord', '.tfrecords'): 'a table: write its images and labels to files',
    ('.mp4', '.avi', '.mov', '.mkv'): 'a video: save its frames as images, named as their labels',
}


class Annotations(NamedTuple):
    """Files of annotations of one kind.

    Attributes:
        kind: a key of KINDS, or of what is recognised but not read.
        files: their paths.
    """

    kind: str
    files: list[str]


def find_annotations(path: str) -> list[Annotations]:
    """The files of annotations in a folder, or the kind of one file; the kind with most files first.

    Raises:
        DataError: the path does not exist.
    """
    if not os.path.exists(path):
        raise DataError(f'{path}: no such file or folder')
    found: dict[str, list[str]] = {}
    for file in [path] if os.path.isfile(path) else _files(path):
        if kind := _kind(file):
            found.setdefault(kind, []).append(file)
    # An image without objects has an empty file beside those of the others.
    empty, yolo = found.pop('empty', []), found.get('yolo', [])
    folders = {folder for file in yolo for folder in (os.path.dirname(file), _around(file))}
    yolo += [file for file in empty if {os.path.dirname(file), _around(file)} & folders]
    return sorted((Annotations(*item) for item in found.items()), key=lambda each: -len(each.files))


def advise(root: str) -> str:
    """What to do with a folder in which no labels were found: a sentence."""
    found = find_annotations(root)
    if any(_MASK_OF_A_TAG.search(file) for file in _files(root)):
        return (
            'it holds masks of Label Studio, a picture per tag, whose names do not tell the image: export '
            'the project as COCO, and convert that with python -m ann_jax.tools.annotations'
        )
    if not found:
        for endings, what in _UNREAD.items():
            if file := next((file for file in _files(root) if file.lower().endswith(endings)), ''):
                return f'no picture in it has a label, and {file} is {what}'
        return (
            'no picture in it has a label, which is a picture of the same name with a few values or colours: '
            'see docs/own_data.md for the layouts that are read'
        )
    kind, files = found[0]
    if kind in _OTHERS:
        return others({kind: files})[0]
    more = f' and {len(files) - 1} more files are' if len(files) > 1 else ' is'
    out = os.path.normpath(root) + '_masks'
    return (
        f'{files[0]}{more} {KINDS[kind]}: draw labels with\n  python -m ann_jax.tools.annotations '
        f'{_quoted(root)} {_quoted(out)}\nand set up {out}'
    )


def others(found: Mapping[str, list[str]]) -> list[str]:
    """What is there instead of annotations that are read, and what to do with it: a sentence per kind."""
    return [f'{found[kind][0]} is {name}: {cure}' for kind, (name, cure) in _OTHERS.items() if kind in found]


def unread(found: Mapping[str, list[str]]) -> list[str]:
    """The files of kinds that are not read, each with what it is."""
    return [f'{file} is {name}' for kind, (name, _) in _OTHERS.items() for file in found.get(kind, ())]


def _around(file):
    return os.path.dirname(os.path.dirname(file))


def _quoted(path):
    return path if re.fullmatch(r'[\w/.:\\-]+', path) else f'"{path}"'


def _files(folder) -> Iterator[str]:
    for where, names in walk(folder):
        for name in names:
            yield os.path.join(where, name)


def _kind(path):
    """The kind of a file, or ''."""
    ending = os.path.splitext(path)[1].lower()
    if not os.path.isfile(path):  # reading a pipe would wait
        return ''
    try:
        if ending == '.json':
            with open(path, encoding='utf-8-sig') as file:
                text = file.read()
            try:
                return _kind_of_json(json.loads(text))
            except json.JSONDecodeError:
                return 'damaged' if text.lstrip().startswith(('{', '[')) else ''
        if ending == '.xml':
            with open(path, encoding='utf-8-sig') as file:
                start = file.read(4000)
            return 'cvat' if '<annotations' in start else 'voc boxes' if '<annotation' in start else ''
        if ending == '.txt':
            with open(path, encoding='utf-8-sig') as file:
                return _kind_of_lines([line.split() for line in _first_lines(file)[:50]])
    except (OSError, ValueError, RecursionError):  # the last of lists in lists in lists
        pass
    return ''


def _first_lines(file):
    """Whole lines: half of a number is another one."""
    text = file.read(_START)
    if len(text) == _START:
        text = text.rpartition('\n')[0] or text + file.readline()
    return text.splitlines()


def _kind_of_json(tree):
    if isinstance(tree, list):
        first = tree[0] if tree else None
        return 'labelstudio' if isinstance(first, dict) and {'annotations', 'data'} <= first.keys() else ''
    if not isinstance(tree, dict):
        return ''
    if isinstance(tree.get('shapes'), list) and 'imagePath' in tree:
        return 'labelme'
    if {'images', 'annotations', 'categories'} <= tree.keys():
        parts = [tree[key] for key in ('images', 'annotations', 'categories')]
        if not all(isinstance(part, list) and isinstance((part or [{}])[0], dict) for part in parts):
            return ''
        return 'panoptic' if 'segments_info' in (tree['annotations'] or [{}])[0] else 'coco'
    regions = tree.get('_via_img_metadata', tree)
    if not isinstance(regions, dict):
        return ''
    if regions is not tree or any(isinstance(each, dict) and 'regions' in each for each in regions.values()):
        return 'via'
    return 'supervisely' if {'objects', 'size'} <= tree.keys() else ''


def _kind_of_lines(lines):
    """Lines of a class and coordinates from 0 to 1: a box has four, an outline more."""
    lines = [line for line in lines if line]
    number = re.compile(r'-?\d*\.?\d+(e[-+]?\d+)?')
    inside = lambda word: number.fullmatch(word) and -ROUNDING <= float(word) <= 1 + ROUNDING
    good = lambda line: line[0].isdigit() and all(map(inside, line[1:]))
    if not lines:
        return 'empty'
    if not all(len(line) >= 5 and len(line) % 2 and good(line) for line in lines):
        return ''
    return 'yolo' if any(len(line) > 5 for line in lines) else 'yolo boxes'
