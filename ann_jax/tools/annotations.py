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
import os
import shlex
import shutil
import struct
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from ann_jax.data.decode.images import IMAGE_ENDINGS
from ann_jax.data.decode.reading import open_picture, read_file
from ann_jax.data.disk import walk
from ann_jax.data.own.annotation_kinds import KINDS, find_annotations, others
from ann_jax.data.own.annotations import BACKGROUND, IGNORED, Labelled, read_annotations
from ann_jax.data.own.discovery import split_of
from ann_jax.errors import ConfigError, DataError, SaveError, listed
from ann_jax.files import refuse_special, replacing
from ann_jax.typing import IGNORE


def convert(source: str | Path, out: str | Path, kind: str = 'auto', link: bool = False) -> str:
    """Draws the annotations in a file or folder.

    Args:
        source: of the annotations; images lie in the same folder or below it.
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
    images = _Images(source if source.is_dir() else source.parent)
    places: dict[str, tuple[Labelled, Path]] = {}
    missing = []
    for each in annotated.images:
        path = images.find(each)
        if path is None:
            missing.append(f'{each.image}, which {each.file} names')
            continue
        place = _place(each, path, source, alone=kind in ('labelme', 'yolo'))
        if place in places:
            files = f'{each.file} and {places[place][0].file}'
            raise DataError(f'{files} both have labels of {place}: give one of them in place of the folder')
        places[place] = each, path
    if missing:
        of = f'{len(missing)} of {len(annotated.images)} images'
        raise DataError(f'{of} are missing in {source}; add them:{listed(missing)}')
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
    unused = len(images) - len({path for _, path in places.values()})
    if unused:
        lines.append(f'{unused} images without annotations were left out')
    done = f'{len(places)} labels of {len(names)} classes drawn from {KINDS[kind]}, written to {out}'
    return '\n'.join([done, *lines])


class _Images:
    """The pictures below a folder, by their names."""

    def __init__(self, root):
        files = [Path(where) / name for where, names in walk(root) for name in names]
        self._files = [path for path in files if path.name.lower().endswith(IMAGE_ENDINGS)]
        self._by_name: dict[str, list[Path]] = {}
        for path in self._files:
            for name in {path.name, path.stem}:
                self._by_name.setdefault(name, []).append(path)

    def __len__(self):
        return len(self._files)

    def find(self, labelled: Labelled) -> Path | None:
        """The file that annotations mean: the one of the name that is nearest to them."""
        name = labelled.image.replace('\\', '/')
        beside = Path(labelled.file).parent / name
        if beside.is_file():
            return beside
        paths = self._by_name.get(name.rpartition('/')[2], [])
        file = os.path.abspath(labelled.file)
        stem = os.path.splitext(os.path.basename(file))[0]

        def near(path):
            text = os.path.abspath(path).replace(os.sep, '/')
            common = len(os.path.commonpath([text, file]))
            split = split_of(os.path.splitext(file)[0].replace(os.sep, '/'))[1]
            return text.endswith('/' + name), bool(split) and f'/{split}' in text or stem in text, common

        return max(paths, key=near) if paths else None


def _place(labelled, path, source, alone):
    """The path of an image below the folder of images: its split, and its name."""
    root = source if source.is_dir() else source.parent
    file = os.path.relpath(labelled.file, root)
    # A file of its own is named as its image, which may be train_1.jpg.
    around = os.path.dirname(file) if alone else os.path.splitext(file)[0]
    split = split_of(Path(around).as_posix())[1]
    name = Path(labelled.image.replace('\\', '/'))
    parts = [part for part in name.parent.parts if part not in (split, 'images', 'img')]
    if name.is_absolute() or '..' in parts:  # on the computer of the tool
        parts = []
    return Path(split, *parts, path.name).as_posix()


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
