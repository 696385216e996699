"""Trained weights, whatever they lie in: a run's workdir, or a model folder."""

import contextlib
from pathlib import Path

import jax
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from ann_jax import build, weights
from ann_jax.checkpoint import Checkpoints
from ann_jax.errors import ConfigError
from ann_jax.state import abstract_state
from ann_jax.weights import FREE_SETTINGS, Weights


def open_weights(path: Path) -> Weights:
    """Reads the best checkpoint of a run (the newest if none has a score), or a model folder.

    Raises:
        ConfigError: there is neither.
        DataError: a model folder is damaged.
    """
    if (path / 'model.json').is_file():
        return weights.load(path)
    if not (path / 'checkpoints').is_dir():
        raise ConfigError(f'{path} holds no checkpoint and no model.json: name a run, or a folder of weights')
    with contextlib.closing(Checkpoints(path / 'checkpoints')) as checkpoints:
        step = checkpoints.best or checkpoints.latest
        if step is None:
            raise ConfigError(f'{path} holds no checkpoint yet: train first')
        facts = checkpoints.facts(step)
        config = ConfigDict(facts['config'])
        model, tx = build.model(config, len(facts['classes'])), build.optimizer(config)
        device = SingleDeviceSharding(jax.local_devices()[0])
        state = checkpoints.restore(step, abstract_state(model, tx, device))
    settings = {key: value for key, value in facts['config']['model'].items() if key not in FREE_SETTINGS}
    return Weights(
        variables=jax.device_get(state.variables),
        model=weights.as_tuples(settings),
        input=weights.as_tuples(facts['config']['input']),
        classes=tuple(facts['classes']),
        colors=weights.as_tuples(facts['colors']),
        source={'run': path.name, 'step': step},
    )
