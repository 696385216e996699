"""The pictures that annotations mean: found by their names, their folders and their splits."""

import functools
import itertools
import os
import re
from pathlib import Path, PurePath, PureWindowsPath

from ann_jax.data.decode.images import IMAGE_ENDINGS
from ann_jax.data.disk import walk
from ann_jax.data.own.annotations import Annotated, Labelled
from ann_jax.data.own.discovery import are_one_split, split_of
from ann_jax.errors import DataError

# Folders named after what all of their files are, in which case they do not tell two of them apart.
_PLAIN = re.compile(r'images?|imgs?|jpegimages|labels?|masks?|annotations?|anns?|jsons?|', re.IGNORECASE)


class AnnotatedImages:
    """The pictures that annotations may mean, by their names.

    Attributes:
        alone: each image has a file of annotations, named as it is, in folders as its own.
    """

    def __init__(self, source: Path, kind: str, annotated: Annotated):
        root = os.path.abspath(source if source.is_dir() else source.parent)
        self._source, self._yolo, self.alone = source, kind == 'yolo', kind in ('labelme', 'yolo')
        self._roots = [root, *filter(os.path.isdir, [_swapped(root)] if self._yolo else [])]
        self._segments = annotated.pictures
        self._parts: dict[str, tuple[str, ...] | None] = {}
        self._files: set[str] = set()
        self._by_name: dict[str, list[str]] = {}
        for path in (os.path.join(*each) for top in self._roots for each in _files(top)):
            if (
                path.lower().endswith(IMAGE_ENDINGS)
                and path not in self._segments
                and path not in self._files
            ):
                self._files.add(path)
                for name in {os.path.basename(path), _stem(path)}:
                    self._by_name.setdefault(name, []).append(path)

    def count_others(self, used):
        """The number of images that are not among those used."""
        return len(self._files - {os.path.abspath(path) for path in used})

    def other_texts(self, known, files):
        """Files beside those of YOLO that are named as images and are not known, each with what it is."""
        folders = sorted({os.path.dirname(file) for file in files})
        paths = [os.path.join(folder, name) for folder in folders for name in sorted(os.listdir(folder))]
        return [
            f'{path} has lines that are no class and coordinates from 0 to 1'
            for path in paths
            if path.lower().endswith('.txt') and path not in known and _stem(path) in self._by_name
        ]

    def find(self, labelled: Labelled) -> Path | None:
        """The file that annotations mean: the one of the name whose folders are most like theirs.

        Raises:
            DataError: several are as much like them.
        """
        name = PurePath(labelled.image.replace('\\', '/'))
        beside = [Path(labelled.file).parent / name]
        if _elsewhere(labelled.image):
            beside.append(Path(labelled.file).parent / name.name)
        for path in beside:
            if path.is_file() and os.path.abspath(path) not in self._segments:
                return path
        paths = [path for path in self._by_name.get(name.name, []) if self._may_mean(labelled, path)]
        file = os.path.splitext(os.path.abspath(labelled.file))[0]
        swapped = _swapped(file) if self._yolo else ''
        ranks = [self._rank(labelled, name, path, os.path.dirname(file), swapped) for path in paths]
        most = max(ranks, default=None)
        best = [path for path, rank in zip(paths, ranks, strict=True) if rank == most]
        if len({*map(os.path.realpath, best)}) > 1:  # others are links to one
            which = ' or '.join(best[:4])
            raise DataError(
                f'{labelled.file} has labels of {name.name}, which may be {which}: move those that it does '
                f'not mean out of {self._source}'
            )
        return Path(best[0]) if best else None

    def _may_mean(self, labelled, path):
        """Whether the splits are not different ones; a list of many may be of any folder."""
        if not (self.alone and self._split(labelled) and any(map(_split_in, self._folders(path)))):
            return True
        return self._same_split(labelled, path)

    def _same_split(self, labelled, path):
        split = self._split(labelled)
        return bool(split) and any(are_one_split(split, _split_in(part)) for part in self._folders(path))

    def _rank(self, labelled, name, path, beside, swapped):
        """How much the folders of an image are as those that annotations name, or lie in."""
        folders, around = self._folders(path), self._around(labelled)
        ends = zip(reversed(name.parts[:-1]), reversed(os.path.dirname(path).split(os.sep)), strict=False)
        return (
            os.path.basename(path) == name.name,
            sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], ends)),
            swapped in (path, os.path.splitext(path)[0]),
            os.path.dirname(path) == beside,
            self._same_split(labelled, path),
            not self.alone and _stem(labelled.file) in '/'.join(folders),
            sum(min(folders.count(part), around.count(part)) for part in {*folders}),
        )

    def _folders(self, path):
        """Those that a file lies in, from the root; None if it lies elsewhere."""
        folder = os.path.dirname(path)
        if folder not in self._parts:
            whole = os.path.abspath(folder)
            root = next((top for top in self._roots if os.path.commonpath([top, whole]) == top), None)
            self._parts[folder] = None if root is None else PurePath(os.path.relpath(whole, root)).parts
        return self._parts[folder]

    def _around(self, labelled):
        """The folders of a file of annotations, and its name if it is not that of an image, as train_1 is."""
        folders = self._folders(labelled.file)
        return folders if self.alone else (*folders, _stem(labelled.file))

    def _split(self, labelled):
        return next(filter(None, map(_split_in, reversed(self._around(labelled)))), '')

    def place(self, labelled: Labelled, path: Path) -> str:
        """The path of an image below the folder of images: its split, its folders and its name."""
        split, folders = self._split(labelled), self._folders(path)
        if folders is None:
            parts = PurePath(labelled.image.replace('\\', '/')).parent.parts
            folders = [] if _elsewhere(labelled.image) else [part for part in parts if part != '..']
        if split:  # is written once
            folders = [_without_split(part) for part in folders]
        return PurePath(
            split, *(part for part in folders if not _PLAIN.fullmatch(part)), path.name
        ).as_posix()


@functools.lru_cache(maxsize=10_000)  # many files lie in few folders
def _split_in(part):
    return split_of(part)[1]


def _files(top):
    return ((where, name) for where, names in walk(top) for name in names)


def _stem(path):
    return os.path.splitext(os.path.basename(path))[0]


def _elsewhere(image):
    """Whether a path begins at the root or drive of a computer, which may be that of the tool."""
    return bool(PureWindowsPath(image).root)


def _swapped(path):
    """A path with images/ in place of the last labels/, by which YOLO knows them; '' if there is none."""
    head, labels, tail = f'{os.path.abspath(path)}{os.sep}'.rpartition(f'{os.sep}labels{os.sep}')
    return os.path.normpath(f'{head}{os.sep}images{os.sep}{tail}') if labels else ''


def _without_split(part):
    """What the name of a folder says besides the split and a year: cam1 of train_cam1, '' of val2017."""
    template, split = split_of(part)
    rest = template.replace('{split}', '').strip('_-. ')
    return ('' if rest.isdecimal() else rest) if split else part
