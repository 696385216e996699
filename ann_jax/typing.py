"""The records that travel from a dataset to the device, and the label that means "no class"."""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, Protocol, TypedDict

import numpy as np

IGNORE = 255  # label of pixels without a class, which count in no loss and no score


class Sample(TypedDict):
    """One image as a source yields it."""

    name: str  # unique in the split; identifies the sample in errors and pictures
    image: np.ndarray  # (H, W, N) uint8: RGB, or the bands of `dataset.bands`
    label: np.ndarray  # (H, W) uint8: class index, or IGNORE
    problem: NotRequired[str]  # why the sample that this one replaces cannot be used


class Backbone(Protocol):
    """A Flax module that maps images to the features of four stages; AFNB fuses the last two.

    One built from the layers of `ann_jax.models` can do more, if it declares it:

        takes_canvas = True         it returns `FeatureMap`s, so images of several sizes can share a batch
        folded: bool = False        a field that it passes to its layers, so that `fold` merges normalisation
                                    into the preceding convolution
        canvas_height(height, n)    rows of a canvas that divides over n devices at every stage, for
                                    mesh.space > 1
    """

    def __call__(self, image: Any, train: bool) -> Sequence[Any]:
        """A `FeatureMap` (B, H, W, N) -> four maps or arrays (B, h, w, C), none larger than the one before.

        The parameters must not depend on the image size.
        """


class Source(Protocol):
    """Random access to the samples of a split; must be picklable for worker processes."""

    dataset: Any  # `data.layout.Dataset`: names, colours and number of classes

    @property
    def problems(self) -> Sequence[str]:
        """Images and labels that do not pair up; empty if samples are not files."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, index: int) -> Sample:
        """Reads a sample; raises DataError if it cannot be used."""


class Writer(Protocol):
    """Receives what a run reports, for an experiment tracker; called in one process only, in order of steps.

    After a run is resumed, steps that were reported before it stopped may come again.
    """

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars to plot, such as 'train/loss' and 'val/miou'."""

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Pictures, (H, W, 3) uint8 RGB."""

    def text(self, step: int, texts: Mapping[str, str]) -> None:
        """Markdown, such as the config or the table of scores."""


class Batch(TypedDict):
    """Stacked samples; in evaluation they may be smaller than the array, and start at its top left."""

    image: np.ndarray  # (B, H, W, N) uint8, as of `Sample`
    label: np.ndarray  # (B, H, W) uint8: class index, or IGNORE
    size: NotRequired[np.ndarray]  # (B, 2) int32: heights and widths of the samples; evaluation only
    name: NotRequired[np.ndarray]  # (B,) texts: names of the samples; training only
    problem: NotRequired[np.ndarray]  # (B,) texts: see `Sample`, mostly empty; training only
