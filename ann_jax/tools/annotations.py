r"""Draws annotations of objects as labels: a folder of images and PNGs to train on.

    python -m ann_jax.tools.annotations /data/coco /data/coco_masks
    python -m ann_jax.main --mode=setup --config.dataset.root=/data/coco_masks

Reads COCO (polygons and RLE), COCO panoptic, LabelMe, CVAT for images and YOLO outlines, and recognises which
of them a file or folder is. Pixels are drawn as each tool draws them itself; COCO and CVAT need
`pip install pycocotools`. Value 0 is the background; the classes follow in the order of their ids, and
classes.txt names them. If the files or folders of annotations are named after splits, so are those of
images and labels.
"""

import argparse
import functools
import itertools
import os
import re
import shlex
import shutil
import struct
import sys
from pathlib import Path, PurePath, PureWindowsPath

import cv2
import numpy as np
from PIL import Image, ImageOps

from ann_jax.data.decode.images import IMAGE_ENDINGS
from ann_jax.data.decode.reading import open_picture, read_file
from ann_jax.data.disk import walk
from ann_jax.data.own.annotation_kinds import KINDS, find_annotations, others, unread
from ann_jax.data.own.annotations import BACKGROUND, IGNORED, Annotated, Labelled, read_annotations
from ann_jax.data.own.discovery import split_of
from ann_jax.errors import ConfigError, DataError, SaveError, listed
from ann_jax.files import refuse_special, replacing
from ann_jax.typing import IGNORE

# Folders named after what all of their files are, in which case they do not tell two of them apart.
_PLAIN = re.compile(r'images?|imgs?|jpegimages|labels?|masks?|annotations?|anns?|jsons?|', re.IGNORECASE)


def convert(source: str | Path, out: str | Path, kind: str = 'auto', link: bool = False) -> str:
    """Draws the annotations in a file or folder.

    Args:
        source: of the annotations; images lie in the same folder or below it, or those of YOLO in images/
            where it has labels/.
        out: folder to write; must not exist.
        kind: a key of KINDS, or auto.
        link: link images instead of copying them.

    Returns:
        What was done, and what was left out.

    Raises:
        DataError: there are no annotations, they are not understood, or an image is missing.
        ConfigError: `out` exists.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    if out.exists():
        raise ConfigError(f'{out} exists already: name a new folder')
    found = {each.kind: each.files for each in find_annotations(str(source))}
    known = [each for each in found if each in KINDS] if kind == 'auto' else [kind]
    if not known or known[0] not in found:
        what = f'{source} holds no annotations of {", ".join(KINDS) if kind == "auto" else kind}'
        raise DataError('; '.join([what, *others(found)]))
    kind = known[0]
    annotated = read_annotations(kind, found[kind])
    left_out = [f'{n} {what}' for what, n in annotated.left_out.items() if n]
    if left_out and not any(each.objects for each in annotated.images):
        raise DataError(
            f'{source} holds only {" and ".join(left_out)}, which have no area: there is nothing to learn '
            'segmentation from'
        )
    names = [BACKGROUND, *(name for name in annotated.names if name != BACKGROUND)]
    values = {name: value for value, name in enumerate(names)} | {IGNORED: IGNORE}
    if len(names) >= IGNORE:
        raise DataError(f'{source} has {len(names)} classes with the background, of at most {IGNORE - 1}')
    images = _Images(source, kind, annotated)
    places = _pair(annotated, images, source)
    try:
        for place, (each, path) in places.items():
            _write(each, path, place, out, values, link)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)  # half of it would be in the way of the next try
        raise
    with replacing(out / 'classes.txt') as draft:
        draft.write_text(''.join(f'{name}\n' for name in names), encoding='utf-8')
    lines = [f'{each} were left out, which have no area' for each in left_out]
    lines += [
        f'{len(found[each])} files of {KINDS[each]} were left out: --kind={each} takes those'
        for each in known[1:]
    ]
    rest = unread(found)
    if kind == 'yolo' and source.is_dir():
        rest += images.other_texts({file for files in found.values() for file in files}, found[kind])
    if rest:
        lines.append(f'{len(rest)} files were not read:{listed(rest)}')
    if unused := images.count_others(path for _, path in places.values()):
        lines.append(f'{unused} images without annotations were left out')
    done = f'{len(places)} labels of {len(names)} classes drawn from {KINDS[kind]}, written to {out}'
    return '\n'.join([done, *lines])


def _pair(annotated, images, source) -> dict[str, tuple[Labelled, Path]]:
    """Path of an image below the folder of images -> its annotations, and where it is now."""
    places: dict[str, tuple[Labelled, Path]] = {}
    taken: dict[str, tuple[Labelled, Path]] = {}
    missing = []
    for each in annotated.images:
        path = images.find(each)
        if path is None:
            missing.append(f'{each.image}, which {each.file} names')
            continue
        place = images.place(each, path)
        # A file for one image means another one if both have found the same.
        for name in (place, os.path.abspath(path)) if images.alone else (place,):
            other, its_path = taken.setdefault(name, (each, path))
            if other is each:
                continue
            if other.file != each.file:
                files = f'{other.file} and {each.file}'
                raise DataError(f'{files} both have labels of {name}: move one of them out of {source}')
            if its_path == path:
                raise DataError(f'{each.file} has labels of {path} twice: remove one of them')
            raise DataError(
                f'{its_path} and {path} would both be {name}: rename one of them, and in {each.file} too'
            )
        places[place] = each, path
    if missing:
        of = f'{len(missing)} of {len(annotated.images)} images'
        raise DataError(f'{of} are missing in {source}; add them:{listed(missing)}')
    return places


class _Images:
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
        split = self._split(labelled).lower()
        others = [_split_in(part).lower() for part in self._folders(path)]  # val, and valid
        return any(split and each and (each.startswith(split) or split.startswith(each)) for each in others)

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


def _write(labelled, path, place, out, values, link):
    image, label = out / 'images' / place, (out / 'labels' / place).with_suffix('.png')
    if label.exists():
        raise DataError(f'{path} has the name of another image but for its ending: rename one of them')
    if labelled.size is None:
        with open_picture(read_file(path, 'image'), path, 'image') as picture:
            width, height = ImageOps.exif_transpose(picture).size
    else:
        height, width = labelled.size
    mask = np.zeros((height, width), np.uint8)
    for name, draw in labelled.objects:
        try:
            mask[draw(height, width)] = values[name]
        except (ValueError, IndexError, TypeError, OSError, struct.error, cv2.error) as error:
            if isinstance(error, DataError) and labelled.file in str(error):
                raise
            raise DataError(
                f'cannot draw {name} on {labelled.image}, as {labelled.file} has it: {error}; mend it, or '
                'remove it'
            ) from error
    with replacing(label) as draft:
        Image.fromarray(mask).save(draft)
    refuse_special(path, 'image')
    with replacing(image) as draft:
        if link:
            draft.symlink_to(path.resolve())
        else:
            shutil.copyfile(path, draft)


def main(argv=None):
    """Parses the command line and converts; user errors end it with one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path, help='file or folder of annotations, with the images')
    parser.add_argument('out', type=Path, help='folder to write; must not exist')
    parser.add_argument('--kind', choices=('auto', *KINDS), default='auto', help='of the annotations')
    parser.add_argument('--link', action='store_true', help='link images instead of copying them')
    options = parser.parse_args(argv)
    try:
        print(convert(options.source, options.out, options.kind, options.link))
    except (ConfigError, DataError, SaveError) as error:
        sys.exit(f'error: {error}')
    root = shlex.quote(str(options.out))
    print(f'next:\npython -m ann_jax.main --mode=setup --config.dataset.root={root}')


if __name__ == '__main__':
    main()
