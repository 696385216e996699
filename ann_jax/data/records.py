"""Datasets as ArrayRecord files, written and read through TFDS; TensorFlow is not needed for either.

A record holds the unchanged bytes of the image file and the label as a PNG of class indices, so a source of
records yields exactly the samples of the source it was written from, in the same order. TFDS is imported only
when it is needed: `pip install 'ann_jax[datasets]'`, which also installs what TFDS forgets to declare.
"""

import bisect
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ann_jax.data.classes import DATASETS
from ann_jax.data.decode.images import PLAIN, decode_values, encode_png, match
from ann_jax.data.decode.jpeg import examine_jpeg
from ann_jax.data.decode.levels import Reading
from ann_jax.data.decode.reading import check_png, optional
from ann_jax.data.labels import decode_label
from ann_jax.data.layout import Dataset
from ann_jax.data.own.survey import Look
from ann_jax.errors import DataError, unknown
from ann_jax.files import writing
from ann_jax.typing import Sample, Source

VERSION = '1.0.0'
# Feature names: ours, and those of TFDS's `cityscapes` builder, which keeps raw label ids.
_OURS = 'name', 'image', 'label'
_STOCK = 'image_id', 'image_left', 'segmentation_label'
_STOCK_PARTS = {'val': 'validation'}
OWN = 'folder'  # `dataset.name` of every dataset of the user's own


class RecordSource:
    """Random access to the samples of one split of a dataset in ArrayRecord files.

    Attributes:
        dataset: the `Dataset`, as the files describe it.
        split: name of the split.
        problems: always empty.
    """

    problems = ()

    def __init__(self, name: str, root: str | os.PathLike, split: str, reading: Reading = PLAIN):
        """Opens the files below `root`/`name`, or those in `root` itself; `reading` says how images are read.

        Raises:
            DataError: there are none, or several versions; the split is unknown; TFDS is missing.
        """
        self._folder = _find(name, os.path.expanduser(root or ''))
        tfds = optional('tensorflow_datasets', self._folder)
        try:
            builder = tfds.builder_from_directory(self._folder)
            form = builder.info.file_format.value
            if form not in ('array_record', 'parquet'):
                raise DataError(f"{form} has no random access: let TFDS write file_format='array_record'")
            features, written = builder.info.features, builder.info.splits
            keys = next((keys for keys in (_OURS, _STOCK) if set(keys) <= set(features)), None)
            if keys is None:
                raise DataError(f'its features are {", ".join(features)}, not {", ".join(_OURS)}')
            self.dataset = _describe(name, builder.info.metadata or {}, written)
            parts = self.dataset.parts_of(split) or (split,)
            parts = [part if part in written else _STOCK_PARTS.get(part, part) for part in parts]
            absent = [part for part in parts if part not in written]
            if absent:
                raise DataError(unknown('split', absent[0], written))
            raw = tfds.decode.SkipDecoding()
            decoders = {keys[1]: raw, keys[2]: raw}
            self._parts = [(part, builder.as_data_source(part, decoders=decoders)) for part in parts]
        except Exception as e:  # damaged files can make TFDS raise anything
            reason = ' '.join(str(e).split())
            raise DataError(
                f'cannot read {name} in {self._folder}: {reason} (or write the records again)'
            ) from e
        self.split, self._keys, self._reading = split, keys, reading
        self._starts = [0]
        for _, records in self._parts:
            self._starts.append(self._starts[-1] + len(records))

    def __len__(self):
        return self._starts[-1]

    def __getitem__(self, index) -> Sample:
        """Reads one sample.

        Raises:
            DataError: a record is damaged.
        """
        return self.look(index, closely=False).sample()

    def look(self, index: int, *, image: bool = True, closely: bool = True) -> Look:
        """Reads one sample and tells how it is stored; see `survey.look`.

        Raises:
            DataError: as `__getitem__`, or see `examine_jpeg` and `check_png`.
        """
        record, part, where = self._record(index)
        name, data, label = (record[key] for key in self._keys)
        name = name.decode() if isinstance(name, bytes) else name
        layout = self.dataset.layouts[0]
        where = f'{where} ({name})'
        most = self._reading.max_pixels
        found = decode_label(label or b'', layout, where, self.dataset.name, max_pixels=most)
        if closely:
            examine_jpeg(data, where)
            check_png(data, where, 'image')
        return Look(
            f'{part}/{name}' if len(self._parts) > 1 else name,
            found,
            match(data, found.classes, where, 'in it', self._reading) if image else None,
            data,
        )

    def values(self, index: int) -> np.ndarray:
        """Reads the image of one sample before its values are scaled: (H, W, N) of the file's own type.

        Raises:
            DataError: as `__getitem__`.
        """
        record, _, where = self._record(index)
        return decode_values(record[self._keys[1]], where, self._reading)

    def _record(self, index):
        """A record, its part, and where it is."""
        if not 0 <= index < len(self):
            raise IndexError(f'record {index} of {len(self)}')
        number = bisect.bisect_right(self._starts, index) - 1
        part, records = self._parts[number]
        index -= self._starts[number]
        where = f'record {index} of {part} in {self._folder}'
        try:
            record = records[index]
        except Exception as e:  # damaged files can make the reader raise anything
            raise DataError(f'cannot read {where}: {e}; copy or write the records again') from e
        return record, part, where


def own_name(text: str) -> str:
    """The name of records of the user's own dataset, made of any text: folder_my_photos of 'My photos'."""
    word = re.sub(r'[^a-z0-9]+', '_', text.lower()).strip('_')
    return f'{OWN}_{word}' if word else OWN


def _find(name, root):
    """Returns the one folder with a dataset_info.json: `root` or below `root`/`name`."""
    top = Path(root or 'unset')  # an empty root does not mean the current folder
    found = [top] if (top / 'dataset_info.json').is_file() else []
    found = found or sorted(path.parent for path in (top / name).rglob('dataset_info.json'))
    if name == OWN and not found:  # of several own datasets, each has a name: see `own_name`
        found = [
            path.parent
            for path in (*top.glob('*/dataset_info.json'), *top.glob(f'{OWN}_*/*/dataset_info.json'))
        ]
    if len(found) != 1:
        kind = 'versions' if len({path.parent for path in found}) == 1 else 'datasets'
        several = (
            f'several {kind}: {", ".join(map(str, sorted(found)))}: name one of them'
            if found
            else 'no records'
        )
        raise DataError(
            f'{name}: --config.dataset.root={root!r} holds {several}; it is the folder that '
            '`python -m ann_jax.tools.write_tfds` wrote, or the data_dir of TFDS'
        )
    return str(found[0])


def _describe(name, metadata, written):
    """The dataset as the records describe it, or the one of that name in the table."""
    if 'classes' not in metadata:  # written by a builder of TFDS, which keeps raw values
        if name not in DATASETS:
            raise DataError(unknown('dataset', name, DATASETS))
        return DATASETS[name]
    known = DATASETS.get(name)
    return Dataset(
        name=name,
        classes=tuple(metadata['classes']),
        colors=tuple(map(tuple, metadata['colors'])),
        categories=tuple(metadata['categories']),
        splits=known.splits if known else {part: (part,) for part in written},
        counts=known.counts if known else {},
    )


def write(name: str, sources: Mapping[str, Source], folder: str | os.PathLike) -> Path:
    """Writes a dataset to ArrayRecord files, in the order of the sources.

    Args:
        name: of the dataset.
        sources: part -> samples that have `encoded()`, as `FolderSource` and `SceneSource` do.
        folder: where name/version/ is created.

    Returns:
        The folder of the files.

    Raises:
        DataError: a sample cannot be used; the files exist already; TFDS is missing.
        SaveError: the folder cannot be written.
    """
    tfds = optional('tensorflow_datasets', 'ArrayRecord')
    if (Path(folder) / name / VERSION).exists():
        raise DataError(
            f'{Path(folder) / name / VERSION} exists already: choose another folder, or move it away'
        )
    dataset = next(iter(sources.values())).dataset
    image = tfds.features.Image(shape=(None, None, 3))
    classes = tfds.features.Image(shape=(None, None, 1), encoding_format='png')
    metadata = {key: list(getattr(dataset, key)) for key in ('classes', 'colors', 'categories')}

    base: Any = tfds.core.GeneratorBasedBuilder

    class Builder(base, skip_registration=True):  # type: ignore[call-arg]  # TFDS's own argument
        VERSION = tfds.core.Version(VERSION)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=f'{name}: images as published, labels as class indices.',
                features=tfds.features.FeaturesDict(
                    {'name': tfds.features.Text(), 'image': image, 'label': classes}
                ),
                disable_shuffling=True,  # the order of the source is kept; training shuffles
                metadata=tfds.core.MetadataDict(metadata),
            )

        def _split_generators(self, manager):
            return {part: self._generate_examples(source) for part, source in sources.items()}

        def _generate_examples(self, source):
            for index in range(len(source)):
                sample, data = source.encoded(index)
                label = encode_png(sample['label'])
                yield index, {'name': sample['name'], 'image': data, 'label': label}

    Builder.name = name
    with tempfile.TemporaryDirectory() as downloads:
        try:
            builder = Builder(data_dir=os.fspath(folder), file_format='array_record')
            with writing(folder, RuntimeError):  # of array_record
                builder.download_and_prepare(download_dir=downloads)
        except ImportError as e:
            raise DataError(f'TFDS needs {e.name}, which it does not declare: pip install {e.name}') from e
    return Path(builder.data_dir)
