"""Trained weights, whatever they lie in: a run's workdir, or a model folder."""

import contextlib
import logging
from pathlib import Path

import jax
from ml_collections import ConfigDict

from ann_jax import build, weights
from ann_jax.checkpoint import Checkpoints
from ann_jax.config import adopt
from ann_jax.errors import ConfigError
from ann_jax.sharding import make_mesh, replicated
from ann_jax.state import TrainState, abstract_state
from ann_jax.weights import FREE_SETTINGS, Weights

logger = logging.getLogger(__name__)


def open_weights(path: Path) -> Weights:
    """Reads the best checkpoint of a run (the newest if none has a score), the one named, or a model folder.

    Args:
        path: a run, RUN/checkpoints/STEP, or a folder with a model.json.

    Raises:
        ConfigError: there is none of them.
        DataError: a model folder, or every checkpoint that may be taken, is damaged.
    """
    if (path / 'model.json').is_file():
        return weights.load(path)
    only = None
    if path.parent.name == 'checkpoints' and path.name.isdigit() and path.is_dir():
        path, only = path.parent.parent, int(path.name)
    if not (path / 'checkpoints').is_dir():
        raise ConfigError(f'{path} holds no checkpoint and no model.json: name a run, or a folder of weights')
    with contextlib.closing(Checkpoints(path / 'checkpoints')) as checkpoints:
        best = checkpoints.best
        # A damaged checkpoint is passed over.
        steps = [step for step in (best, *checkpoints.steps) if step is not None]
        if not steps:
            raise ConfigError(f'{path} holds no checkpoint yet: train first')
        step, facts, state = checkpoints.restore_first(
            dict.fromkeys(steps) if only is None else [only], _like
        )
    kind = 'its best' if step == best else 'its newest whole one' if only is None else 'as named'
    logger.info('%s at step %d, %s', path, step, kind)
    settings = {key: value for key, value in facts['config']['model'].items() if key not in FREE_SETTINGS}
    return Weights(
        variables=jax.device_get(state.variables),
        model=weights.as_tuples(settings),
        input=weights.as_tuples(facts['config']['input']),
        classes=tuple(facts['classes']),
        colors=weights.as_tuples(facts['colors']),
        source={'run': path.name, 'step': step},
    )


def open_network(path: Path) -> Weights:
    """Reads weights as `open_weights` does, and refuses a backbone alone.

    Raises:
        ConfigError: there are no weights, or they have no classifier.
        DataError: they are damaged.
    """
    opened = open_weights(path)
    if not opened.classes:
        raise ConfigError(f'{path} is a backbone alone, which tells no classes: train a head first')
    return opened


def open_trained(config: ConfigDict, workdir: Path) -> tuple[Weights, Path]:
    """The weights to use, and where they lie: the run in the workdir, or without one those of `init.from`.

    The config follows what the weights fix, whatever it says.

    Raises:
        ConfigError, DataError: see `open_network`.
    """
    is_run = (workdir / 'checkpoints').is_dir()
    path = workdir if is_run else Path(config.init['from'] or workdir).expanduser()
    opened = open_network(path)
    for line in adopt(config, model=opened.model, input=opened.input):
        logger.info('as trained, not as given: %s', line)
    return opened, path


def _like(facts) -> TrainState:
    config = ConfigDict(facts['config'])
    model, tx = build.model(config, len(facts['classes'])), build.optimizer(config)
    # Several processes restore together; one alone needs no more than its first device.
    mesh = make_mesh(None if jax.process_count() > 1 else jax.local_devices()[:1])
    return abstract_state(model, tx, replicated(mesh))
