"""Reads annotations of objects, and draws them as each tool does itself.

COCO, and CVAT, which exports masks through it, by pycocotools; LabelMe by Pillow; YOLO by OpenCV. The library
pycocotools comes with `pip install 'ann_jax[annotations]'`.
"""

import base64
import functools
import io
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np
from PIL import Image, ImageDraw

from ann_jax.data.decode.reading import MAX_PIXELS, open_picture, optional, read_file
from ann_jax.data.disk import text_of
from ann_jax.data.own.annotation_kinds import ROUNDING
from ann_jax.data.own.class_files import parse_classes
from ann_jax.errors import ConfigError, DataError
from ann_jax.typing import IGNORE

BACKGROUND, IGNORED = 'background', '__ignore__'
_LINE_WIDTH, _POINT_RADIUS = 10, 5  # of LabelMe
_FAR = 10**6  # coordinates beyond this, and those that are no numbers, crash pycocotools
_NOT_UNDERSTOOD = (
    ArithmeticError, AttributeError, LookupError, TypeError, ValueError, ElementTree.ParseError
)  # fmt: skip
Draw = Callable[[int, int], np.ndarray]  # height, width -> (height, width) bool


class Labelled(NamedTuple):
    """An image with its objects.

    Attributes:
        image: its path, as the annotations name it.
        file: the file of annotations.
        size: height and width; None: those of the image.
        objects: name of the class and how to draw it, in the order of drawing.
    """

    image: str
    file: str
    size: tuple[int, int] | None
    objects: list[tuple[str, Draw]]


@dataclass
class Annotated:
    """What files of annotations hold."""

    names: list[str] = field(default_factory=list)  # of the classes, without the background
    images: list[Labelled] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # kinds of shapes that have no area
    pictures: set[str] = field(default_factory=set)  # absolute paths of those that hold segments
    numbered: dict[str, dict[int, str]] = field(default_factory=dict)  # YOLO's names: folder -> value -> name

    def name(self, names: list[str]) -> None:
        """Adds names of classes that are new."""
        self.names += [name for name in names if name not in self.names]


def read_annotations(kind: str, files: list[str]) -> Annotated:
    """Reads all files of a kind.

    Args:
        kind: a key of `annotation_kinds.KINDS`.
        files: of annotations.

    Raises:
        DataError: a file is not understood; the message names it.
    """
    found = Annotated()
    for file in files:
        start = len(found.images)
        try:
            _READERS[kind](file, found)
            wrong = [each.image for each in found.images[start:] if not isinstance(each.image, str)]
            if wrong:
                raise ValueError(f'{wrong[0]!r} is no path of an image')
        except _NOT_UNDERSTOOD as error:
            if isinstance(error, (ConfigError, DataError)):
                raise
            reason = f'it lacks {error}' if isinstance(error, KeyError) else error
            raise DataError(f'cannot read the annotations {file}: {reason}; export them again') from error
    return found


def _size(height, width, image):
    if not all(isinstance(n, int) and n > 0 for n in (height, width)) or height * width > MAX_PIXELS:
        raise ValueError(f'the size of {image} is {width}x{height}')
    return height, width


# --- COCO


def _read_coco(file, found):
    tree = json.loads(text_of(file, 'annotations'))
    categories = _categories(tree)
    # Roboflow's category 0 is the project, of which the others are parts.
    whole = {each.get('supercategory') for each in tree['categories'] if each['id'] != 0}
    used = {annotation['category_id'] for annotation in tree['annotations']}
    found.name([name for number, name in categories.items() if number in used or number or name not in whole])
    by_image: dict[str, list] = {str(image['id']): [] for image in tree['images']}
    if len(by_image) < len(tree['images']):
        raise DataError(f'{file} has images of the same id, so that objects are of several: export it again')
    lost: list[dict] = []
    for annotation in tree['annotations']:
        if segmentation := _segmentation(annotation, found):
            # Some tools write numbers here, and text there.
            of_image = by_image.get(str(annotation['image_id']), lost)
            of_image.append(annotation | {'segmentation': segmentation})
    if lost:
        raise DataError(
            f'{file} has {len(lost)} annotations of images that it does not list, such as annotation '
            f'{lost[0].get("id")} of image {lost[0]["image_id"]!r}: add the images, or remove the annotations'
        )
    for image in tree['images']:
        size = _size(image['height'], image['width'], image['file_name'])
        # Small objects lie on large ones.
        objects = sorted(by_image[str(image['id'])], key=lambda each: -_area(each, size, file))
        drawn = [(categories[each['category_id']], _coco(each['segmentation'], file)) for each in objects]
        found.images.append(Labelled(image['file_name'], file, size, drawn))


def _categories(tree) -> dict[int, str]:
    """Id -> name, in the order of the ids."""
    return {each['id']: each['name'] for each in sorted(tree['categories'], key=lambda each: each['id'])}


def _segmentation(annotation, found):
    """Outlines or runs of pixels; None if they have no area, which is counted."""
    segmentation = annotation.get('segmentation')
    if not segmentation:
        found.left_out['boxes'] += 1
        return None
    if not isinstance(segmentation, list):
        return segmentation
    if isinstance(segmentation[0], (int, float)):  # VGG Image Annotator writes one outline so
        segmentation = [segmentation]
    if any(len(outline) % 2 for outline in segmentation):
        raise ValueError(f'annotation {annotation.get("id")} has half a point in its outline')
    if all(len(outline) < 6 for outline in segmentation):
        found.left_out['outlines of less than 3 points'] += 1
        return None
    return segmentation


def _area(annotation, size, file) -> float:
    """The area as the file has it, or that of the mask if it has none."""
    area, (height, width) = annotation.get('area'), size
    if type(area) in (int, float) and area > 0:
        return area
    runs = _runs(annotation['segmentation'], height, width, file)
    return int(optional('pycocotools.mask', file).area(runs))


def _coco(segmentation, file) -> Draw:
    """Draws polygons, or runs of pixels, compressed or not, by pycocotools."""

    def draw(height, width):
        runs = _runs(segmentation, height, width, file)
        mask = optional('pycocotools.mask', file).decode(runs).astype(bool)
        if mask.shape != (height, width):
            raise ValueError(f'its mask is {mask.shape[1]}x{mask.shape[0]}, and the image {width}x{height}')
        return mask

    return draw


def _runs(segmentation, height, width, file):
    """Compressed runs of pixels."""
    masks = optional('pycocotools.mask', file)
    if isinstance(segmentation, list):
        outlines = [outline for outline in segmentation if len(outline) >= 6]
        for value in itertools.chain.from_iterable(outlines):
            if not -_FAR <= value <= _FAR:
                raise ValueError(f'{value} is no coordinate')
        return masks.merge(masks.frPyObjects(outlines, height, width))
    if isinstance(segmentation['counts'], list):
        pixels, (rows, columns) = sum(segmentation['counts']), segmentation['size']
        if pixels != rows * columns:  # pycocotools leaves the rest as the memory was
            raise ValueError(f'its counts are of {pixels} pixels, and its size is {columns}x{rows}')
        return masks.frPyObjects(segmentation, height, width)
    return segmentation


def _read_panoptic(file, found):
    tree = json.loads(text_of(file, 'annotations'))
    categories = _categories(tree)
    found.name(list(categories.values()))
    images = {str(image['id']): image for image in tree['images']}
    stem, folder = os.path.splitext(file)[0], os.path.dirname(file)
    for annotation in tree['annotations']:
        image = images[str(annotation['image_id'])]
        names = {segment['id']: categories[segment['category_id']] for segment in annotation['segments_info']}
        options = [os.path.join(top, annotation['file_name']) for top in (stem, folder)]
        path = next((path for path in options if os.path.isfile(path)), options[0])
        found.pictures.add(os.path.abspath(path))
        void = (IGNORED, functools.partial(_void, path, file, frozenset(names)))
        objects = [
            (name, lambda height, width, path=path, number=number: _segments(path) == number)
            for number, name in names.items()
        ]
        size = _size(image['height'], image['width'], image['file_name'])
        found.images.append(Labelled(image['file_name'], file, size, [void, *objects]))


def _void(path, file, listed, height, width):
    """Where no segment is; all others must be listed, or they would become background."""
    segments = _segments(path)
    if unlisted := {*np.unique(segments).tolist()} - listed - {0}:
        raise DataError(
            f'{path} has {len(unlisted)} segments that {file} does not list, such as {min(unlisted)}: export '
            'both again, or paint these in black, which is ignored'
        )
    return segments == 0


@functools.lru_cache(maxsize=1)  # each segment asks for it
def _segments(path):
    """(H, W) numbers of segments."""
    with open_picture(read_file(path, 'segments'), path, 'segments') as picture:
        return np.asarray(picture.convert('RGB')).astype(np.int64) @ (1, 256, 65536)


# --- LabelMe


def _read_labelme(file, found):
    tree = json.loads(text_of(file, 'annotations'))
    objects = []
    for shape in tree['shapes']:
        name = shape['label']
        if why := _flat(shape):
            found.left_out[why] += 1
            continue
        if name not in (IGNORED, '_background_'):
            found.name([name])
        objects.append((BACKGROUND if name == '_background_' else name, _labelme(shape)))
    height, width = tree.get('imageHeight'), tree.get('imageWidth')
    size = _size(height, width, tree['imagePath']) if height and width else None
    found.images.append(Labelled(tree['imagePath'], file, size, objects))


def _flat(shape):
    """What a shape without area is called; '' if it has one."""
    kind, count = shape.get('shape_type') or 'polygon', len(shape['points'])
    if kind in ('polygon', 'oriented_rectangle') and count < 3:
        return 'outlines of less than 3 points'
    return 'points shapes' if kind == 'points' else '' if count else f'{kind} shapes without points'


def _labelme(shape) -> Draw:
    points, kind = [tuple(point) for point in shape['points']], shape.get('shape_type') or 'polygon'

    def draw(height, width):
        picture = Image.new('L', (width, height))
        brush = ImageDraw.Draw(picture)
        if kind in ('circle', 'point'):
            (x, y), *edge = points
            radius = math.dist((x, y), edge[0]) if edge else _POINT_RADIUS
            brush.ellipse([x - radius, y - radius, x + radius, y + radius], outline=1, fill=1)
        elif kind == 'rectangle':
            xs, ys = zip(*points, strict=True)
            brush.rectangle([min(xs), min(ys), max(xs), max(ys)], outline=1, fill=1)
        elif kind in ('line', 'linestrip'):
            brush.line(points, fill=1, width=_LINE_WIDTH)
        elif kind == 'mask':
            part = Image.open(io.BytesIO(base64.b64decode(shape['mask']))).convert('L')
            left, top = (round(value) for value in points[0])
            picture.paste(part.point(lambda level: level > 0), (left, top))
        elif kind in ('polygon', 'oriented_rectangle'):
            brush.polygon(points, outline=1, fill=1)
        else:
            raise ValueError(f'{kind} is no kind of shape that is known here')
        return np.asarray(picture).astype(bool)

    return draw


# --- CVAT


def _read_cvat(file, found):
    tree = ElementTree.fromstring(read_file(file, 'annotations'))
    found.name([name.text or '' for name in tree.findall('./meta//labels/label/name')])
    if tree.find('track') is not None:
        raise DataError(f'{file} is CVAT for video: export the task as CVAT for images, or as COCO')
    for image in tree.findall('image'):
        objects = []
        for shape in sorted(image, key=lambda shape: int(shape.get('z_order', 0))):
            draw = _cvat(shape, file)
            if draw is None:
                found.left_out[f'{shape.tag} shapes'] += shape.tag != 'tag'
                continue
            found.name([shape.attrib['label']])
            objects.append((shape.attrib['label'], draw))
        size = _size(int(image.attrib['height']), int(image.attrib['width']), image.attrib['name'])
        found.images.append(Labelled(image.attrib['name'], file, size, objects))


def _cvat(shape, file) -> Draw | None:
    """How to draw an outline, a box or a mask of CVAT; None: it has no area."""
    get = lambda *names: [float(shape.attrib[name]) for name in names]
    turn = float(shape.get('rotation', 0))  # in degrees, clockwise
    if shape.tag == 'polygon':
        outline = [float(n) for n in shape.attrib['points'].replace(';', ',').split(',')]
        return _coco([outline], file) if len(outline) >= 6 else None
    if shape.tag == 'box':
        left, top, right, bottom = get('xtl', 'ytl', 'xbr', 'ybr')
        center, (sin, cos) = ((left + right) / 2, (top + bottom) / 2), _sin_cos(turn)
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]]) - center
        return _coco([((corners @ [[cos, sin], [-sin, cos]]) + center).ravel().tolist()], file)
    if shape.tag == 'ellipse':
        x, y, *radii = map(round, get('cx', 'cy', 'rx', 'ry'))

        def ellipse(rows, columns):
            mask = np.zeros((rows, columns), np.uint8)
            return cv2.ellipse(mask, (x, y), radii, turn, 0, 360, 1, thickness=-1).astype(bool)

        return ellipse
    if shape.tag != 'mask':
        return None
    left, top, width, height = (int(n) for n in get('left', 'top', 'width', 'height'))

    def draw(rows, columns):
        runs = [int(n) for n in shape.attrib['rle'].split(',')]
        part = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
        whole = np.zeros((rows, columns), bool)
        whole[top : top + height, left : left + width] = part
        return whole

    return draw


def _sin_cos(degrees):
    return math.sin(math.radians(degrees)), math.cos(math.radians(degrees))


# --- YOLO


def _read_yolo(file, found):
    names = _yolo_names(file, found)
    objects = []
    for line in text_of(file, 'annotations').splitlines():
        words = line.split()
        if not words:
            continue
        if len(words) < 7:
            found.left_out['boxes'] += 1
            continue
        number = int(words[0])
        if number not in names:
            known = ', '.join(map(str, names))
            raise DataError(f'{file} has class {number}, but there are names of {known}: add its name')
        objects.append((names[number], _yolo(_points(words[1:], file))))
    found.images.append(Labelled(os.path.splitext(os.path.basename(file))[0], file, None, objects))


def _points(words, file):
    """(N, 2) x and y, of which rounding may have moved some outside."""
    points = np.array(words, float).reshape(-1, 2)
    outside = points[~((points >= -ROUNDING) & (points <= 1 + ROUNDING))]
    if outside.size:
        raise DataError(f'{file} has the coordinate {outside[0]}: divide x by the width and y by the height')
    return points.clip(0, 1)


def _yolo(points) -> Draw:
    def draw(height, width):
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [(points * (width, height)).astype(np.int32)], 1)
        return mask.astype(bool)

    return draw


def _yolo_names(file, found) -> dict[int, str]:
    """Value -> name, as the folders around a file have it: each dataset may have names of its own."""
    folder = os.path.dirname(os.path.abspath(file))
    if folder not in found.numbered:
        names = found.numbered[folder] = _names_around(folder, file)
        found.name([names[value] for value in sorted(names)])
    return found.numbered[folder]


def _names_around(folder, file):
    for _ in range(4):
        names = sorted(name for name in os.listdir(folder) if name.endswith(('.yaml', '.yml')))
        names.sort(key=lambda name: name not in ('data.yaml', 'data.yml'))
        names += ['classes.txt', 'notes.json', 'obj.names']
        for path in (os.path.join(folder, name) for name in names):
            if os.path.isfile(path) and (numbered := _numbered(path)):
                return numbered
        folder = os.path.dirname(folder)
    raise DataError(f'{file}: no data.yaml or classes.txt beside it or around it names the classes: add it')


def _numbered(path) -> dict[int, str]:
    """Value -> name; {} of YAML without names, which holds settings."""
    if not path.endswith(('.yaml', '.yml')):
        classes = parse_classes(path, '')
        values = classes.label_map or {i: i for i in range(len(classes.names))}
        return {value: classes.names[i] for value, i in values.items() if i != IGNORE}
    try:
        tree = optional('yaml', path).safe_load(text_of(path, 'class file'))
        names = tree.get('names') if isinstance(tree, dict) else None
        names = dict(enumerate(names)) if isinstance(names, list) else names
        numbered = {int(value): str(name) for value, name in names.items()} if isinstance(names, dict) else {}
    except DataError:
        raise
    except Exception as error:  # YAML has errors of its own
        reason = ' '.join(str(error).split())
        raise DataError(
            f'cannot read the names of classes in {path}: {reason}; mend it, or remove it'
        ) from error
    if len({*numbered.values()}) < len(numbered):
        raise DataError(f'{path} gives several classes one name: rename them')
    return numbered


_READERS: dict[str, Callable[[str, Annotated], None]] = {
    'coco': _read_coco,
    'panoptic': _read_panoptic,
    'labelme': _read_labelme,
    'cvat': _read_cvat,
    'yolo': _read_yolo,
}
