"""The objects in a street scene: their classes, and how they are drawn.

Each function draws one object on a `Canvas`, with its foot at a given pixel, and takes the rest of its
appearance from `rng`. The class of cars and people is an argument that no pixel of the image depends on.
"""

import copy

import cv2
import numpy as np

from ann_jax.typing import IGNORE

_TABLE = (  # name, colour in label pictures; the position is the class index
    ('sky', (142, 197, 232)),
    ('building', (128, 126, 138)),
    ('road', (84, 78, 104)),
    ('lane marking', (236, 236, 228)),
    ('pavement', (198, 178, 186)),
    ('fence', (160, 130, 98)),
    ('tree', (88, 158, 84)),
    ('pole', (60, 60, 66)),
    ('lowered barrier', (250, 208, 60)),
    ('raised barrier', (178, 226, 70)),
    ('crane', (196, 150, 40)),
    ('hoist', (150, 84, 30)),
    ('bus', (120, 82, 172)),
    ('stopped car', (214, 52, 70)),
    ('moving car', (38, 170, 160)),
    ('pedestrian', (44, 92, 206)),
    ('worker', (244, 128, 40)),
)
CLASSES = tuple(name for name, _ in _TABLE)
COLORS = tuple(color for _, color in _TABLE)
SKY, BUILDING, ROAD, MARKING, PAVEMENT, FENCE, TREE, POLE, LOWERED, RAISED, CRANE, HOIST, BUS = range(13)
STOPPED, MOVING, PEDESTRIAN, WORKER = range(13, 17)
LOOK_ALIKES = CLASSES[STOPPED:]

_PAINTS = (
    (190, 44, 48),
    (44, 92, 160),
    (226, 226, 222),
    (58, 62, 70),
    (236, 180, 60),
    (72, 140, 96),
    (150, 160, 172),
)
_CLOTHES = (
    (200, 62, 60),
    (52, 98, 168),
    (236, 220, 190),
    (70, 74, 86),
    (244, 140, 44),
    (84, 150, 104),
    (140, 90, 150),
)
_WALLS = (
    (178, 120, 100),
    (196, 174, 150),
    (138, 150, 166),
    (164, 148, 168),
    (120, 134, 130),
    (206, 190, 180),
)
_SKIN = ((240, 200, 170), (206, 154, 118), (134, 90, 66))
_LEAVES = ((74, 134, 66), (100, 150, 62), (54, 112, 70))
_BUSES = ((206, 60, 84), (52, 120, 186), (64, 150, 130))


class Canvas:
    """Image and label at twice the final size, which smooths the image.

    Coordinates are final pixels, or those of `at`. A shape without a class changes only the image: it is a
    detail of an object already drawn.
    """

    def __init__(self, height, width):
        self.height, self.width = height, width
        self.unit = min(height, width / 2) / 128  # one pixel at 128x256: objects are measured in it
        self.image = np.zeros((2 * height, 2 * width, 3), np.uint8)
        self.label = np.zeros((2 * height, 2 * width), np.uint8)
        self._frame = (0, 0, 2, 2)  # origin and scale, x and y, in drawn pixels

    def at(self, x, foot, scale_x, scale_y=None):
        """Returns the same canvas with the origin at (x, foot), y upwards, and lengths times a scale."""
        moved = copy.copy(self)
        moved._frame = (2 * x, 2 * foot, 2 * scale_x, -2 * (scale_x if scale_y is None else scale_y))
        return moved

    def poly(self, points, color, cls=None):
        """Fills the polygon of [(x, y)]."""
        left, top, scale_x, scale_y = self._frame
        points = [
            np.array([(round(left + scale_x * x), round(top + scale_y * y)) for x, y in points], np.int32)
        ]
        cv2.fillPoly(self.image, points, color)
        if cls is not None:
            cv2.fillPoly(self.label, points, cls)

    def rect(self, x0, y0, x1, y1, color, cls=None):
        """Fills a rectangle between two opposite corners."""
        left, top, scale_x, scale_y = self._frame
        x0, x1 = sorted((round(left + scale_x * x0), round(left + scale_x * x1)))
        y0, y1 = sorted((round(top + scale_y * y0), round(top + scale_y * y1)))
        corner = max(x1 - 1, x0), max(y1 - 1, y0)  # OpenCV fills the end too
        cv2.rectangle(self.image, (x0, y0), corner, color, -1)
        if cls is not None:
            cv2.rectangle(self.label, (x0, y0), corner, cls, -1)

    def oval(self, x, y, radius_x, radius_y, color, cls=None):
        """Fills an ellipse around a centre."""
        left, top, scale_x, scale_y = self._frame
        center = round(left + scale_x * x), round(top + scale_y * y)
        axes = round(abs(scale_x * radius_x)), round(abs(scale_y * radius_y))
        cv2.ellipse(self.image, center, axes, 0, 0, 360, color, -1)
        if cls is not None:
            cv2.ellipse(self.label, center, axes, 0, 0, 360, cls, -1)

    def finish(self):
        """Returns the image and the label at final size, the borders of objects unlabelled."""
        image = cv2.resize(self.image, (self.width, self.height), interpolation=cv2.INTER_AREA)
        label = self.label[::2, ::2].copy()
        things = np.maximum(label, PAVEMENT)  # sky, building, road, marking and pavement in one
        border = np.zeros(label.shape, bool)
        border[:, :-1] |= things[:, :-1] != things[:, 1:]
        border[:-1] |= things[:-1] != things[1:]
        label[border] = IGNORE
        return image, label


def shade(color, factor):
    """Returns a colour, brighter or darker."""
    r, g, b = color
    return min(int(r * factor), 255), min(int(g * factor), 255), min(int(b * factor), 255)


def _pick(rng, colors):
    return shade(colors[rng.integers(len(colors))], rng.uniform(0.85, 1.1))


def building(canvas, rng, x, foot, width, height):
    """Draws a house with windows, some lit, and maybe a shop; sizes in units."""
    house, wall = canvas.at(x, foot, canvas.unit), _pick(rng, _WALLS)
    house.rect(0, 0, width, height, wall, BUILDING)
    house.rect(-1, height - 2, width + 1, height, shade(wall, 0.75), BUILDING)
    step_x, step_y = rng.uniform(7, 11), rng.uniform(9, 13)
    lit = rng.random((int(max(height - 14, 0) / step_y), int((width - 3) / step_x))) < 0.2
    for row, column in np.ndindex(lit.shape):
        left, top = 3 + column * step_x, height - 5 - row * step_y
        glass = (250, 226, 160) if lit[row, column] else (74, 88, 108)
        house.rect(left, top, left + 0.55 * step_x, top - 0.6 * step_y, glass)
    if rng.random() < 0.6:
        house.rect(3, 0, width - 3, 9, (88, 106, 120))
        house.rect(2, 8, width - 2, 11, _pick(rng, _BUSES))


def tree(canvas, rng, x, foot, size):
    """Draws a trunk below four balls of leaves."""
    plant, leaf = canvas.at(x, foot, size), _pick(rng, _LEAVES)
    plant.rect(-0.06, 0, 0.06, 0.6, (96, 72, 54), TREE)
    for u, v, radius in ((-0.2, 0.6, 0.22), (0.2, 0.58, 0.22), (0, 0.8, 0.25), (0.05, 0.62, 0.24)):
        u, v = u + rng.uniform(-0.05, 0.05), v + rng.uniform(-0.05, 0.05)
        plant.oval(u, v, radius, radius, shade(leaf, rng.uniform(0.8, 1)), TREE)
        plant.oval(u - 0.06, v + 0.07, 0.5 * radius, 0.42 * radius, shade(leaf, 1.18))


def lamp_post(canvas, x, foot, height):
    """Draws a post with an arm; height in units."""
    post, steel = canvas.at(x, foot, canvas.unit), (62, 66, 74)
    post.rect(-1, 0, 1, height, steel, POLE)
    post.rect(-1, height - 1.5, 8, height, steel, POLE)
    post.rect(4, height - 3, 8, height - 1.5, (250, 236, 190), POLE)


def fence(canvas, rng, x, foot, length, height):
    """Draws a wooden fence; sizes in units."""
    boards, wood = canvas.at(x, foot, canvas.unit), shade((150, 116, 84), rng.uniform(0.8, 1.15))
    boards.rect(0, 0, length, height, wood, FENCE)
    for left in range(0, int(length), 3):
        boards.rect(left, 0, left + 1, height, shade(wood, 0.75))
    boards.rect(0, 0.8 * height - 1, length, 0.8 * height, shade(wood, 1.2))


def structure(canvas, x, foot, side, crane, color):
    """Draws a mast, 78 units high, with a jib on side -1 or 1: on top of a crane, halfway up a hoist."""
    mast, dark, cls = canvas.at(x, foot, canvas.unit), shade(color, 0.6), CRANE if crane else HOIST
    mast.rect(-3, 0, 3, 74, color, cls)
    mast.poly([(-3, 70), (0, 78), (3, 70)], color, cls)
    for low in range(5, 66, 6):
        mast.rect(-1.6, low, 1.6, low + 4, dark)
    mast.rect(-13, 0, 13, 8, (132, 128, 124), cls)

    height = 72 if crane else 52
    arm = canvas.at(x, foot, side * canvas.unit, canvas.unit)
    for start, end in ((3, 26), (-16, -3)):
        arm.rect(start, height - 6, end, height, color, cls)
    for left in range(5, 25, 5):
        arm.rect(left, height - 5, left + 3, height - 1, dark)
    arm.rect(-16, height - 12, -9, height - 3, (70, 72, 80), cls)
    arm.rect(21.3, height - 14, 22.7, height, dark, cls)
    arm.rect(19.5, height - 18, 24.5, height - 13, (70, 72, 80), cls)


def barrier(canvas, rng, x, foot, side, lowered):
    """Draws a level crossing's post, lamp and boom, which points to side -1 or 1 if lowered, else up."""
    post, glow = canvas.at(x, foot, side * canvas.unit, canvas.unit), rng.uniform(0.75, 1)
    cls = LOWERED if lowered else RAISED
    post.rect(-4, 0, 4, 14, (72, 76, 84), cls)
    post.rect(-1.5, 14, 1.5, 28, (72, 76, 84), cls)
    post.oval(0, 30, 7, 7, (32, 34, 38), cls)
    post.oval(0, 30, 5, 5, shade((255, 62, 44) if lowered else (60, 240, 120), glow))
    for low in range(0, 40, 8):
        color = (228, 46, 46) if low % 16 else (244, 244, 240)
        along, across = (low, low + 8), (6, 13)
        (left, right), (bottom, top) = (along, across) if lowered else (across, along)
        post.rect(left, bottom, right, top, color, cls)


def car(canvas, rng, x, foot, length, cls):
    """Draws a car of a length in pixels from x on."""
    height, flip = 0.5 * length, rng.random() < 0.5  # the driving direction tells nothing about the class
    body = canvas.at(x + length, foot, -length, height) if flip else canvas.at(x, foot, length, height)
    paint, glass, start, end = (
        _pick(rng, _PAINTS),
        (70, 92, 112),
        rng.uniform(0.08, 0.2),
        rng.uniform(0.72, 0.95),
    )
    body.oval(0.5, 0.03, 0.5, 0.09, (52, 52, 58))  # its shadow on the road
    body.poly([(0, 0.15), (1, 0.15), (1, 0.5), (0.94, 0.58), (0.04, 0.62), (0, 0.5)], paint, cls)
    body.poly([(start, 0.55), (start + 0.1, 1), (end - 0.2, 1), (end, 0.55)], paint, cls)
    body.poly([(start + 0.06, 0.6), (start + 0.13, 0.92), (0.45, 0.92), (0.45, 0.6)], glass)
    body.poly([(0.5, 0.6), (0.5, 0.92), (end - 0.22, 0.92), (end - 0.07, 0.6)], glass)
    body.rect(0, 0.15, 1, 0.24, shade(paint, 0.6))
    body.rect(0, 0.4, 0.05, 0.5, (170, 40, 40))
    body.rect(0.95, 0.4, 1, 0.5, (250, 240, 200))
    for wheel in (0.2, 0.8):
        body.oval(wheel, 0.17, 0.085, 0.17, (32, 32, 36), cls)
        body.oval(wheel, 0.17, 0.04, 0.08, (160, 162, 168))


def person(canvas, rng, x, foot, size, cls):
    """Draws a person of a size in pixels; anyone may wear a helmet or a vest, so neither makes a worker."""
    body = canvas.at(x, foot, size)
    shirt, trousers, skin = _pick(rng, _CLOTHES), shade(_pick(rng, _CLOTHES), 0.6), _pick(rng, _SKIN)
    stride, helmet, vest = rng.uniform(0.02, 0.1), rng.random() < 0.4, rng.random() < 0.4
    for leg in (-stride, stride):
        body.rect(leg - 0.065, 0, leg + 0.065, 0.45, trousers, cls)
        body.rect(leg - 0.065, 0, leg + 0.085, 0.05, (40, 38, 42), cls)
    body.rect(-0.19, 0.4, 0.19, 0.46, skin, cls)
    body.rect(-0.19, 0.44, 0.19, 0.76, shade(shirt, 0.8), cls)
    body.rect(-0.13, 0.4, 0.13, 0.8, shirt, cls)
    if vest:
        body.rect(-0.13, 0.44, 0.13, 0.78, (250, 140, 40))
        body.rect(-0.13, 0.56, 0.13, 0.61, (240, 240, 190))
    body.oval(0, 0.89, 0.1, 0.11, skin, cls)
    body.oval(0, 0.94, 0.115, 0.075, (250, 212, 60) if helmet else (66, 48, 38), cls)


def bus(canvas, rng, x, foot):
    """Draws a bus, at most 76 units long, from x on."""
    body, paint = canvas.at(x, foot, canvas.unit), _pick(rng, _BUSES)
    length, height = rng.uniform(62, 76), rng.uniform(26, 30)
    body.rect(0, 2, length, height, paint, BUS)
    body.rect(0, height - 2, length, height, shade(paint, 1.3))
    body.rect(0, 0.33 * height, length, 0.4 * height, (236, 236, 230))
    for left in range(2, int(length) - 8, 10):
        body.rect(left, 0.48 * height, left + 8, 0.86 * height, (80, 104, 126))
    for wheel in (0.18 * length, 0.8 * length):
        body.oval(wheel, 3, 4, 4, (32, 32, 36), BUS)
        body.oval(wheel, 3, 1.8, 1.8, (150, 152, 158))
