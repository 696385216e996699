"""A model folder: a network's weights with all facts that using them takes, without torch or a config.

folder/model.json    settings of the network, normalisation of its input, classes, where it comes from
folder/weights.npz   the variables, float32, under names such as 'params/backbone/stem/conv1/kernel'
"""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from ann_jax.errors import ConfigError, DataError, listed
from ann_jax.models.ann import ANN
from ann_jax.models.settings import network
from ann_jax.typing import Backbone

VERSION = 2  # 2: 'backbone' in model.json
# What the weights of a backbone fix of `config.model`.
BACKBONE_FACTS = ('depth', 'width', 'stem_widths', 'ceil_pool')
# What weights do not fix.
FREE_SETTINGS = ('dropout', 'dtype', 'remat')
PARTS = ('all', 'backbone', 'but_classifier')


@dataclass(frozen=True)
class Weights:
    """Weights and what belongs to them.

    Attributes:
        variables: of `ANN`, NumPy float32; of a backbone alone, those under 'backbone'.
        model: settings of `config.model` that the weights fix.
        input: normalisation, as `config.input`.
        classes: names; none for a backbone.
        colors: RGB of each class.
        source: where the weights come from, for people to read.
        backbone: name of the class of the backbone; '' for the `ResNet` of `model`.
    """

    variables: dict[str, Any]
    model: dict[str, Any]
    input: dict[str, Any]
    classes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    source: dict[str, Any] = field(default_factory=dict)
    backbone: str = ''

    def network(self, backbone: Backbone | None = None, **settings: Any) -> ANN:
        """The network of the weights.

        Args:
            backbone: the one they were trained with, if it is not of this package.
            **settings: what weights do not fix: dtype, dropout, remat.

        Raises:
            ConfigError: they are those of a backbone alone, or of one that has to be given.
        """
        if not self.classes:
            raise ConfigError(
                'these weights are a backbone alone, which tells no classes: train a head first'
            )
        if self.backbone and backbone is None:
            raise ConfigError(
                f'these weights were trained with a backbone of their own, {self.backbone}: give it, as in '
                f'ann_jax.load(path, backbone={self.backbone}(...))'
            )
        return network({**self.model, **settings}, len(self.classes), backbone)


def save(folder: Path, weights: Weights) -> None:
    """Writes a model folder, whole or not at all.

    Raises:
        ConfigError: the folder exists.
    """
    if folder.exists():
        raise ConfigError(f'{folder} exists: name a new folder, or remove it first')
    facts = {item.name: getattr(weights, item.name) for item in fields(weights) if item.name != 'variables'}
    version = VERSION
    if not weights.backbone:
        del facts['backbone']
        version = 1  # what older versions of this package open
    flat = traverse_util.flatten_dict(weights.variables, sep='/')
    draft = folder.with_name(f'.{folder.name}.{os.getpid()}')
    draft.mkdir(parents=True)
    try:
        np.savez(
            draft / 'weights.npz', **{name: np.asarray(array, np.float32) for name, array in flat.items()}
        )
        facts |= {'version': version, 'sha256': sha256(draft / 'weights.npz')}
        (draft / 'model.json').write_text(json.dumps(facts, indent=1) + '\n', encoding='utf-8')
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load(folder: Path) -> Weights:
    """Reads a model folder.

    Raises:
        DataError: the folder is incomplete or damaged, or was written by a newer version.
    """
    try:
        facts = json.loads((folder / 'model.json').read_text(encoding='utf-8'))
        version, digest = facts.pop('version'), facts.pop('sha256')
        if version > VERSION:
            raise DataError(f'{folder} was written by a newer version of ann_jax: update ann_jax')
        if sha256(folder / 'weights.npz') != digest:
            raise DataError(f'{folder}/weights.npz is not what model.json says was written: make it anew')
        with np.load(folder / 'weights.npz', allow_pickle=False) as arrays:
            variables = traverse_util.unflatten_dict(dict(arrays), sep='/')
        return Weights(variables=variables, **{key: as_tuples(value) for key, value in facts.items()})
    except (OSError, KeyError, TypeError, UnicodeError, json.JSONDecodeError, zipfile.BadZipFile) as error:
        raise DataError(f'{folder} is not a whole model folder ({error}): make it anew') from error


def start(initial: Mapping, loaded: Mapping, parts: str) -> dict[str, Any]:
    """First variables of a training: the loaded parts, and the initial values of the rest.

    Args:
        initial: variables of the network to train.
        loaded: variables of another network, or of a backbone alone.
        parts: 'all', 'backbone', or 'but_classifier' for all but the last layers of both heads.

    Raises:
        ConfigError: a loaded part does not fit; the message lists the tensors, and the choice that would.
    """
    initial, loaded = (traverse_util.flatten_dict(dict(tree)) for tree in (initial, loaded))

    def wanted(path):
        classifier = path[1] in ('classifier', 'aux_classifier')
        return {'all': True, 'backbone': path[1] == 'backbone', 'but_classifier': not classifier}[parts]

    problems, merged = [], dict(initial)
    for path in filter(wanted, initial):
        name = '/'.join(path)
        if path not in loaded:
            problems.append(f'{name}: absent')
        elif loaded[path].shape != initial[path].shape:
            problems.append(f'{name}: {loaded[path].shape}, the network has {initial[path].shape}')
        else:
            merged[path] = loaded[path]
    problems += [
        f'{"/".join(path)}: no place for it' for path in filter(wanted, loaded) if path not in initial
    ]
    if problems:
        raise ConfigError(
            f'the weights of init.from do not fit the network with init.parts={parts}:{listed(problems)}'
            '\nchoose: --config.init.parts=backbone for a fresh head, but_classifier for other classes'
        )
    return traverse_util.unflatten_dict(merged)


def sha256(path: Path) -> str:
    """Checksum of a file, as 64 hexadecimal digits."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def as_tuples(value):
    """What JSON gave back, with the tuples that it has no word for."""
    if isinstance(value, list):
        return tuple(map(as_tuples, value))
    return {key: as_tuples(item) for key, item in value.items()} if isinstance(value, dict) else value
