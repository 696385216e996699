"""Samples from folders: reads, checks and maps the pairs of image and label that `files.py` finds.

The datasets themselves are in `classes.py`. A file that cannot be used raises a `DataError` that names it.
"""

import fnmatch
import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ann_jax.data.decode.images import PLAIN, decode_image, decode_values, encode_png, match
from ann_jax.data.decode.jpeg import examine_jpeg
from ann_jax.data.decode.levels import Reading
from ann_jax.data.decode.rasters import Raster, open_raster
from ann_jax.data.decode.reading import check_png, read_file
from ann_jax.data.files import pair_files
from ann_jax.data.labels import Label, decode_label, map_label
from ann_jax.data.layout import Dataset, check_sample
from ann_jax.data.own.naming import without_ending
from ann_jax.data.own.survey import Look, look
from ann_jax.errors import ConfigError, DataError, unknown
from ann_jax.typing import Sample, Source

IN_REGIONS = 1 << 24  # pixels; of larger TIFFs, training reads what a crop shows


class FolderSource:
    """Random access to the samples of one split of a dataset on disk.

    Attributes:
        dataset: the `Dataset`.
        split: name of the split.
        problems: images and labels without a partner, a message each; always empty if `strict`.
    """

    def __init__(
        self,
        dataset: Dataset,
        root: str | os.PathLike,
        split: str,
        *,
        strict: bool = True,
        reading: Reading = PLAIN,
    ):
        """Finds and pairs the files; `reading` says how images are read.

        Raises:
            DataError: the split is unknown, the root or a folder is missing, or there are no images; if
                `strict`, also for an image without a label or a label without an image. Otherwise these are
                left out, and described in `problems`.
        """
        parts = dataset.parts_of(split)
        if not parts:
            wanted = split.replace('trainval', 'train+val').split('+')
            lacks = 'val' in wanted and 'val' not in dataset.splits
            hint = '; it has no val: train on train alone' if lacks else ''
            raise DataError(unknown(f'{dataset.name} split', split, dataset.splits) + hint)
        self.dataset, self.split, self._reading = dataset, split, reading
        self._root = os.path.expanduser(root or '')
        if not os.path.isdir(self._root):
            raise DataError(
                f'{dataset.name}: no folder {self._root!r}; set --config.dataset.root to the folder that '
                f'holds {dataset.layout}'
            )
        self._samples, self.problems = [], []
        self._rasters: dict[int, Raster | None] = {}
        for part in parts:
            samples, problems = pair_files(dataset, self._root, part)
            self._samples += [(f'{part}/{s[0]}' if len(parts) > 1 else s[0], *s[1:]) for s in samples]
            self.problems += problems
        if strict and self.problems:
            more = len(self.problems) - 1
            raise DataError(self.problems[0] + (f' ({more} more such problems)' if more else ''))

    def __len__(self):
        return len(self._samples)

    def __getitem__(self, index) -> Sample:
        """Reads one sample.

        Raises:
            DataError: a file is unreadable or truncated, sizes differ, or the label has unknown values.
        """
        return self.encoded(index)[0]

    def encoded(self, index: int) -> tuple[Sample, bytes]:
        """Reads one sample, and its encoded image: the file as it is, or a PNG if there is no file.

        Raises:
            DataError: as `__getitem__`.
        """
        seen = self.look(index, closely=False)
        return seen.sample(), seen.data

    def values(self, index: int) -> np.ndarray:
        """Reads the image of one sample before its values are scaled: (H, W, N) of the file's own type.

        Raises:
            DataError: as `__getitem__`.
        """
        data, where = self._encoded_image(self._samples[index][1])
        return decode_values(data, where, self._reading)

    def _encoded_image(self, image):
        """The bytes of an image, and where they are from."""
        if isinstance(image, str):
            path = os.path.join(self._root, image)
            return read_file(path, 'image'), path
        return encode_png(image.raw()), image

    def look(self, index: int, *, image: bool = True, closely: bool = True) -> Look:
        """Reads one sample and tells how it is stored; see `survey.look`.

        Raises:
            DataError: as `__getitem__`, or see `examine_jpeg` and `check_png`.
        """
        name, image_file, label_file, _ = self._samples[index]
        data, where = self._encoded_image(image_file)
        if closely:
            examine_jpeg(data, where)
            check_png(data, where, 'image')
        label = self._label(index)
        if isinstance(label_file, str):
            label_file = os.path.join(self._root, label_file)
        decoded = match(data, label.classes, where, label_file, self._reading) if image else None
        return Look(name, label, decoded, data)

    def label(self, index: int) -> np.ndarray:
        """Reads the label of one sample alone.

        Raises:
            DataError: as `__getitem__`.
        """
        return self._label(index).classes

    def in_regions(self, index: int) -> Sample:
        """Reads one sample, or of a large TIFF the label alone: its image is a `Raster`, to be sliced.

        Raises:
            DataError: as `__getitem__`.
        """
        name, image_file, _, _ = self._samples[index]
        if index not in self._rasters:
            path = os.path.join(self._root, image_file) if isinstance(image_file, str) else ''
            self._rasters[index] = open_raster(path, self._reading, IN_REGIONS)
        raster = self._rasters[index]
        if raster is None:
            return self[index]
        classes = self._label(index).classes
        if raster.shape[:2] != classes.shape:
            return self[index]  # which says what is wrong
        return Sample(name=name, image=raster, label=classes)  # type: ignore[typeddict-item]

    def _label(self, index):
        _, _, file, number = self._samples[index]
        layout = self.dataset.layouts[number]
        if not isinstance(file, str):
            return Label(map_label(file.raw(), layout, file, self.dataset.name))
        file = os.path.join(self._root, file)
        data, most = read_file(file, 'label'), self._reading.max_pixels
        return decode_label(data, layout, file, self.dataset.name, max_pixels=most)

    def names(self) -> list[str]:
        """The name of each sample."""
        return [sample[0] for sample in self._samples]

    def image_files(self) -> list[str]:
        """The image file of each sample, or its place in an archive."""
        path = lambda image: os.path.normpath(os.path.join(self._root, image))
        return [path(image) if isinstance(image, str) else str(image) for _, image, _, _ in self._samples]


class InRegions:
    """A source for training, which reads of large images what a crop shows, if it can."""

    def __init__(self, source: Source):
        self._source = source

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index) -> Sample:
        """Reads a sample; see `FolderSource.in_regions`."""
        return getattr(self._source, 'in_regions', self._source.__getitem__)(index)


class Checked:
    """A source of the user's own, whose samples are checked: nothing else vouches for them."""

    def __init__(self, source: Source, what: str, channels: int):
        """Takes what errors call the source, and the channels that its images must have.

        Raises:
            DataError: it is empty.
        """
        if not len(source):
            raise DataError(f'the {what} has no samples')
        self._source, self._what, self._channels = source, what, channels

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index) -> Sample:
        """Reads a sample.

        Raises:
            DataError: it cannot be used, see `check_sample`.
        """
        sample = self._source[index]
        return check_sample(sample, self._source.dataset.num_classes, self._channels, self._what)

    def __getattr__(self, name):
        if name.startswith('_'):  # of an object that is being unpickled
            raise AttributeError(name)
        return getattr(self._source, name)


class Subset:
    """Some samples of a source, in the order of a list of indices; they may repeat."""

    # What a source may offer beside its samples, for each of them.
    _OFFERED = 'encoded', 'in_regions', 'label', 'values'

    def __init__(self, source: Source, indices: Sequence[int]):
        self.dataset, self.problems = source.dataset, getattr(source, 'problems', ())
        self.split = getattr(source, 'split', '')
        self._source, self._indices = source, [int(index) for index in indices]

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, index) -> Sample:
        return self._source[self._indices[index]]

    def __getattr__(self, name):
        if name not in self._OFFERED:
            raise AttributeError(name)
        method = getattr(self._source, name)
        return lambda index: method(self._indices[index])

    def look(self, index, **options):
        """Reads one sample; see `survey.look`."""
        return look(self._source, self._indices[index], **options)

    def image_files(self):
        """The image files, if the samples have any."""
        files: list[str] = getattr(self._source, 'image_files', list)()
        return [files[index] for index in self._indices] if files else []


def named(source: Source, split: str, pattern: str) -> Subset:
    """The samples of a split whose names fit a pattern, as in a shell; after `!`, those whose do not.

    Raises:
        ConfigError: no name fits, or the names are not known before the samples are read.
    """
    if not hasattr(source, 'names'):
        raise ConfigError(f'{split}[{pattern}]: only the samples of a folder are chosen by their names')
    names, leave = source.names(), pattern.startswith('!')
    fits = [fnmatch.fnmatchcase(name, pattern.removeprefix('!')) for name in names]
    chosen = [index for index, fit in enumerate(fits) if fit != leave]
    if not chosen or len(chosen) == len(names):
        which = 'none' if all(fits) == leave else 'all'
        raise ConfigError(
            f'{split}[{pattern}] is {which} of the {len(names)} samples, whose names are such as {names[0]} '
            f'and {names[-1]}'
        )
    return Subset(source, chosen)


def read_image(path: str | os.PathLike, reading: Reading = PLAIN) -> np.ndarray:
    """Reads an image file as (H, W, N) uint8, upright according to its EXIF orientation: see `decode_image`.

    Raises:
        DataError: it cannot be read.
    """
    return decode_image(read_file(path, 'image'), path, reading=reading)


def read_label(folder: str | os.PathLike, image: str | os.PathLike, dataset: Dataset) -> np.ndarray:
    """Reads the label of an image as (H, W) uint8: class index, or IGNORE.

    Args:
        folder: holds labels, named as in one of the dataset's layouts, or like the image with .png.
        image: its path below its own folder.
        dataset: defines what the values mean.

    Raises:
        DataError: there is none, it is unreadable or truncated, or it has values that the dataset lacks.
    """
    image = os.fspath(image)
    expected = []
    for layout in dataset.layouts:
        endings = *layout.image_endings, os.path.splitext(image)[1]
        for ending in (layout.label_ending, '.png'):
            path = os.path.join(folder, without_ending(image, endings) + ending)
            if os.path.isfile(path):
                if ending != '.mat':
                    layout = replace(layout, variable=None)
                return decode_label(read_file(path, 'label'), layout, path, dataset.name).classes
            expected.append(path)
    raise DataError(f'no label of {image}: expected {" or ".join(dict.fromkeys(expected))}')
