"""The scores of each image of an evaluation, and the best and worst images."""

import heapq
from typing import NamedTuple

import numpy as np

from ann_jax.evaluation.metrics import count_pixels, scores
from ann_jax.inference.pictures import shown, small

SIDE = 640  # pixels of the longer side of the pictures that are kept


class ImageScore(NamedTuple):
    """How one image was segmented; fractions from 0 to 1."""

    name: str
    miou: float  # over the classes in its truth or prediction
    pixel_accuracy: float
    pixels: int  # that have a label


class Kept(NamedTuple):
    """An image with its class maps, at most `SIDE` pixels wide and high."""

    score: ImageScore
    image: np.ndarray  # (h, w, 3) uint8
    truth: np.ndarray  # (h, w) uint8
    prediction: np.ndarray  # (h, w) uint8


class Samples:
    """Collects the images of one evaluation.

    Attributes:
        scores: of each image that has labelled pixels, in order.
        images: number of all images, with those that other processes read.
    """

    def __init__(self, num_classes: int, count: int, images: int):
        """Keeps up to `count` of the best images and as many of the worst, by mIoU."""
        self.scores: list[ImageScore] = []
        self.images = images
        self._num_classes, self._count = num_classes, count
        self._best: list = []  # heaps of (key, number, sample), so that samples are never compared
        self._worst: list = []

    def add(self, name: str, image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Scores an image; (H, W, N), (H, W) and (H, W), all uint8."""
        confusion = count_pixels(truth, prediction, self._num_classes)
        pixels = int(confusion.sum())
        if not pixels:
            return
        result = scores(confusion)
        score = ImageScore(name, result.miou, result.pixel_accuracy, pixels)
        number = len(self.scores)
        self.scores.append(score)
        sample: Kept | None = None
        for heap, key in ((self._best, score.miou), (self._worst, -score.miou)):
            # Of equals, the first stay.
            if len(heap) < self._count or (heap and (key, -number) > heap[0][:2]):
                if sample is None:  # copies, as the arrays are parts of a batch
                    kept = [np.array(small(array, SIDE)) for array in (shown(image), truth, prediction)]
                    sample = Kept(score, *kept)
                push = heapq.heappush if len(heap) < self._count else heapq.heapreplace
                push(heap, (key, -number, sample))

    def worst(self) -> list[Kept]:
        """The worst images, the worst first."""
        return [sample for _, _, sample in sorted(self._worst, key=lambda item: item[:2], reverse=True)]

    def best(self) -> list[Kept]:
        """The best images, the best first, without those that are among the worst."""
        taken = {number for _, number, _ in self._worst}
        best = [item for item in self._best if item[1] not in taken]
        return [sample for _, _, sample in sorted(best, key=lambda item: item[:2], reverse=True)]
