"""Reads annotations of objects, and draws them as each tool does itself.

COCO, and CVAT, which exports masks through it, by pycocotools; LabelMe by Pillow; YOLO by OpenCV. The library
pycocotools comes with `pip install '.[annotations]'`.
"""

import base64
import functools
import io
import json
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np
from PIL import Image, ImageDraw

from ann_jax.data.decode.reading import open_picture, optional, read_file
from ann_jax.data.disk import text_of
from ann_jax.data.own.class_files import parse_classes
from ann_jax.errors import ConfigError, DataError

BACKGROUND, IGNORED = 'background', '__ignore__'
_LINE_WIDTH, _POINT_RADIUS = 10, 5  # of LabelMe
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
        try:
            _READERS[kind](file, found)
        except (KeyError, TypeError, ValueError, IndexError, ElementTree.ParseError) as error:
            if isinstance(error, (ConfigError, DataError)):
                raise
            reason = f'it lacks {error}' if isinstance(error, KeyError) else error
            raise DataError(f'cannot read the annotations {file}: {reason}; export them again') from error
    return found


# --- COCO


def _read_coco(file, found):
    tree = json.loads(text_of(file, 'annotations'))
    categories = {
        each['id']: each['name'] for each in sorted(tree['categories'], key=lambda each: each['id'])
    }
    # Roboflow's category 0 is the project, of which the others are parts.
    whole = {each.get('supercategory') for each in tree['categories'] if each['id'] != 0}
    used = {annotation['category_id'] for annotation in tree['annotations']}
    found.name([name for number, name in categories.items() if number in used or number or name not in whole])
    by_image: dict[Any, list] = {}
    for annotation in tree['annotations']:
        segmentation = annotation.get('segmentation')
        if not segmentation:
            found.left_out['boxes'] += 1
            continue
        if isinstance(segmentation, list):
            if any(len(outline) % 2 for outline in segmentation):
                raise ValueError(f'annotation {annotation.get("id")} has half a point in its outline')
            if all(len(outline) < 6 for outline in segmentation):
                found.left_out['outlines of less than 3 points'] += 1
                continue
        by_image.setdefault(annotation['image_id'], []).append(annotation)
    for image in tree['images']:
        # Small objects lie on large ones.
        objects = sorted(by_image.get(image['id'], ()), key=lambda each: -each.get('area', 0))
        drawn = [(categories[each['category_id']], _coco(each['segmentation'], file)) for each in objects]
        found.images.append(Labelled(image['file_name'], file, (image['height'], image['width']), drawn))


def _coco(segmentation, file) -> Draw:
    """Draws polygons, or runs of pixels, compressed or not, by pycocotools."""
    masks = optional('pycocotools.mask', file)

    def draw(height, width):
        if isinstance(segmentation, list):
            outlines = [outline for outline in segmentation if len(outline) >= 6]
            runs = masks.merge(masks.frPyObjects(outlines, height, width))
        elif isinstance(segmentation['counts'], list):
            runs = masks.frPyObjects(segmentation, height, width)
        else:
            runs = segmentation
        mask = masks.decode(runs).astype(bool)
        if mask.shape != (height, width):
            raise ValueError(f'its mask is {mask.shape[1]}x{mask.shape[0]}, and the image {width}x{height}')
        return mask

    return draw


def _read_panoptic(file, found):
    tree = json.loads(text_of(file, 'annotations'))
    categories = {
        each['id']: each['name'] for each in sorted(tree['categories'], key=lambda each: each['id'])
    }
    found.name(list(categories.values()))
    images = {image['id']: image for image in tree['images']}
    stem, folder = os.path.splitext(file)[0], os.path.dirname(file)
    for annotation in tree['annotations']:
        image = images[annotation['image_id']]
        names = {segment['id']: categories[segment['category_id']] for segment in annotation['segments_info']}
        options = [os.path.join(top, annotation['file_name']) for top in (stem, folder)]
        path = next((path for path in options if os.path.isfile(path)), options[0])
        void = (IGNORED, lambda height, width, path=path: _segments(path) == 0)
        objects = [
            (name, lambda height, width, path=path, number=number: _segments(path) == number)
            for number, name in names.items()
        ]
        size = image['height'], image['width']
        found.images.append(Labelled(image['file_name'], file, size, [void, *objects]))


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
        if shape['label'] not in (IGNORED, '_background_'):
            found.name([shape['label']])
        name = BACKGROUND if shape['label'] == '_background_' else shape['label']
        objects.append((name, _labelme(shape)))
    height, width = tree.get('imageHeight'), tree.get('imageWidth')
    size = (height, width) if height and width else None
    found.images.append(Labelled(tree['imagePath'], file, size, objects))


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
        elif kind in ('polygon', 'oriented_rectangle') and len(points) > 2:
            brush.polygon(points, outline=1, fill=1)
        else:
            raise DataError(
                f'a {kind} of {len(points)} points, named {shape["label"]}, has no area: remove it'
            )
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
        size = int(image.attrib['height']), int(image.attrib['width'])
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
    names = found.names or _yolo_names(file)
    found.name(names)
    objects = []
    for line in text_of(file, 'annotations').splitlines():
        words = line.split()
        if not words:
            continue
        if len(words) < 7:
            found.left_out['boxes'] += 1
            continue
        number = int(words[0])
        if number >= len(names):
            raise DataError(f'{file} has class {number}, but there are names of {len(names)} classes')
        objects.append((names[number], _yolo(np.array(words[1:], float).reshape(-1, 2))))
    found.images.append(Labelled(os.path.splitext(os.path.basename(file))[0], file, None, objects))


def _yolo(points) -> Draw:
    def draw(height, width):
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [(points * (width, height)).astype(np.int32)], 1)
        return mask.astype(bool)

    return draw


def _yolo_names(file) -> list[str]:
    """Names from data.yaml, or another file of classes in the folders around."""
    folder = os.path.dirname(os.path.abspath(file))
    for _ in range(4):
        for name in sorted(os.listdir(folder)):
            if name.endswith(('.yaml', '.yml')) or name in ('classes.txt', 'obj.names', 'notes.json'):
                return list(parse_classes(os.path.join(folder, name), '').names)
        folder = os.path.dirname(folder)
    raise DataError(f'{file}: no data.yaml or classes.txt beside it or around it names the classes: add it')


_READERS: dict[str, Callable[[str, Annotated], None]] = {
    'coco': _read_coco,
    'panoptic': _read_panoptic,
    'labelme': _read_labelme,
    'cvat': _read_cvat,
    'yolo': _read_yolo,
}
