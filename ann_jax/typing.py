"""The records that travel from a dataset to the device, and the one label that means "no class"."""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, Protocol, TypedDict

import numpy as np

IGNORE = 255  # label of a pixel without a class: no loss, no score


class Sample(TypedDict):
    """One image as a source yields it."""

    name: str  # unique in the split; names the sample in errors and pictures
    image: np.ndarray  # (H, W, 3) uint8 RGB
    label: np.ndarray  # (H, W) uint8: class index, or IGNORE
    problem: NotRequired[str]  # why another sample, which cannot be used, was replaced by this one


class Backbone(Protocol):
    """A flax module that maps images to the features of four stages, the last two for the fusion of AFNB.

    One made of the layers of `ann_jax.models` can do more, if it says so:

        takes_canvas = True         it returns `FeatureMap`s, so that images of several sizes share a batch
        folded: bool = False        a field that it hands to its layers, so that `fold` merges normalisation
                                    into the convolution right before it
        canvas_height(height, n)    rows of a canvas that n devices divide at every stage, for mesh.space > 1
    """

    def __call__(self, image: Any, train: bool) -> Sequence[Any]:
        """A `FeatureMap` (B, H, W, 3) -> four maps (B, h, w, C), or arrays, of sizes that do not grow.

        Its parameters must not depend on the size of the image.
        """


class Source(Protocol):
    """Random access to the samples of a split; picklable, for worker processes."""

    dataset: Any  # `data.classes.Dataset`: names, colours and number of classes
    problems: list[str]  # what is wrong with the files' pairing, empty where samples are not files

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, index: int) -> Sample:
        """Reads a sample; raises DataError if it cannot be used."""


class Writer(Protocol):
    """Takes what a run reports, for a tracker of experiments; called in one process alone, in order of steps.

    After a run was resumed, steps may come again that were reported before it was stopped.
    """

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Points of curves, such as 'train/loss' and 'val/miou'."""

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Pictures, (H, W, 3) uint8 RGB."""

    def text(self, step: int, texts: Mapping[str, str]) -> None:
        """Markdown, such as the config and the table of scores."""


class Batch(TypedDict):
    """Samples, stacked; in evaluation they may be smaller than their place and lie at its top left."""

    image: np.ndarray  # (B, H, W, 3) uint8 RGB
    label: np.ndarray  # (B, H, W) uint8: class index, or IGNORE
    size: NotRequired[np.ndarray]  # (B, 2) int32: heights and widths of the samples; evaluation only
    name: NotRequired[np.ndarray]  # (B,) texts: names of the samples; training only
    problem: NotRequired[np.ndarray]  # (B,) texts: see `Sample`, mostly empty; training only
