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

from ann_jax.data.decode.reading import open_picture, read_file
from ann_jax.data.own.annotated_images import AnnotatedImages
from ann_jax.data.own.annotation_kinds import KINDS, find_annotations, others, unread
from ann_jax.data.own.annotations import BACKGROUND, IGNORED, Labelled, read_annotations
from ann_jax.errors import ConfigError, DataError, SaveError, listed
from ann_jax.files import refuse_special, replacing
from ann_jax.typing import IGNORE


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
    images = AnnotatedImages(source, kind, annotated)
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
        except (ArithmeticError, LookupError, OSError, TypeError, ValueError, struct.error, cv2.error) as e:
            if isinstance(e, DataError) and labelled.file in str(e):
                raise
            raise DataError(
                f'cannot draw {name} on {labelled.image}, as {labelled.file} has it: {e}; mend it, or '
                'remove it'
            ) from e
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
