"""How early commits drew the scenes, so that their runs continue on the images they started with.

Version 1 (before commit 6e567c6): the cues are the lamp of a traffic light, and the sides of a crane's jib
and ballast. Version 2 (before 477a583): today's cues, but both states of a cue share a class. Commits 6e567c6
and 0ee40fc drew a smaller barrier; nothing in their runs distinguishes them from version 2.
"""

import numpy as np

from ann_jax.data import scene_objects as draw
from ann_jax.data.scene_objects import CRANE, HOIST, LOWERED, POLE, RAISED, shade
from ann_jax.typing import IGNORE

# Today's class -> the early one.
CLASS_OF = np.full(256, IGNORE, np.uint8)
CLASS_OF[: len(draw.CLASSES)] = np.cumsum([i not in (RAISED, HOIST) for i in range(len(draw.CLASSES))]) - 1
COLORS = tuple(color for i, color in enumerate(draw.COLORS) if i not in (RAISED, HOIST))


def classes(version: int) -> tuple[str, ...]:
    """Names of the 15 classes of version 1 or 2."""
    names = {LOWERED: 'traffic light' if version == 1 else 'barrier', CRANE: 'structure'}
    return tuple(names.get(i, name) for i, name in enumerate(draw.CLASSES) if i not in (RAISED, HOIST))


def draw_cues(canvas, rng, x, foot, jib, color, kerb, red, crane):
    """Draws structure and traffic light of version 1; returns left, top, right and bottom of the lamp."""
    unit = canvas.unit
    _structure(canvas, x, foot, jib, -jib if crane else jib, color)
    side = 1 if rng.random() < 0.5 else -1  # beside the bare mast, clear of jib and ballast
    x, y = x + side * rng.uniform(11, 16) * unit, foot - rng.uniform(30, 38) * unit
    _traffic_light(canvas, rng, x, y, kerb - 2 * unit, red)
    return x - 4 * unit, y - 9 * unit, x + 4 * unit, y + 9 * unit


def _structure(canvas, x, foot, jib, ballast, color):
    """Draws a mast with a jib on top and a ballast at its foot, each on side -1 or 1."""
    mast, dark = canvas.at(x, foot, canvas.unit), shade(color, 0.6)
    mast.rect(-3, 0, 3, 74, color, CRANE)
    mast.poly([(-3, 70), (0, 78), (3, 70)], color, CRANE)
    for low in range(5, 66, 6):
        mast.rect(-1.6, low, 1.6, low + 4, dark)

    arm = canvas.at(x, foot, jib * canvas.unit, canvas.unit)
    arm.rect(0, 67, 26, 72, color, CRANE)
    for left in range(5, 25, 5):
        arm.rect(left, 68, left + 3, 71, dark)
    arm.rect(21.3, 60, 22.7, 72, dark, CRANE)
    arm.rect(19.5, 55, 24.5, 60, (70, 72, 80), CRANE)

    slab = canvas.at(x, foot, ballast * canvas.unit, canvas.unit)
    slab.rect(0, 0, 26, 4, color, CRANE)
    slab.rect(13, 4, 26, 13, (132, 128, 124), CRANE)
    slab.rect(19, 4, 20, 13, (96, 94, 92))


def _traffic_light(canvas, rng, x, y, foot, red):
    """Draws a post with two lamps around (x, y), one of them lit: red above or green below."""
    canvas.at(x, foot, canvas.unit, 1).rect(-1, 0, 1, foot - y, (62, 66, 74), POLE)
    head = canvas.at(x, y, canvas.unit)
    head.rect(-5, -10, 5, 10, (226, 226, 220), LOWERED)
    head.rect(-4.4, -9.4, 4.4, 9.4, (26, 28, 32))
    glow = rng.uniform(0.65, 1)
    head.oval(0, 4.6, 3.4, 3.4, shade((255, 62, 44), glow if red else 0.2))
    head.oval(0, -4.6, 3.4, 3.4, shade((60, 240, 120), 0.2 if red else glow))
