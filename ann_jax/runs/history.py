"""What earlier versions computed where they had no setting yet, so that their runs stay what they are.

A saved config holds every setting of its time. Whoever adds a setting adds to BEFORE what the code computed
until then, which need not be the new default; whoever renames one adds to RENAMED; whoever removes one adds
to GONE the value that means what the code does now.
"""

import functools
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ann_jax import __version__
from ann_jax.errors import VersionError

logger = logging.getLogger(__name__)


def _scenes_version(run):
    """Of the embedded scenes: their drawing changed with the commits that added these settings."""
    return 1 if 'dataset.scenes.seed' not in run else 2 if 'init.from' not in run else 3


# Setting -> its value for runs that lack it, or a function of the settings that they have; by commit.
BEFORE: dict[str, Any] = {
    # 6e567c6: scenes were drawn with the seed of the run.
    'dataset.scenes.seed': lambda run: run.get('seed', 0),
    # 91b53a3
    'model.out_norm': False,
    # 477a583
    'init.from': '',
    'init.parts': 'all',
    # e99eb38: whole images, at one scale
    'eval.scales': [1.0],
    'eval.flip': False,
    'eval.crop': [],
    'eval.stride': [],
    'eval.average': 'logits',
    # 17d2a01: folders only, of datasets that the table of `data/classes.py` knows
    'dataset.format': 'folder',
    'dataset.classes': '',
    'dataset.images': 'images/{split}',
    'dataset.labels': 'labels/{split}',
    'dataset.lists': '',
    'dataset.label_ending': '.png',
    'dataset.label_map': '',
    # 7f1efd2: an error ended the run
    'loader.bad_samples': 'stop',
    'train.not_finite': 'stop',
    # 9a0c97b: a batch was split over all devices, an image over none
    'mesh.data': -1,
    'mesh.space': 1,
    'model.remat': [],
    # 4585f74: a batch was computed at once
    'train.accumulate': 1,
    # after 2f310e6: the scenes were those of the commit
    'dataset.scenes.version': _scenes_version,
}

# Old name -> the name now.
RENAMED = {
    # 33fc071
    'benchmark.peer_sizes': 'benchmark.reference_sizes',
    'benchmark.peer_step_sizes': 'benchmark.reference_step_sizes',
    'benchmark.peer_batch': 'benchmark.reference_batch',
    'benchmark.peer_compile': 'benchmark.reference_compile',
}

# Setting that is no more -> the value that means what the code does now. Runs with another cannot go on.
GONE: dict[str, Any] = {}


def complete(saved: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A saved config in today's settings.

    Args:
        saved: as JSON gave it back; whole, or some sections.

    Returns:
        The config with the settings that it lacks, and those that were added, by names such as 'model.remat'.
    """
    run = {RENAMED.get(name, name): value for name, value in flat(saved).items()}
    run = {name: value for name, value in run.items() if name not in GONE or value != GONE[name]}
    added = {
        name: value(run) if callable(value) else value for name, value in BEFORE.items() if name not in run
    }
    whole: dict[str, Any] = {}
    for name, value in (run | added).items():
        *sections, key = name.split('.')
        functools.reduce(lambda tree, section: tree.setdefault(section, {}), sections, whole)[key] = value
    return whole, added


def note(path: Path, added: Mapping[str, Any]) -> None:
    """Logs which settings a run or a folder of weights does not have."""
    if added:
        shown = ', '.join(f'{name}={value!r}' for name, value in added.items())
        logger.info('%s is older than these settings and keeps what it computed: %s', path, shown)


def note_unknown(path: Path, names: Iterable[str]) -> None:
    """Warns of what a newer version added to a checkpoint or to a folder of weights, which is left there."""
    if names := sorted(names):
        logger.warning(
            '%s also holds %s, which this version does not know: the rest is taken', path, ', '.join(names)
        )


def flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Settings by names such as 'model.remat'."""
    settings: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            settings |= flat(value, f'{prefix}{key}.')
        else:
            settings[prefix + key] = value
    return settings


def saved_config(facts: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The config among the facts of a checkpoint.

    Raises:
        VersionError: they have none.
    """
    for section in ('config', 'model', 'input'):
        if not isinstance(facts.get('config'), dict) or section not in ('config', *facts['config']):
            raise not_understood(
                path, facts.get('version'), f'it does not keep its {section}', 'nothing of it can be taken'
            )
    return facts['config']


def not_understood(path: Path, version: str | None, what: str, cure: str) -> VersionError:
    """The error for a checkpoint, or for weights, that is whole but not of this version.

    Args:
        path: where it lies.
        version: of this package, that wrote it, if it says so.
        what: it has that this version does not know.
        cure: what can be taken of it, and how.
    """
    numbers = lambda text: [int(part) for part in re.findall(r'\d+', text)[:3]]
    newer = 'newer' if version and numbers(version) > numbers(__version__) else 'newer or changed'
    return VersionError(
        f'{path} was written by a {newer} version of ann_jax ({version or "it does not say which"}; this is '
        f'{__version__}): {what}. Use that version, or: {cure}'
    )
