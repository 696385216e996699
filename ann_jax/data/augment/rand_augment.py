"""RandAugment (Cubuk et al. 2020) for segmentation: which operations, and how strong."""

import math

import numpy as np

from ann_jax.data.augment.warps import IDENTITY, Warp, rotated, sheared, shifted

MOST = 30  # magnitude
_ONLY_LEVELS = 'autocontrast', 'equalize', 'identity'
_FACTORS = 'brightness', 'contrast', 'saturation', 'sharpness'
_PLACES = 'rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y'
KINDS = *_ONLY_LEVELS, *_FACTORS, 'posterize', 'solarize', *_PLACES


def draw_operations(
    rng: np.random.Generator, count: int, magnitude: int, crop: tuple[int, int]
) -> tuple[list[tuple], Warp]:
    """Draws operations with replacement, in the space of torchvision's RandAugment.

    Args:
        rng: draws kinds and signs.
        count: of the operations.
        magnitude: of all of them, 0 to 30.
        crop: (height, width), whose part is a translation.

    Returns:
        Operations on levels, each a name of `colors.OPERATIONS` and its arguments, and where pixels move.
    """
    part = magnitude / MOST
    levels: list[tuple] = []
    warp = IDENTITY
    for kind in rng.choice(KINDS, count).tolist():
        sign = 1 if rng.random() < 0.5 else -1
        if kind in _FACTORS:
            levels.append((kind, 1 + sign * 0.9 * part))
        elif kind == 'posterize':
            levels.append((kind, 8 - round(4 * part)))
        elif kind == 'solarize':
            levels.append((kind, 255 - 255 * part))
        elif kind == 'rotate':
            warp = rotated(warp, sign * 30 * part)
        elif kind.startswith('shear'):
            warp = sheared(warp, sign * 0.3 * part, kind[-1])
        elif kind.startswith('translate'):
            length = crop[1] if kind.endswith('x') else crop[0]
            warp = shifted(warp, sign * 150 / 331 * part * length, kind[-1])
        elif kind != 'identity':
            levels.append((kind,))
    assert math.isfinite(sum(warp))
    return levels, warp
