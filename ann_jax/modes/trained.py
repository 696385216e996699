"""Opens the weights to evaluate, predict with or export."""

import json
import logging
from pathlib import Path

from ml_collections import ConfigDict

from ann_jax.buckets.paths import same
from ann_jax.config import adopt
from ann_jax.data.scenes import VERSIONS
from ann_jax.runs import history
from ann_jax.runs.facts import read_facts
from ann_jax.typing import Backbone
from ann_jax.weights.folder import Weights
from ann_jax.weights.hub import located
from ann_jax.weights.opening import open_network

logger = logging.getLogger(__name__)


def open_trained(config: ConfigDict, workdir: Path, backbone: Backbone | None = None) -> tuple[Weights, Path]:
    """Opens `init.from` if it is given, or else the run in the working directory; returns weights and path.

    A run that started from `init.from` is what counts, not its start. The config is adapted to the weights;
    scenes are drawn as the run's commit drew them.

    Raises:
        ConfigError: there are none, or their backbone is not from this package and was not given.
        DataError: they are damaged, or another version wrote them.
    """
    given = config.init['from']
    if given and (workdir / 'checkpoints').is_dir():
        if same(given, str(workdir)):
            given = ''
        elif same(given, _start_of(workdir)):
            logger.info('the run in %s, which started from %s', workdir, given)
            given = ''
        else:
            logger.warning('init.from=%s, and not the run in %s', given, workdir)
    path = located(given or workdir)
    opened = open_network(path, config.init.prefer)
    opened.network(backbone)  # refuses a backbone that is missing
    for line in adopt(config, model=opened.model, input=opened.input, dataset=opened.images):
        logger.info('as trained, not as given: %s', line)
    for line in adopt(config, dataset={'scenes': _scenes(config, opened)}):
        logger.info('as trained, not as given: %s', line)
    return opened, path


def _start_of(workdir):
    """What `init.from` was when the run began."""
    try:
        saved = json.loads((workdir / 'config.json').read_text(encoding='utf-8'))
        return saved['init']['from']
    except (OSError, ValueError, LookupError, TypeError):
        return ''


def _scenes(config, opened):
    """Settings of the scenes: the config's, except for those that the run is older than."""
    scenes = config.dataset.scenes.to_dict()
    if opened.path.parent.name == 'checkpoints':
        _, added = history.complete(history.saved_config(read_facts(opened.path), opened.path))
        prefix = 'dataset.scenes.'
        scenes |= {name.removeprefix(prefix): added[name] for name in added if name.startswith(prefix)}
    for version, classes in VERSIONS.items():
        if opened.classes == classes:
            scenes['version'] = version
    return scenes
