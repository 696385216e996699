"""Procedural street scenes: a segmentation benchmark whose hardest classes need long-range context.

A scene is a function of (seed, split, index, height, width): nothing is stored, and any size and count works.
Two pairs of classes are drawn by the same code with the same random numbers, so they cannot be told apart
locally, but only from a cue more than half the image width away:

- `stopped car` or `moving car`: the boom of the one level crossing is lowered or raised.
- `pedestrian` or `worker`: the jib of the one structure is halfway up its mast (a hoist) or on top (a crane).

Each cue is drawn from its own random stream, so everything else in a picture is independent of it.
"""

import math
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from ann_jax.data import early_scenes
from ann_jax.data import scene_objects as draw
from ann_jax.data.decode.images import encode_png
from ann_jax.data.layout import Dataset
from ann_jax.data.scene_objects import CLASSES, COLORS
from ann_jax.errors import DataError, unknown
from ann_jax.typing import IGNORE, Sample

SPLITS = ('train', 'val', 'test')
# Version of the scenes -> class names; the last is the current one, see `early_scenes`.
VERSIONS = {1: early_scenes.classes(1), 2: early_scenes.classes(2), 3: CLASSES}
OBJECTS_END = 0.27  # ambiguous objects end before this share of the width ...
CUES_START = 0.785  # ... and the cues start after this one, or both mirrored


class SceneInfo(NamedTuple):
    """What determines the classes of a scene; boxes are (top, left, bottom, right), ends exclusive."""

    lowered: bool  # the barrier is lowered: cars are stopped
    crane: bool  # the structure is a crane: people are workers
    barrier_box: tuple[int, int, int, int]
    structure_box: tuple[int, int, int, int]


class SceneSource:
    """Random access to the scenes of one split; splits never share a scene.

    Attributes:
        dataset: the `Dataset`.
    """

    problems = ()

    def __init__(
        self,
        *,
        split: str = 'train',
        count: int = 10_000,
        height: int = 96,
        width: int = 208,
        seed: int = 0,
        version: int = 3,
    ):
        """`split` is one of `SPLITS`, `version` a key of `VERSIONS`.

        Raises:
            DataError: the split or version is unknown, or the size is below 64x128.
        """
        if version not in VERSIONS:
            raise DataError(unknown('scenes version', version, VERSIONS))
        if split not in SPLITS:
            raise DataError(unknown('scenes split', split, SPLITS))
        if height < 64 or width < 128:
            raise DataError(f'a scene needs at least 64x128 pixels, not {height}x{width}')
        colors = COLORS if version == 3 else early_scenes.COLORS
        self.dataset = Dataset(name='scenes', classes=VERSIONS[version], colors=colors, label_map=None)
        self.split, self.count = split, count
        self._render = partial(render, height=height, width=width, version=version)
        self._key = (seed, SPLITS.index(split))

    def __len__(self):
        return self.count

    def __getitem__(self, index) -> Sample:
        """Draws one sample."""
        if not 0 <= index < self.count:
            raise IndexError(f'scene {index} of {self.count}')
        image, label, _ = self._render((*self._key, int(index)))
        return Sample(name=f'{self.split}_{index:06d}', image=image, label=label)

    def encoded(self, index: int) -> tuple[Sample, bytes]:
        """Draws one sample, and encodes its image as a PNG."""
        sample = self[index]
        return sample, encode_png(sample['image'])


def render(key, height, width, *, lowered=None, crane=None, version=3):
    """Draws the scene of a key, a tuple of non-negative integers.

    Args:
        key: determines the scene, together with its size.
        height: at least 64.
        width: at least 128; twice the height looks best.
        lowered: overrides the state of the barrier, and changes nothing else.
        crane: overrides the state of the structure, and changes nothing else.
        version: a key of `VERSIONS`.

    Returns:
        image (height, width, 3) uint8, label (height, width) uint8, and a `SceneInfo`.
    """
    rng = np.random.default_rng((*key, 0))
    coins = np.random.default_rng((*key, 1)).random(2) < 0.5
    lowered, crane = (bool(a if b is None else b) for a, b in zip(coins, (lowered, crane), strict=True))
    canvas = draw.Canvas(height, width)
    ground, kerb, near = (height * rng.uniform(y, y + 0.03) for y in (0.57, 0.68, 0.92))

    _draw_sky(canvas, rng, ground)
    _draw_buildings(canvas, rng, ground)
    _draw_ground(canvas, rng, ground, kerb, near)
    _draw_far_furniture(canvas, rng, ground, kerb)
    boxes = _draw_cues(canvas, rng, ground, kerb, lowered, crane, version)
    _draw_far_people(canvas, rng, ground, kerb, draw.WORKER if crane else draw.PEDESTRIAN)
    _draw_traffic(canvas, rng, kerb, near, draw.STOPPED if lowered else draw.MOVING)
    _draw_near_people(canvas, rng, near, draw.WORKER if crane else draw.PEDESTRIAN)
    _draw_near_furniture(canvas, rng)
    image, label = canvas.finish()
    label = label if version == 3 else early_scenes.CLASS_OF[label]
    image = _light(image, rng)

    if rng.random() < 0.5:
        image, label = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(label[:, ::-1])
        boxes = [(top, width - right, bottom, width - left) for top, left, bottom, right in boxes]
    return image, label, SceneInfo(lowered, crane, *boxes)


def _draw_sky(canvas, rng, ground):
    colors = rng.uniform(((80, 130, 190), (190, 205, 215)), ((140, 185, 235), (250, 235, 230)))
    size = 2 * canvas.width, int(2 * ground) + 1
    canvas.image[: size[1]] = cv2.resize(colors[:, None].astype(np.uint8), size)  # blends top into bottom
    for _ in range(rng.integers(2, 6)):
        x, y = rng.uniform(0, canvas.width), rng.uniform(0.03, 0.3) * canvas.height
        cloud = canvas.at(x, y, rng.uniform(4, 9) * canvas.unit)
        for dx in (-1.5, -0.4, 0.7, 1.6):
            cloud.oval(dx, 0, 1.2, rng.uniform(0.3, 0.6), (240, 243, 246))


def _draw_buildings(canvas, rng, ground):
    unit, x = canvas.unit, 0.0
    while x < canvas.width:  # a hazy skyline far behind
        width, height = rng.uniform(10, 26) * unit, rng.uniform(0.1, 0.38) * canvas.height
        haze = draw.shade((168, 180, 196), rng.uniform(0.92, 1.06))
        canvas.rect(x, ground - height, x + width, ground, haze, draw.BUILDING)
        x += width * rng.uniform(0.9, 1.6)
    x = -rng.uniform(0, 20) * unit
    while x < canvas.width:
        width, height = rng.uniform(26, 52), rng.uniform(0.14, 0.42) * canvas.height / unit
        draw.building(canvas, rng, x, ground, width, height)
        x += (width + max(rng.uniform(-14, 14), 0)) * unit


def _draw_ground(canvas, rng, ground, kerb, near):
    unit, width, height = canvas.unit, canvas.width, canvas.height
    stone, asphalt = rng.uniform(0.85, 1.1), rng.uniform(0.8, 1.15)
    stone, asphalt, paint = (
        draw.shade((176, 168, 162), stone),
        draw.shade((92, 92, 100), asphalt),
        (226, 226, 214),
    )
    lean = rng.uniform(0.3, 0.8)  # lines on the ground lean to one side, which gives it depth

    def slab(x, y, length, depth, color, cls=None):
        dx = lean * depth
        canvas.poly([(x + dx, y), (x + dx + length, y), (x + length, y + depth), (x, y + depth)], color, cls)

    canvas.rect(0, ground, width, height, stone, draw.PAVEMENT)
    for x in np.arange(-0.2 * width, width, 20 * unit).tolist():
        slab(x, ground, unit / 2, kerb - ground, draw.shade(stone, 0.86))
        slab(x, near, unit / 2, height - near, draw.shade(stone, 0.86))
    canvas.rect(0, kerb, width, near, asphalt, draw.ROAD)
    for y in (kerb - unit, near):
        canvas.rect(0, y, width, y + unit, draw.shade(stone, 0.7))
    for x in np.arange(rng.uniform(-20, 0) * unit, width, 22 * unit).tolist():
        slab(x, (kerb + near) / 2, 11 * unit, 2 * unit, paint, draw.MARKING)
    x = rng.uniform(0.3, 0.85) * width
    for y in np.arange(kerb + 2 * unit, near - 2 * unit, 5 * unit).tolist():  # a zebra crossing
        slab(x + lean * (near - y), y, 16 * unit, 2.5 * unit, paint, draw.MARKING)


def _draw_far_furniture(canvas, rng, ground, kerb):
    unit, width = canvas.unit, canvas.width
    for _ in range(rng.integers(1, 3)):
        draw.fence(canvas, rng, rng.uniform(0, 0.8) * width, ground + 2 * unit, rng.uniform(30, 70), 8)
    for _ in range(rng.integers(2, 5)):
        foot, size = ground + rng.uniform(2, 5) * unit, rng.uniform(34, 52) * unit
        draw.tree(canvas, rng, rng.uniform(0, 0.66) * width, foot, size)
    for _ in range(rng.integers(1, 3)):
        draw.lamp_post(canvas, rng.uniform(0, 0.7) * width, kerb - 3 * unit, rng.uniform(46, 58))


def _draw_near_furniture(canvas, rng):
    """Draws things that hide parts of the scene, but no cue; finally dirt on the lens, which has no label."""
    unit, width, height = canvas.unit, canvas.width, canvas.height
    for _ in range(rng.integers(0, 3)):
        draw.lamp_post(canvas, rng.uniform(0, 0.7) * width, height - 2 * unit, rng.uniform(72, 90))
    if rng.random() < 0.5:
        draw.fence(canvas, rng, rng.uniform(0.2, 0.8) * width, height, rng.uniform(30, 60), 10)
    if rng.random() < 0.4:
        draw.tree(canvas, rng, rng.uniform(0.42, 0.62) * width, height - 2 * unit, rng.uniform(60, 76) * unit)
    for _ in range(rng.integers(0, 4)):
        x, y, size = rng.uniform(0, 0.7) * width, rng.uniform(0, 1) * height, rng.uniform(1.5, 4.5) * unit
        canvas.oval(x, y, size, size * rng.uniform(0.6, 1.4), (92, 84, 72), IGNORE)


def _draw_cues(canvas, rng, ground, kerb, lowered, crane, version):
    """Draws structure and barrier on the right; returns the boxes of barrier and structure."""
    unit, width = canvas.unit, canvas.width
    half = 26 * unit
    x, foot = rng.uniform(CUES_START * width + half, 0.994 * width - half), ground + rng.uniform(6, 8) * unit
    jib, color = 1 if rng.random() < 0.5 else -1, draw.shade((246, 190, 40), rng.uniform(0.85, 1.05))
    structure_box = _box(canvas, x - half, foot - 78 * unit, x + half, foot)
    if version == 1:
        lamp = early_scenes.draw_cues(canvas, rng, x, foot, jib, color, kerb, lowered, crane)
        return _box(canvas, *lamp), structure_box
    draw.structure(canvas, x, foot, jib, crane, color)

    side, foot = 1 if rng.random() < 0.5 else -1, kerb + rng.uniform(-2, 2) * unit
    draw.barrier(canvas, rng, x - side * 18 * unit, foot, side, lowered)
    return _box(canvas, x - 25 * unit, foot - 40 * unit, x + 25 * unit, foot), structure_box


def _box(canvas, left, top, right, bottom):
    """The whole pixels that contain a rectangle and its border, as (top, left, bottom, right)."""
    low = [max(math.floor(value) - 1, 0) for value in (top, left)]
    return *low, min(math.ceil(bottom) + 1, canvas.height), min(math.ceil(right) + 1, canvas.width)


def _draw_far_people(canvas, rng, ground, kerb, cls):
    for _ in range(rng.integers(3, 6)):
        size, foot = rng.uniform(28, 32) * canvas.unit, rng.uniform(ground + 5 * canvas.unit, kerb)
        draw.person(canvas, rng, _person_x(canvas, rng, size), foot, size, cls)


def _draw_near_people(canvas, rng, near, cls):
    for _ in range(rng.integers(1, 3)):
        size, foot = rng.uniform(33, 37) * canvas.unit, rng.uniform(near + 4 * canvas.unit, canvas.height)
        draw.person(canvas, rng, _person_x(canvas, rng, size), foot, size, cls)


def _person_x(canvas, rng, size):
    return rng.uniform(0.05 * size, OBJECTS_END * canvas.width - 0.2 * size)


def _draw_traffic(canvas, rng, kerb, near, cls):
    """Draws cars on the left, one behind the other, alternately further left and right, and maybe a bus."""
    unit, end = canvas.unit, OBJECTS_END * canvas.width
    if rng.random() < 0.6:
        draw.bus(canvas, rng, rng.uniform(0.3, 0.4) * canvas.width, kerb + rng.uniform(10, 16) * unit)
    count, turn = min(rng.integers(1, 5), 3), rng.integers(2)
    for index in range(count):
        depth, place = (index + rng.random()) / count, ((index + turn) % 2 + rng.random()) / 2
        foot, length = kerb + 8 * unit + depth * (near - kerb - 9 * unit), (44 + 8 * depth) * unit
        draw.car(canvas, rng, place * (end - 0.85 * length) - 0.15 * length, foot, length, cls)


def _light(image, rng):
    """Lights an image at random: tinted, brighter to one side, with stains and noise."""
    height, width = image.shape[:2]
    tint = (rng.uniform(0.72, 1.12) * rng.uniform(0.93, 1.07, 3)).tolist()
    corners, stains = rng.uniform(0.85, 1.15, (2, 2)), rng.normal(0, 0.03, (9, 17))
    field = sum(cv2.resize(coarse.astype(np.float32), (width, height)) for coarse in (corners, stains))
    field += (rng.random((height, width), np.float32) - 0.5) * np.float32(rng.uniform(0.04, 0.16))
    return cv2.multiply(image, cv2.merge([field * gain for gain in tint]), dtype=cv2.CV_8U)  # saturates
