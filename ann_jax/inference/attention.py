"""What the pixels of an image attend to (Eq. 9), and the maps of the backbone's stages, to look at.

Nothing is added to the network: flax hands out what its modules return, in programs of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Integer

from ann_jax.errors import DataError
from ann_jax.inference.protocols import Canvas
from ann_jax.kernels.anchors import anchor_windows
from ann_jax.kernels.masking import size_of
from ann_jax.models.ann import ANN, VARIANTS
from ann_jax.models.blocks import AFNB, APNB, FNB, Attention, evaluation_rng
from ann_jax.models.feature_map import FeatureMap
from ann_jax.models.resnet import Stem
from ann_jax.parallel.programs import jit
from ann_jax.weights.inputs import Normalize

MOST = 1 << 27  # weights of a block: 512 MiB


@dataclass(frozen=True, eq=False, repr=False)
class BlockAttention:
    """The attention of one block for one image.

    A block works on a feature map of h x w cells. A pixel of the image belongs to the cell that has the
    largest weight when the logits are resized to the image, and to the window of an anchor if its cell does.

    Attributes:
        weights: (h, w, S) float32; each cell's weights sum to one, in bfloat16 to within a percent.
        boxes: (S, 4) int32, the pixels that an anchor is pooled from as (top, left, bottom, right), ends
            exclusive. They overlap where a level of the pyramid does not divide the feature map.
        levels: (S,) int32, the size n of the n x n level of each anchor; 0 for NB and FNB, where every cell
            is an anchor.
        size: height and width of the image.
        cells: (H,) and (W,) int, the row of cells of each row of pixels, and likewise for columns.
    """

    weights: Float32[np.ndarray, 'h w S']
    boxes: Integer[np.ndarray, 'S 4']
    levels: Integer[np.ndarray, ' S']
    size: tuple[int, int]
    cells: tuple[Integer[np.ndarray, ' H'], Integer[np.ndarray, ' W']]

    def at(self, y: Any, x: Any) -> Float32[np.ndarray, '*pixels S']:
        """The weights of the pixel in row y and column x; or of several, if these are arrays.

        Raises:
            DataError: one is outside the image.
        """
        for place, length, name in zip((y, x), self.size, ('row', 'column'), strict=True):
            if np.size(place) and not (np.min(place) >= 0 and np.max(place) < length):
                raise DataError(
                    f'{name} {place}: the image has {self.size[0]} rows and {self.size[1]} columns'
                )
        return self.weights[self.cells[0][y], self.cells[1][x]]

    def heat(self, y: int, x: int) -> Float32[np.ndarray, 'H W']:
        """Where a pixel looks: each weight spread evenly over its box, which sums to one over the image.

        Raises:
            DataError: the pixel is outside the image.
        """
        top, left, bottom, right = self.boxes.T
        density = self.at(y, x) / ((bottom - top) * (right - left))
        corners = np.zeros((self.size[0] + 1, self.size[1] + 1))  # summed from the top left: the boxes
        for rows, columns, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
            np.add.at(corners, (rows, columns), sign * density)
        return np.maximum(corners.cumsum(0).cumsum(1)[:-1, :-1], 0).astype(np.float32)

    def shares(self, y: int, x: int) -> dict[int, float]:
        """The share of a pixel's attention that goes to each level of the pyramid.

        Raises:
            DataError: the pixel is outside the image.
        """
        weights = self.at(y, x)
        return {int(n): float(weights[self.levels == n].sum()) for n in dict.fromkeys(self.levels.tolist())}

    def __repr__(self):
        height, width, anchors = self.weights.shape
        return f'BlockAttention({width} x {height} cells, {anchors} anchors)'


# (variables, one image) -> the attention of each block, by name
Look = Callable[[Any, Canvas], dict[str, BlockAttention]]


def block_attention(model: ANN, normalize: Normalize, mesh: Mesh) -> Look:
    """A program that gives the attention of every block of a network, for one image as a whole.

    Args:
        model: the network, folded or not.
        normalize: maps pixels to the network's input.
        mesh: its `data` axis has size 1.

    Returns:
        A function (variables, canvas with one image) -> name -> `BlockAttention`: 'AFNB stage4' for the
        fusion of Stage4, 'APNB', and accordingly for 'FNB' and 'NB'. It is empty if the variant has no
        attention. It raises DataError for an image with more than `MOST` weights.
    """
    blocks = _blocks(model)
    kinds = (Attention, type(model.backbone))

    def run(variables, array, size):
        inside = _captured(model, variables, _map(model, normalize, array, size), kinds)
        stages = _stages(inside)
        high = _sides(stages[-1])
        found = {}
        for name, (path, low, _) in blocks.items():
            (attended,) = _returned(inside, *path)
            found[name] = attended.weights, _sides(stages[low]), high
        return found

    program = jit(run, mesh)

    def look(variables, image):
        if not blocks:
            return {}
        size = image.size[0].tolist()
        with jax.set_mesh(mesh):
            shapes = jax.eval_shape(program.jitted, variables, *image)
        for name, (weights, *_) in shapes.items():
            if weights.size > MOST:
                raise DataError(
                    f'{name} has {weights.shape[1]} x {weights.shape[2]} weights for an image of {size[1]}x'
                    f'{size[0]}, more than {MOST} in all: look at a smaller image, or at a part of it'
                )
        found = jax.device_get(program(variables, *image))
        return {name: _attention(model, size, blocks[name][2], *each) for name, each in found.items()}

    return look


def stage_maps(
    model: ANN, normalize: Normalize, mesh: Mesh
) -> Callable[[Any, Canvas], list[Float32[np.ndarray, 'h w']]]:
    """A program that gives the mean over the channels of Stage1 to Stage5, for one image.

    Stage1 is the stem; of a backbone without a `Stem`, there are four maps. Takes the same arguments.
    """

    def run(variables, array, size):
        inside = _captured(
            model, variables, _map(model, normalize, array, size), (Stem, type(model.backbone))
        )
        stages = [*_returned(inside, 'backbone', 'stem'), *_stages(inside)]
        return [(x.array[0].astype(jnp.float32).mean(-1), _sides(x)) for x in map(FeatureMap.of, stages)]

    program = jit(run, mesh)

    def look(variables, image):
        found = jax.device_get(program(variables, *image))
        return [mean[: sides[0], : sides[1]] for mean, sides in found]

    return look


def _blocks(model):
    """Name -> where the attention lies among the modules, the stage of its keys, and how they are sampled."""
    blocks = {}
    fusion, context = VARIANTS[model.variant]
    if fusion in (AFNB, FNB):
        for i, stage in enumerate(model.fuse_stages):
            path = 'fusion', f'attention_{i}'
            blocks[f'{fusion.__name__} stage{stage}'] = path, stage - 2, _sampling(model, fusion)
    if context:
        # Its input has the size of Stage5.
        blocks[context.__name__] = ('context', 'attention_0'), -1, _sampling(model, context)
    return blocks


def _sampling(model, block):
    return model.sampling if block in (APNB, AFNB) else 'all'


def _map(model, normalize, array, size):
    return FeatureMap.of(normalize(array), size if model.takes_canvas else None)


def _captured(model, variables, image, kinds):
    """What the modules of some kinds return."""
    wanted = lambda module, method: isinstance(module, kinds) and method == '__call__'
    return model.apply(variables, image, capture_intermediates=wanted, mutable='intermediates')[1]


def _returned(captured, *path):
    """What a module returned, once for each call; nothing if it does not exist."""
    found = captured['intermediates']
    for name in (*path, '__call__'):
        found = found.get(name, {})
    return tuple(found)


def _stages(captured):
    """Stage2 to Stage5."""
    (stages,) = _returned(captured, 'backbone')
    return [FeatureMap.of(stage) for stage in stages]


def _sides(x):
    """Height and width of the one image on a map, and of the map, (4,) int32."""
    size = [jnp.broadcast_to(side, (1,))[0] for side in size_of(x.array.shape, x.size)]
    return jnp.array([*size, *x.array.shape[1:3]], jnp.int32)


def _attention(model, size, sampling, weights, low, high):
    """Cuts the canvas off, and finds the boxes; `low` and `high` are `_sides` of the maps."""
    low, low_canvas, high, high_canvas = (
        tuple(part.tolist()) for each in (low, high) for part in (each[:2], each[2:])
    )
    weights = np.asarray(weights, np.float32)[0].reshape(*high_canvas, -1)[: high[0], : high[1]]
    if sampling == 'all':
        weights = weights.reshape(*high, *low_canvas)[:, :, : low[0], : low[1]].reshape(*high, -1)
    windows, levels = anchor_windows(low[0], low[1], sampling, model.sizes, evaluation_rng())
    cells = [
        [_cells(*each, model.align_corners) for each in zip(size, count, strict=True)]
        for count in (low, high)
    ]
    # The pixels of a cell follow each other, so a window of cells is a box of pixels.
    first = [
        np.searchsorted(of_pixel, np.arange(count + 1)) for of_pixel, count in zip(cells[0], low, strict=True)
    ]
    boxes = np.stack([first[i % 2][windows[:, i]] for i in range(4)], 1)
    return BlockAttention(
        weights,
        boxes.astype(np.int32),
        levels.astype(np.int32),
        (size[0], size[1]),
        (cells[1][0], cells[1][1]),
    )


def _cells(length, count, align_corners):
    """The cell of each of `length` pixels: the one with the largest weight if `count` cells are resized."""
    pixel = np.arange(length)
    if align_corners:
        return (2 * pixel * (count - 1) + length - 1) // max(2 * (length - 1), 1)
    return (2 * pixel + 1) * count // (2 * length)
