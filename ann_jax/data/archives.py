"""Datasets that come as one large file: NYU Depth V2 (HDF5) and PASCAL Context (JSON of run-length masks).

A sample in such a file is described by a small picklable record with a `raw()` method, in place of a path.
SciPy and h5py are imported only when they are needed.
"""

import functools
import json
import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ann_jax.data.decode.reading import optional, read_file
from ann_jax.errors import DataError


@dataclass(frozen=True)
class Slice:
    """One image of a stack in an HDF5 file. MATLAB writes its axes in reverse order."""

    file: str  # absolute, or relative to where the program runs
    key: str
    index: int
    lookup: tuple[int, ...] = ()  # raw value -> value; (): unchanged

    def __str__(self):
        return f'{self.file}, {self.key}[{self.index}]'

    def raw(self) -> np.ndarray:
        """Returns (H, W, 3) uint8 of an image, (H, W) integers of a label.

        Raises:
            DataError: the file cannot be read, or `lookup` lacks a value.
        """
        h5py = optional('h5py', self.file)
        try:
            with h5py.File(self.file) as file:
                array = np.ascontiguousarray(file[self.key][self.index].T)
        except Exception as e:  # a damaged file can make h5py raise anything
            raise DataError(f'cannot read {self}: {e}; copy or download the file again') from e
        if not self.lookup:
            return array
        if array.max() >= len(self.lookup):
            raise DataError(
                f'{self} holds {array.max()}, but classMapping40.mat only maps values up to '
                f'{len(self.lookup) - 1}: use two files of the same release'
            )
        return np.array(self.lookup)[array]


class Masks(NamedTuple):
    """Run-length masks of one image, in painting order; pixels that no mask covers are 0."""

    file: str
    name: str
    height: int
    width: int
    masks: tuple[tuple[int, str], ...]  # value and runs

    def __str__(self):
        return f'{self.file}, image {self.name}'

    def raw(self) -> np.ndarray:
        """Returns the label as (H, W) int64.

        Raises:
            DataError: a mask does not fill the image.
        """
        flat = np.zeros(self.height * self.width, np.int64)
        for value, text in self.masks:
            ends = np.cumsum(runs(text))
            if not len(ends) or ends[-1] != len(flat) or (np.diff(ends) < 0).any():
                raise DataError(f'{self}: a mask of category {value} is damaged: download the file again')
            for start, end in zip(ends[::2], ends[1::2], strict=False):
                flat[start:end] = value
        return np.ascontiguousarray(flat.reshape(self.width, self.height).T)  # runs go down the columns


def runs(text: str) -> list[int]:
    """Decodes the run-length text of COCO's tools to the lengths of alternating runs of 0 and 1.

    A character, less '0', holds five bits of a number, lowest first; its bit 5 says that more follow, and bit
    4 of the last one is the sign. From the fourth number on, the one two before it has been subtracted.
    """
    numbers: list[int] = []
    value, shift = 0, 0
    for character in text:
        group = ord(character) - 48
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            numbers.append(value + numbers[-2] if len(numbers) > 2 else value)
            value, shift = 0, 0
    return numbers


def context_masks(path: str, part: str) -> dict[str, Masks]:
    """Reads PASCAL Context's trainval_merged.json: image name -> masks, for one part of the split.

    Raises:
        DataError: it is another file, or damaged.
    """
    return _context_parts(path, os.path.getmtime(path)).get(part, {})


@functools.lru_cache(maxsize=1)  # slow, and training and evaluation read the same file
def _context_parts(path, _):
    try:
        content = json.loads(read_file(path, 'list'))
        masks: dict[int, list[tuple[int, str]]] = {image['image_id']: [] for image in content['images']}
        for record in content['annos_segmentation']:
            text = str(record['segmentation']['counts'])
            masks[record['image_id']].append((int(record['category_id']), text))
        parts: dict[str, dict[str, Masks]] = {}
        for image in content['images']:
            name = os.path.splitext(image['file_name'])[0]
            size = int(image['height']), int(image['width'])
            found = Masks(path, name, *size, tuple(masks[image['image_id']]))
            parts.setdefault(image['phase'], {})[name] = found
        return parts
    except (KeyError, TypeError, ValueError) as e:
        if isinstance(e, DataError):
            raise
        raise DataError(f"{path} is not PASCAL Context's file, or damaged ({e!r}): download it again") from e


def nyud_slices(path: str, part: str) -> tuple[dict[str, Slice], dict[str, Slice]]:
    """{name: image} and {name: label of 40 classes} for one part of nyu_depth_v2_labeled.mat.

    In the same folder are `splits.mat`, by the same authors, and `classMapping40.mat` by Gupta et al., which
    maps the 894 labels to 40 classes.

    Raises:
        DataError: one of the two is missing or damaged; SciPy is missing.
    """
    folder = os.path.dirname(path)
    indices = _matlab(os.path.join(folder, 'splits.mat'), f'{part}Ndxs') - 1  # MATLAB counts from 1
    lookup = 0, *_matlab(os.path.join(folder, 'classMapping40.mat'), 'mapClass').tolist()
    names = {f'{index + 1:04d}': index for index in sorted(indices.tolist())}
    return (
        {name: Slice(path, 'images', index) for name, index in names.items()},
        {name: Slice(path, 'labels', index, lookup) for name, index in names.items()},
    )


def _matlab(path, variable):
    scipy_io = optional('scipy.io', path)
    if not os.path.isfile(path):
        raise DataError(f'nyud_v2: no file {path}: put it beside nyu_depth_v2_labeled.mat')
    try:
        return scipy_io.loadmat(path)[variable].ravel().astype(np.int64)
    except Exception as e:  # a damaged file can make SciPy raise anything
        raise DataError(f'cannot read {variable} from {path}: {e!r}; download the file again') from e
