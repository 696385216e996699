"""What a run starts from: its newest intact checkpoint, other weights, or nothing."""

import logging
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ann_jax import build
from ann_jax.buckets.paths import same
from ann_jax.config import adopt, defaults, differences
from ann_jax.data.decode.levels import AUTO
from ann_jax.errors import ConfigError
from ann_jax.models.ann import ANN
from ann_jax.models.initializers import initial_variables
from ann_jax.models.settings import BACKBONE_FACTS, OPTIONAL, unknown_settings
from ann_jax.parallel.arrays import replicated
from ann_jax.runs import history
from ann_jax.runs.checkpoints import Checkpoints
from ann_jax.runs.facts import Damaged, read_facts, unknown_parts
from ann_jax.training.state import TrainState, abstract_state, create_state
from ann_jax.weights.folder import Weights, as_tuples
from ann_jax.weights.opening import open_weights
from ann_jax.weights.start import start

logger = logging.getLogger(__name__)

# Settings that a run keeps from its first step to its last.
FIXED = ('seed', 'dataset', 'augment', 'input', 'model', 'loss', 'train.batch_size')
FREE = (
    'dataset.root',
    'dataset.format',
    'dataset.eval_split',
    'dataset.scenes.eval_count',
    'dataset.max_pixels',
    'model.remat',
)
# Settings that determine which arrays the optimizer and the moving average keep.
OF_STATE = (
    'optim.name',
    'optim.args',
    'optim.factors',
    'optim.decay:',
    'optim.decay_factors',
    'optim.ema_decay',
)
# Settings that may change during a run; changes are logged.
LOGGED = ('optim', 'train', 'mesh', 'model.remat', 'eval.', *(key for key in FREE if key != 'model.remat'))


def keep_settings(config: ConfigDict, workdir: Path) -> None:
    """Sets the settings that a resumed run is older than to what its commit computed, and what it once found.

    Settings in FIXED always get that value, others only if the config has the default. To be called before
    anything is built from the config; `first_state` logs it.

    Args:
        config: of the run, changed in place.
        workdir: its working directory; if it has no checkpoint, nothing is done.

    Raises:
        VersionError: another version wrote the newest checkpoint, and this one cannot read it.
        ConfigError: there are class weights, and a new run is to count them.
    """
    folder = workdir / 'checkpoints'
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    for step in sorted(steps, reverse=True):
        path = folder / str(step)
        try:
            facts = read_facts(path)
        except Damaged:
            continue  # `first_state` reports it
        saved, added = history.complete(history.saved_config(facts, path))
        if config.dataset.image_range == AUTO:
            config.dataset.image_range = saved['dataset']['image_range']
        if config.loss.balance == saved['loss']['balance'] != 'none' and not config.loss.class_weights:
            config.loss.class_weights = tuple(saved['loss']['class_weights'])
        now, default = history.flat(config.to_dict()), history.flat(defaults().to_dict())
        kept = {
            name: value
            for name, value in as_tuples(added).items()
            if name in now and (_is_fixed(name) or now[name] == default.get(name))
        }
        config.update_from_flattened_dict(kept)
        return
    if config.loss.balance != 'none' and config.loss.class_weights:
        raise ConfigError(
            f'loss.balance={config.loss.balance} counts class weights, and loss.class_weights gives them: '
            'leave one of the two, loss.balance=none or loss.class_weights=()'
        )


def _is_fixed(name):
    return name.startswith(FIXED) and not name.startswith(FREE)


def first_state(
    config: ConfigDict,
    workdir: Path,
    checkpoints: Checkpoints,
    make_model: Callable[[], ANN],
    tx: optax.GradientTransformation,
    mesh: Mesh,
    backbone: str = '',
    classes: tuple[str, ...] = (),
    images: int = 0,
) -> tuple[TrainState, int, dict]:
    """State and step to start from: those of the newest intact checkpoint, or a new state and step 0.

    The third is where the weights came from that the run started from, with their checksum; {} if it did not.

    Damaged checkpoints after it are renamed. With `init.from`, the config follows the weights.

    Args:
        config: of the run.
        workdir: its working directory.
        checkpoints: its checkpoints.
        make_model: builds the network from the config, when the config has been adapted.
        tx: the optimizer.
        mesh: every device gets the whole state.
        backbone: name of its class, if it is not from this package.
        classes: names of those to train, which a resumed run has in the same order.
        images: number of those to train on; 0 if it is unknown.

    Raises:
        DataError: no checkpoint is intact.
        ConfigError: the run in the working directory has other settings, another network or the classes in
            another order, or the weights of `init.from` do not fit.
    """

    def restore(step, facts):
        path = workdir / 'checkpoints' / str(step)
        saved, added = history.complete(history.saved_config(facts, path))
        _refuse_unknown(saved, config, path, facts)
        _follow_start(saved, added, config, workdir)
        _refuse_changes(saved, config, workdir)
        if facts.get('backbone', '') != backbone:
            raise ConfigError(
                f'{workdir} holds a run with the backbone {facts.get("backbone") or "of its config"}, not '
                f'{backbone or "of its config"}: pass the same one, or use another --workdir'
            )
        _refuse_other_order(facts, classes, workdir)
        like = abstract_state(make_model(), tx, replicated(mesh), **build.state_settings(config))
        _refuse_other_state(saved, config, workdir, checkpoints.differing(step, like))
        return checkpoints.restore(step, like)

    steps = checkpoints.steps
    if steps:
        begin = time.perf_counter()
        first, facts, state = checkpoints.first_whole(steps, restore)
        _note(facts, config, workdir, checkpoints.folder / str(first))
        logger.info('resuming from step %d, restored in %.1f s', first, time.perf_counter() - begin)
        before = facts.get('images', images)  # earlier versions did not save it
        if images and before != images:
            logger.warning(
                'the run had %d images to train on up to step %d, and has %d from now on: their order is '
                'not that of a run with these from its first step', before, first, images,
            )  # fmt: skip
        began = facts['config'].get('init', {})
        if config.init['from']:
            logger.info('init.from=%s is where the run began: it is not read again', config.init['from'])
        elif began.get('from'):  # the run keeps where it began, for when it is named again
            config.init.update(began)
        checkpoints.set_aside(step for step in steps if step > first)
        return state, first, facts.get('started_from', {})
    weights = _open_init(config) if config.init['from'] else None
    variables = initial_variables(make_model(), config.seed)
    if weights:
        variables = start(variables, weights.variables, config.init.parts)
    state = create_state(variables, tx, **build.state_settings(config))
    state = jax.device_put(state, replicated(mesh))
    return state, 0, dict(weights.source) if weights else {}


def _open_init(config: ConfigDict) -> Weights:
    """Opens the weights that training starts from; the config follows them."""
    weights = open_weights(config.init['from'], config.init.prefer)
    if not weights.classes and config.init.parts == 'all':
        config.init.parts = 'backbone'  # there is nothing else in them
    weights.refuse_unknown(config.init.parts)
    taken = weights.model
    if config.init.parts == 'backbone':
        taken = {key: taken[key] for key in BACKBONE_FACTS}
    logger.info('starting from %s (%s): %s', config.init['from'], config.init.parts, weights.source)
    for name, trained in weights.images.items():
        if config.dataset[name] != trained:
            logger.warning('its %s was %s, and is %r now', name, trained, config.dataset[name])
    for line in adopt(config, model=taken, input=weights.input):
        logger.info('as the weights need it: %s', line)
    return weights


def refuse_other_run(config: ConfigDict, workdir: Path, checkpoints: Checkpoints) -> None:
    """Refuses settings that a finished run was not trained with, since they would have no effect.

    Raises:
        ConfigError: it has others.
    """
    step = checkpoints.reached
    saved, added = history.complete(
        history.saved_config(checkpoints.facts(step), workdir / 'checkpoints' / str(step))
    )
    _follow_start(saved, added, config, workdir)
    _refuse_changes(saved, config, workdir, finished=True)


def _follow_start(saved, added, config, workdir):
    """With `init.from`, the config follows the weights, as it did when the run began."""
    given = config.init['from']
    if not given:
        return
    began = saved['init']['from']
    if 'init.from' not in added and not same(began, given):
        raise ConfigError(
            f'init.from={given}: the run in {workdir} began from {began or "random weights"}: leave it out '
            'to continue, or use another --workdir'
        )
    parts = saved['init']['parts']
    keys = BACKBONE_FACTS if parts == 'backbone' else saved['model'].keys() - {*OPTIONAL}
    model = {key: saved['model'][key] for key in keys}
    for line in adopt(config, model=model, input=saved['input']):
        logger.info('as the weights needed it: %s', line)


def _refuse_changes(saved: dict, config: ConfigDict, workdir: Path, finished: bool = False) -> None:
    lines = differences(saved, config.to_dict())
    changes = [line for line in lines if _is_fixed(line) or finished and line.startswith('optim.')]
    if changes:
        run = history.flat(saved)
        names = [line.split(':')[0] for line in changes]
        flags = ' '.join(_flag(name, run[name]) for name in names if name in run)
        what = 'finished run' if finished else 'run'
        raise ConfigError(
            f'{workdir} holds a {what} with other settings ({"; ".join(changes)}): '
            f'use those ({flags}), or another --workdir; to start another network from its weights: '
            f'--config.init.from={workdir} with --config.init.parts'
        )
    if not finished and (others := [line for line in lines if line.startswith(LOGGED)]):
        logger.info('continues with changed settings: %s', '; '.join(others))


def _refuse_other_order(facts, classes, workdir):
    """A list of classes may have changed under a setting that names its file."""
    saved = tuple(facts.get('classes', ()))  # the first commits did not save them
    if len(saved) != len(classes) or saved == classes:  # of another number the network differs
        return
    if sorted(saved) == sorted(classes):
        raise ConfigError(
            f'{workdir} holds a run with the classes {", ".join(saved)}, and the dataset has them in another '
            f'order: {", ".join(classes)}: restore the order, or use another --workdir'
        )
    other = next(pair for pair in zip(saved, classes, strict=True) if len({*pair}) > 1)
    logger.warning('the dataset names classes otherwise than the run did, such as %r for %r', *other[::-1])


def _refuse_other_state(saved, config, workdir, differing):
    """Refuses settings of the optimizer with which its saved state cannot go on."""
    changes = differences(saved, config.to_dict())
    lines = [line for line in changes if line.startswith(OF_STATE)]
    own = [name for name in differing if name.startswith(('opt_state/', 'ema/'))]
    renamed = any(line.startswith('optim.name') for line in lines)  # even if its arrays have the same names
    if not own and not renamed:
        return
    if lines:
        run = history.flat(saved)
        # All of the optimizer: the learning rate of one rarely suits another.
        names = [line.split(':')[0] for line in changes if line.startswith('optim.')]
        flags = ' '.join(_flag(name, run[name]) for name in names)
        raise ConfigError(
            f'{workdir} holds a run whose optimizer keeps another state ({"; ".join(lines)}): use those '
            f'settings ({flags}), or start a new run from its weights with --config.init.from={workdir} and '
            'another --workdir'
        )
    if len(own) == len(differing):
        raise ConfigError(
            f'{workdir} holds a run whose optimizer keeps another state, such as {own[0]}: pass the '
            f'optimizer that it began with, or start a new run from its weights with init.from={workdir} and '
            'another workdir'
        )


def _note(facts, config, workdir, path):
    """Logs which old behaviour the run keeps, and what may differ."""
    history.note_unknown(path, unknown_parts(path, facts))
    _, added = history.complete(facts['config'])
    now = history.flat(config.to_dict())
    history.note(workdir, {name: value for name, value in as_tuples(added).items() if now.get(name) == value})
    c = config.augment
    if 'model.out_norm' in added and {*c.scale_range, *c.aspect_range} != {1.0}:
        logger.info(
            '%s may be older than commit 798c65b, before which images were resized and then cut: its crops '
            'are now shifted by about a pixel',
            workdir,
        )


def _refuse_unknown(saved: dict, config: ConfigDict, path: Path, facts: dict) -> None:
    """Refuses to drop settings of a newer version; GONE lists those that do not matter."""
    run, now = history.flat(saved), history.flat(config.to_dict())
    unknown = [f'{name}={run[name]!r}' for name in run if name not in now and _is_fixed(name)]
    unknown += [line for line in unknown_settings(saved['model'], ()) if line not in unknown]
    if unknown:
        raise history.not_understood(
            path,
            facts.get('version'),
            f'it was trained with settings that are unknown here ({"; ".join(unknown)})',
            f'start a new run from its weights: --config.init.from={path} and another --workdir, with '
            '--config.init.parts=backbone if the settings belong to the network',
        )


def _flag(name, value):
    text = str(tuple(value) if isinstance(value, list) else value).replace(' ', '')
    return shlex.quote(f'--config.{name}={text}')
