"""Array aliases, the sample and batch records, and the one label that means "no class"."""

from typing import TypedDict

import numpy as np

IGNORE = 255  # label of a pixel without a class: no loss, no score


class Sample(TypedDict):
    """One image as a source yields it."""

    name: str  # unique in the split; names the sample in errors and pictures
    image: np.ndarray  # (H, W, 3) uint8 RGB
    label: np.ndarray  # (H, W) uint8: class index, or IGNORE


class Batch(TypedDict):
    """Samples of one size, stacked."""

    image: np.ndarray  # (B, H, W, 3) uint8 RGB
    label: np.ndarray  # (B, H, W) uint8: class index, or IGNORE
