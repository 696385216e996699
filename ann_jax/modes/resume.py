"""What a run goes on from: its newest whole checkpoint, other weights, or nothing."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ann_jax.config import adopt, differences
from ann_jax.errors import ConfigError
from ann_jax.models.ann import ANN
from ann_jax.models.initializers import initial_variables
from ann_jax.parallel.arrays import replicated
from ann_jax.runs.checkpoints import Checkpoints
from ann_jax.training.state import TrainState, abstract_state, create_state
from ann_jax.weights.folder import BACKBONE_FACTS, Weights, start
from ann_jax.weights.opening import open_weights

logger = logging.getLogger(__name__)

# Settings that a run keeps from its first step to its last.
FIXED = ('seed', 'dataset', 'augment', 'input', 'model', 'loss', 'train.batch_size')
FREE = (
    'dataset.root',
    'dataset.format',
    'dataset.eval_split',
    'dataset.scenes.eval_count',
    'model.remat',
)


def first_state(
    config: ConfigDict,
    workdir: Path,
    checkpoints: Checkpoints,
    make_model: Callable[[], ANN],
    tx: optax.GradientTransformation,
    mesh: Mesh,
    backbone: str = '',
) -> tuple[TrainState, int]:
    """State and step to go on from: the newest whole checkpoint's, or the first of all.

    Damaged checkpoints after it are set aside; with `init.from` the config follows the weights.

    Args:
        config: of the run.
        workdir, checkpoints: where it lies.
        make_model: builds the network from the config as it is then.
        tx: the optimizer.
        mesh: every device gets the whole state.
        backbone: name of its class, if it is not of this package.

    Raises:
        DataError: no checkpoint is whole.
        ConfigError: the run that the workdir holds has other settings or another network, or the weights of
            `init.from` do not fit.
    """

    def restore(step, facts):
        saved = facts['config']
        if config.init['from']:
            adopt(config, model=saved['model'], input=saved['input'])
        _refuse_changes(saved, config, workdir)
        if facts.get('backbone', '') != backbone:
            raise ConfigError(
                f'{workdir} holds a run with the backbone {facts.get("backbone") or "of its config"}, not '
                f'{backbone or "of its config"}: give the same, or use another --workdir'
            )
        return checkpoints.restore(step, abstract_state(make_model(), tx, replicated(mesh)))

    steps = checkpoints.steps
    if steps:
        begin = time.perf_counter()
        first, _, state = checkpoints.first_whole(steps, restore)
        logger.info('resuming from step %d, restored in %.1f s', first, time.perf_counter() - begin)
        checkpoints.set_aside(step for step in steps if step > first)
        return state, first
    weights = _open_init(config) if config.init['from'] else None
    variables = initial_variables(make_model(), config.seed)
    if weights:
        variables = start(variables, weights.variables, config.init.parts)
    return jax.device_put(create_state(variables, tx), replicated(mesh)), 0


def _open_init(config: ConfigDict) -> Weights:
    """Opens the weights that training starts from; the config follows what they fix."""
    weights = open_weights(Path(config.init['from']).expanduser())
    taken = weights.model
    if config.init.parts == 'backbone':
        taken = {key: taken[key] for key in BACKBONE_FACTS}
    logger.info('starting from %s (%s)', config.init['from'], config.init.parts)
    for line in adopt(config, model=taken, input=weights.input):
        logger.info('as the weights need it: %s', line)
    return weights


def _refuse_changes(saved: dict, config: ConfigDict, workdir: Path) -> None:
    lines = differences(saved, config.to_dict())
    changes = [line for line in lines if line.startswith(FIXED) and not line.startswith(FREE)]
    if changes:
        raise ConfigError(
            f'{workdir} holds a run with other settings ({"; ".join(changes)}): '
            'use those, or another --workdir; to start another network from its weights: '
            f'--config.init.from={workdir} with --config.init.parts'
        )
