"""What earlier versions computed before a setting existed, so that their runs continue unchanged.

A saved config has all settings of its time. A new setting needs an entry in BEFORE: what the code computed
until then, which need not be the new default. A renamed setting needs an entry in RENAMED, and a removed one
an entry in GONE: the value that means what the code does now.
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
    """Version of the embedded scenes: their drawing changed in the commits that added these settings."""
    return 1 if 'dataset.scenes.seed' not in run else 2 if 'init.from' not in run else 3


# Setting -> its value in runs without it, or a function of the settings they have; by commit.
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
    # 17d2a01: only folders, of the datasets in `data/classes.py`
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
    # 9a0c97b: batches were split over all devices, images were not split
    'mesh.data': -1,
    'mesh.space': 1,
    'model.remat': [],
    # 4585f74: a batch was computed in one part
    'train.accumulate': 1,
    # after 2f310e6: scenes were drawn as by the commit
    'dataset.scenes.version': _scenes_version,
    # after 9140866: shortcuts projected at their stride, and both 3x3 convolutions were dilated
    'model.avg_down': False,
    'model.dilate_second_conv': True,
    # after eb4be86: images were RGB, of 16 bits the upper 8, and of several pages the first;
    # losses were averaged over the pixels that count
    'dataset.reduce_zero_label': False,
    'dataset.image_ending': '',
    'dataset.val_share': 0.0,
    'dataset.image_range': '',
    'dataset.bands': '',
    'dataset.page': 1,
    'dataset.max_pixels': 1_000_000_000,
    'loss.average': 'valid',
    'check.strict': False,
    # after 95a1f31: the main loss was one of two cross-entropies
    'loss.terms': '',
    'loss.balance': 'none',
    'dataset.repeat_threshold': 0.0,
    'loss.label_smoothing': 0.0,
    'loss.boundary_weight': 1.0,
    'loss.boundary_width': 2,
    'loss.focal_gamma': 2.0,
    'loss.tversky': [0.3, 0.7],
    # crops were scaled, flipped and made brighter
    'augment.jitter': [0.0, 0.0, 0.0, 0.0],
    'augment.jitter_share': 1.0,
    'augment.blur': 0.0,
    'augment.blur_sigma': [0.1, 2.0],
    'augment.noise': 0.0,
    'augment.grey': 0.0,
    'augment.rotation': 0.0,
    'augment.max_class_share': 1.0,
    'augment.rare_crop': 0.0,
    'augment.rand_augment': 0,
    'augment.rand_magnitude': 9,
    'augment.mix': 'none',
    'augment.mix_share': 0.5,
    # after 95a1f31: SGD without warm-up, clipping, groups or an average, to the last step
    'optim.name': 'sgd',
    'optim.args': '',
    'optim.schedule': 'poly',
    'optim.warmup_steps': 0,
    'optim.warmup_factor': 0.0,
    'optim.decay_factors': '',
    'optim.factors': '',
    'optim.clip_norm': 0.0,
    'optim.ema_decay': 0.0,
    'init.prefer': '',
    'train.frozen_norm': '',
    'train.patience': 0,
    # after 551e710: the context block was followed by the classifier
    'model.decoder': 'none',
    'model.decoder_channels': 256,
    'train.deterministic': False,
}

# Old name -> current name.
RENAMED = {
    # 33fc071
    'benchmark.peer_sizes': 'benchmark.reference_sizes',
    'benchmark.peer_step_sizes': 'benchmark.reference_step_sizes',
    'benchmark.peer_batch': 'benchmark.reference_batch',
    'benchmark.peer_compile': 'benchmark.reference_compile',
}

# Removed setting -> the value that means what the code does now. Runs with another cannot continue.
GONE: dict[str, Any] = {}


def complete(saved: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Completes a saved config with the settings that were added since.

    Args:
        saved: as read from JSON; the whole config, or some sections.

    Returns:
        The complete config, and the settings that were missing, by names such as 'model.remat'.
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
    """Logs which settings a run or a weights folder is older than."""
    if added:
        shown = ', '.join(f'{name}={value!r}' for name, value in added.items())
        logger.info('%s is older than these settings and keeps what it computed: %s', path, shown)


def note_unknown(path: Path, names: Iterable[str]) -> None:
    """Warns about what a newer version added to a checkpoint or a weights folder, and this one ignores."""
    if names := sorted(names):
        logger.warning(
            '%s also holds %s, which this version does not know and ignores', path, ', '.join(names)
        )


def flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Flattens a config: settings by names such as 'model.remat'."""
    settings: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            settings |= flat(value, f'{prefix}{key}.')
        else:
            settings[prefix + key] = value
    return settings


def saved_config(facts: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Returns the config in the facts of a checkpoint.

    Raises:
        VersionError: there is none, or one without the network or its input.
    """
    for section in ('config', 'model', 'input'):
        config = facts.get('config')
        held = config.get(section) if isinstance(config, dict) and section != 'config' else config
        if not isinstance(held, dict):
            raise not_understood(path, facts.get('version'), f'it does not hold its {section}')
    return facts['config']


def not_understood(path: Path, version: str | None, what: str, cure: str = '') -> VersionError:
    """The error for a checkpoint or weights that are intact, but were written by another version.

    Args:
        path: of the checkpoint or the weights.
        version: of ann_jax that wrote them, if known.
        what: what this version does not understand.
        cure: how to use parts of it with this version; '' if that is impossible.
    """
    numbers = lambda text: [int(part) for part in re.findall(r'\d{1,9}', text)[:3]]
    newer = 'newer' if version and numbers(version) > numbers(__version__) else 'newer or changed'
    use = f', or {cure}' if cure else '; this one can use nothing of it'
    return VersionError(
        f'{path} was written by a {newer} version of ann_jax ({version or "it does not say which"}; this is '
        f'{__version__}): {what}. Use that version{use}'
    )
