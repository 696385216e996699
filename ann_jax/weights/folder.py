"""The weights folder: the weights of a network with all that is needed to use them, and no config.

folder/model.json            settings of the network, normalisation of its input, classes, origin
folder/weights.safetensors   the variables, float32, under names such as 'params/backbone/stem/conv1/kernel';
                             weights.npz until version 2
folder/README.md             a card for hubs of models
"""

import functools
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from ann_jax import __version__
from ann_jax.data.decode.levels import Reading, channels_of
from ann_jax.data.decode.reading import MAX_PIXELS
from ann_jax.data.palette import distinct_colors
from ann_jax.errors import ConfigError, DataError
from ann_jax.files import making, refuse_special
from ann_jax.models.ann import ANN
from ann_jax.models.settings import (
    BACKBONE_FACTS,
    OF_BACKBONE,
    OF_HEAD,
    OPTIONAL,
    network,
    unknown_settings,
)
from ann_jax.runs import history
from ann_jax.typing import Backbone
from ann_jax.weights import safetensors, soundness
from ann_jax.weights.arrays import read_variables
from ann_jax.weights.card import card

logger = logging.getLogger(__name__)

VERSION = 3  # 2: 'backbone' in model.json; 3: 'images', and weights.safetensors
ARRAYS = ('weights.safetensors', 'weights.npz')
FACTS = {'model', 'input', 'classes', 'colors', 'source', 'backbone', 'images'}
# Settings of `config.dataset` that say what the network was trained to see.
IMAGES = ('image_range', 'bands')
WRITER = 'ann_jax'  # in `source`: the version of this package that wrote the folder
INPUT = ('mean', 'std', 'bgr')


@dataclass(frozen=True)
class Weights:
    """Weights, and what is needed to use them.

    Attributes:
        variables: of `ANN`, NumPy float32; for a backbone alone, only those under 'backbone'.
        model: settings of `config.model` that the weights determine.
        input: normalisation, as `config.input`.
        classes: names; () for a backbone alone.
        colors: RGB of each class.
        source: where the weights come from, for information.
        backbone: class name of the backbone; '' for the `ResNet` of `model`.
        images: how images were read, those of the settings `IMAGES` that are not empty.
        path: the weights folder, or RUN/checkpoints/STEP.
        version: of ann_jax that wrote them; '' if unknown.
    """

    variables: dict[str, Any]
    model: dict[str, Any]
    input: dict[str, Any]
    classes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    source: dict[str, Any] = field(default_factory=dict)
    backbone: str = ''
    images: dict[str, str] = field(default_factory=dict)
    path: Path = Path()
    version: str = ''

    def refuse_unknown(self, parts: str = 'all') -> None:
        """Refuses weights if this version cannot rebuild their network, or only its backbone.

        Args:
            parts: what is used of them, one of `start.PARTS`.

        Raises:
            VersionError: a setting or value is unknown, or a setting is missing.
        """
        if parts == 'backbone':
            model = {key: self.model[key] for key in BACKBONE_FACTS if key in self.model}
            lines, cure = unknown_settings(model, BACKBONE_FACTS), ''
        else:
            needed = BACKBONE_FACTS if not self.classes else OF_HEAD + (() if self.backbone else OF_BACKBONE)
            lines = unknown_settings(self.model, needed)
            cure = 'train a new head on its backbone: --config.init.from={} --config.init.parts=backbone'
            cure = cure.format(self.path)
        lines += [f'input.{key}={value!r}' for key, value in self.input.items() if key not in INPUT]
        lines += [f'no input.{key}' for key in INPUT if key not in self.input]
        if lines:
            what = f'settings of its network are unknown or missing here ({"; ".join(lines)})'
            raise history.not_understood(self.path, self.version, what, cure)

    def network(self, backbone: Backbone | None = None, **settings: Any) -> ANN:
        """Builds the network of the weights.

        Args:
            backbone: the one they were trained with, if it is not from this package.
            **settings: dtype, dropout and remat, which weights do not determine.

        Raises:
            ConfigError: they are a backbone alone, or were trained with another backbone, which is not given.
            VersionError: see `refuse_unknown`.
            DataError: the arrays are not those of a network on that backbone.
        """
        self.refuse_unknown()
        if not self.classes:
            raise ConfigError('these weights are a backbone alone, without classes: train a head first')
        if self.backbone and backbone is None:
            raise ConfigError(
                f'these weights were trained with a custom backbone, {self.backbone}: pass it, as in '
                f'ann_jax.load(path, backbone={self.backbone}(...))'
            )
        built = network({**self.model, **settings}, len(self.classes), backbone, self.in_channels)
        if backbone is not None and self.variables:  # a segmenter keeps only the folded ones, apart
            soundness.check_network(self.path, self.variables, built)
        return built

    def check(self) -> None:
        """Checks settings and arrays, those of a custom backbone only for their numbers.

        Raises:
            DataError: they cannot be right; see `soundness.check`.
        """
        names = ('model', 'input', 'classes', 'colors', 'backbone', 'images')
        soundness.check(self.path, self.variables, **{name: getattr(self, name) for name in names})

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return channels_of(self.images.get('bands', ''))

    def reading(
        self, image_range: str = '', bands: str = '', page: int = 0, max_pixels: int = MAX_PIXELS
    ) -> Reading:
        """How images are read for these weights.

        Args:
            image_range, bands: as `config.dataset`; only for weights that were trained without.
            page, max_pixels: see `Reading`.

        Raises:
            ConfigError: a setting cannot be used, or is not that of the training.
        """
        given = {'image_range': image_range, 'bands': bands}
        for name, trained in self.images.items():
            if given[name] not in ('', trained):
                raise ConfigError(f'{name}={given[name]!r}: these weights were trained with {trained!r}')
        reading = Reading.parse(**{**given, **self.images}, page=page, max_pixels=max_pixels)
        if (len(reading.bands) or 3) != self.in_channels:
            raise ConfigError(
                f'bands={bands!r} picks {len(reading.bands)}, but these weights take {self.in_channels}'
            )
        return reading


def save(folder: Path, weights: Weights) -> None:
    """Writes a weights folder, completely or not at all.

    Raises:
        ConfigError: the folder exists.
        SaveError: it cannot be written.
    """
    with making(folder, 'model.json') as draft:
        write(draft, weights)


def write(folder: Path, weights: Weights) -> None:
    """Writes the files of weights into a folder that is there.

    Raises:
        OSError, SaveError: it cannot be written.
    """
    facts = {item.name: getattr(weights, item.name) for item in fields(weights) if item.name in FACTS}
    # In `source`, because older versions refuse unknown keys.
    facts['source'] = facts['source'] | {WRITER: __version__}
    for key in ('backbone', 'images'):
        if not facts[key]:
            del facts[key]
    flat = traverse_util.flatten_dict(weights.variables, sep='/')
    arrays: dict[str, Any] = {name: np.asarray(array, np.float32) for name, array in flat.items()}
    safetensors.write(folder / ARRAYS[0], arrays)
    facts |= {'version': VERSION, 'sha256': sha256(folder / ARRAYS[0])}
    (folder / 'model.json').write_text(json.dumps(facts, indent=1) + '\n', encoding='utf-8')
    (folder / 'README.md').write_text(card(facts), encoding='utf-8')


def load(folder: Path) -> Weights:
    """Reads a weights folder.

    Raises:
        DataError: the folder is incomplete or damaged, or another program wrote its model.json.
        VersionError: it was written by a newer version, or lacks what every version writes.
    """
    cure = 'move it away and create it again, or restore a copy'
    try:
        facts = soundness.read_facts(folder / 'model.json', VERSION)
        version, digest = facts.pop('version', VERSION), facts.pop('sha256', None)
        source = facts.get('source', {})
        writer = str(source.get(WRITER, '')) if isinstance(source, dict) else ''
        refusal = functools.partial(history.not_understood, folder, writer)
        arrays = next((folder / name for name in ARRAYS if (folder / name).is_file()), folder / ARRAYS[0])
        plain = f'read the arrays of {arrays} as plain arrays'
        if version > VERSION:
            raise refusal(f'format {version} of model.json is newer than {VERSION}', plain)
        if missing := [key for key in ('model', 'input') if key not in facts]:
            raise refusal(f'model.json has no {", ".join(missing)}', plain)
        if digest is None:
            logger.warning('%s has no checksum: its content cannot be verified', folder)
        elif sha256(arrays) != digest:
            raise DataError(f'{arrays} does not match its checksum in model.json: {cure}')
        variables = read_variables(arrays)
    except OSError as error:
        raise DataError(f'{folder} is a damaged weights folder ({error}): {cure}') from error
    history.note_unknown(folder, facts.keys() - FACTS)
    classes, colors = class_facts(facts, variables, folder)
    return Weights(
        variables=variables,
        model=as_tuples(facts['model']),
        input=as_tuples(facts['input']),
        classes=classes,
        colors=colors,
        source=as_tuples(source),
        backbone=facts.get('backbone', ''),
        images={key: value for key, value in facts.get('images', {}).items() if key in IMAGES},
        path=folder,
        version=writer,
    )


def complete_model(saved: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Completes saved settings of a network; returns those that weights determine, and which were added."""
    whole, added = history.complete({'model': saved})
    if not {*OF_HEAD} & saved.keys():  # a backbone alone
        whole['model'] = {
            key: value for key, value in whole['model'].items() if key in BACKBONE_FACTS or key in saved
        }
    fixed = {key: value for key, value in whole['model'].items() if key not in OPTIONAL}
    return fixed, {name: value for name, value in added.items() if name.removeprefix('model.') in fixed}


def class_facts(facts: Mapping[str, Any], variables: Mapping[str, Any], path: Path) -> tuple[tuple, tuple]:
    """Names and colours of the classes; numbers and those of the palette if the facts lack them."""
    bias = variables.get('params', {}).get('classifier', {}).get('bias')
    count = len(bias) if np.ndim(bias) == 1 else 0
    classes = as_tuples(facts.get('classes', [f'class {i}' for i in range(count)]))
    if 'classes' not in facts and count:
        logger.info('%s does not name its %d classes', path, count)
    return classes, as_tuples(facts.get('colors', distinct_colors(len(classes))))


def sha256(path: Path) -> str:
    """Checksum of a file, as 64 hexadecimal digits.

    Raises:
        DataError: it is no regular file.
    """
    refuse_special(path, 'weights')
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def as_tuples(value):
    """Turns lists back into tuples, which JSON does not have."""
    if isinstance(value, list):
        return tuple(map(as_tuples, value))
    return {key: as_tuples(item) for key, item in value.items()} if isinstance(value, dict) else value
