"""Pastes a part of another augmented sample onto one: CutMix, ClassMix, and copies of rare classes."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ann_jax.data.augment.transforms import Augment, pick_rare
from ann_jax.errors import ConfigError, unknown
from ann_jax.ranges import check
from ann_jax.typing import IGNORE, Sample

KINDS = 'none', 'cutmix', 'classmix', 'copy_paste'


@dataclass(frozen=True, eq=False)
class Mix:
    """What is pasted, and from which sample.

    Attributes:
        source: of the other samples, which are drawn evenly; of copy_paste, among those that hold the class.
        kind: cutmix, a rectangle whose share of the area is uniform (Yun et al. 2019); classmix, half of the
            classes of the other crop (Olsson et al. 2021); copy_paste, one class, drawn by the inverse of its
            frequency, around which the other crop is laid.
        share: probability that a sample is pasted onto.
        counts: (N, K) pixels of each class in each sample of the source; only for copy_paste.
    """

    source: Any
    kind: str
    share: float
    counts: np.ndarray | None = None

    def __post_init__(self):
        """Checks the settings.

        Raises:
            ConfigError: the kind is unknown, the share is none, or copy_paste has no counts of the source.
        """
        if self.kind not in KINDS[1:]:
            raise ConfigError(unknown('augment.mix', self.kind, KINDS[1:]))
        check('augment.mix_share', self.share)
        if self.kind == 'copy_paste':
            needs = 'augment.mix=copy_paste: Mix needs counts, the pixels of each class in each sample'
            if self.counts is None:
                raise ConfigError(needs)
            # Rows of other samples would tell of classes that the drawn ones lack: nothing would be pasted.
            if np.ndim(self.counts) != 2 or len(self.counts) != len(self.source) or not np.any(self.counts):
                raise ConfigError(
                    f'{needs}: an array of {len(self.source)} rows, not all 0; its shape is '
                    f'{np.shape(self.counts)}'
                )

    def apply(self, sample: Sample, augment: Augment, rng: np.random.Generator) -> Sample:
        """Returns the augmented sample, with the chance of a part of another one at the same place.

        Raises:
            DataError: if the source raises it.
        """
        if rng.random() >= self.share:
            return sample
        index, focus = self._partner(rng)
        other = self.source[index]
        height, width = other['label'].shape
        draw = augment.draw(rng, height, width, other['label'], focus)
        pasted = augment.apply(other, draw)
        mask = self._mask(rng, pasted['label'], focus)
        np.copyto(sample['image'], pasted['image'], where=mask[..., None])
        np.copyto(sample['label'], pasted['label'], where=mask)
        problem = sample.get('problem', '') or other.get('problem', '')
        return {**sample, 'problem': problem}

    def _partner(self, rng):
        """Index of the other sample, and the class that it is to show."""
        if self.kind != 'copy_paste':
            return int(rng.integers(len(self.source))), None
        focus = int(pick_rare(rng, np.flatnonzero(self._frequencies), self._frequencies))
        assert self.counts is not None
        return int(rng.choice(np.flatnonzero(self.counts[:, focus]))), focus

    @cached_property
    def _frequencies(self):
        """The shares of the classes in all labels."""
        assert self.counts is not None
        pixels = self.counts.sum(0)
        return tuple((pixels / pixels.sum()).tolist())

    def _mask(self, rng, label, focus):
        """The pixels that are pasted: (H, W) bool."""
        if self.kind == 'copy_paste':
            return label == focus
        if self.kind == 'classmix':
            classes = np.unique(label)
            classes = classes[classes != IGNORE]
            return np.isin(label, rng.permutation(classes)[: (len(classes) + 1) // 2])
        mask = np.zeros(label.shape, bool)
        side = np.sqrt(rng.random())
        rows, columns = (_span(rng, length, side) for length in label.shape)
        mask[rows, columns] = True
        return mask


def _span(rng, length, side):
    """A part of a length around a random place; what lies outside is cut off."""
    half, centre = round(length * side) / 2, rng.random() * length
    return slice(max(round(centre - half), 0), min(round(centre + half), length))
