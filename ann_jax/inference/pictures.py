"""Label pictures: colours, overlays and side-by-side panels, as (H, W, 3) uint8 arrays."""

from collections.abc import Sequence

import numpy as np

from ann_jax.typing import IGNORE

Color = tuple[int, int, int]


def shown(image: np.ndarray) -> np.ndarray:
    """The first three of the bands of an (H, W, N) image, or three times its first, as RGB."""
    return image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, 2)


def colorize(label: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """(H, W) class indices -> (H, W, 3) uint8 colours; IGNORE is black."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)] = colors
    palette[IGNORE] = 0
    return palette[label]


def overlay(
    image: np.ndarray, label: np.ndarray, colors: Sequence[Color], opacity: float = 0.6
) -> np.ndarray:
    """Blends class colours over an (H, W, N) uint8 image; ignored pixels show the image."""
    image = shown(image)
    blend = (1 - opacity) * image + opacity * colorize(label, colors)
    return np.where((label == IGNORE)[..., None], image, blend.round()).astype(np.uint8)


def panel(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, colors: Sequence[Color], gap: int = 4
) -> np.ndarray:
    """Image, truth and prediction side by side: (H, 3 W + 2 gap, 3) uint8, with white gaps."""
    space = np.full((image.shape[0], gap, 3), 255, np.uint8)
    parts = [shown(image), space, overlay(image, truth, colors), space, overlay(image, prediction, colors)]
    return np.concatenate(parts, 1)
