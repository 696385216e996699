"""The run: config -> sources -> batches -> step -> checkpoints -> evaluation -> table and pictures."""

import contextlib
import logging
from pathlib import Path

import flax
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from ann_jax import __version__, build
from ann_jax.checkpoint import Checkpoints
from ann_jax.config import adopt, differences
from ann_jax.data.pipeline import train_batches
from ann_jax.errors import ConfigError
from ann_jax.report import Report, TrainLog, write_json
from ann_jax.restore import open_weights
from ann_jax.sharding import check_batch_size, make_mesh, put_batch, replicated, split_batch
from ann_jax.state import abstract_state, count_parameters, create_state, initial_variables
from ann_jax.train_step import make_train_step
from ann_jax.weights import BACKBONE_FACTS, Weights, start

logger = logging.getLogger(__name__)

# Settings that a run keeps from its first step to its last.
FIXED = ('seed', 'dataset', 'augment', 'input', 'model', 'loss', 'train.batch_size')
FREE = ('dataset.root', 'dataset.format', 'dataset.eval_split', 'dataset.scenes.eval_count')


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains up to `train.steps`, from the newest checkpoint of the workdir if it has one.

    Raises:
        DataError: the dataset cannot be used.
        ConfigError: a setting cannot be used on these devices or with this dataset, or is not that of
            the run that the workdir holds.
        FloatingPointError: the loss is not finite any more.
    """
    mesh = make_mesh()
    check_batch_size(config.train.batch_size, mesh, 'train.batch_size')
    source = build.source(config, config.dataset.train_split)
    build.source(config, config.dataset.eval_split)  # what is wrong with it shows before anything is written
    dataset, weights = source.dataset, None

    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir / 'checkpoints')))
        first, steps = checkpoints.latest or 0, config.train.steps
        if first >= steps:
            print(f'{workdir} is at step {first} of {steps}: --mode=evaluate evaluates its best checkpoint')
            return
        logger.info('%s', _versions(mesh))
        if first:
            logger.info('resuming from step %d', first)
            saved = checkpoints.facts(first)['config']
            if config.init['from']:
                adopt(config, model=saved['model'], input=saved['input'])
            _refuse_changes(saved, config, workdir)
        elif config.init['from']:
            weights = _open_init(config)

        evaluation = build.evaluation(config, mesh)
        logger.info('%d images to train on, %d to evaluate', len(source), len(evaluation.source))
        model, tx = build.model(config, dataset.num_classes), build.optimizer(config)
        step = jax.jit(
            make_train_step(
                model,
                tx,
                loss=build.loss(config, dataset.num_classes),
                normalize=build.normalize(config),
                align_corners=config.model.align_corners,
                seed=config.seed,
            ),
            in_shardings=(replicated(mesh), split_batch(mesh)),
            out_shardings=replicated(mesh),
            donate_argnums=0,
        )
        if first:
            state = checkpoints.restore(first, abstract_state(model, tx, replicated(mesh)))
        else:
            variables = initial_variables(model, config.seed)
            if weights:
                variables = start(variables, weights.variables, config.init.parts)
            state = jax.device_put(create_state(variables, tx), replicated(mesh))
        logger.info('%s parameters', f'{count_parameters(state.params):,}')
        facts = {'config': config.to_dict(), 'classes': dataset.classes, 'colors': dataset.colors}

        batches = stack.enter_context(
            contextlib.closing(
                train_batches(
                    source,
                    build.augment(config),
                    batch_size=config.train.batch_size,
                    seed=config.seed,
                    start_step=first,
                    num_workers=config.loader.workers,
                    num_threads=config.loader.threads,
                )
            )
        )
        report = stack.enter_context(
            contextlib.closing(Report(workdir, dataset.classes, dataset.colors, first_step=first + 1))
        )
        write_json(workdir / 'config.json', config.to_dict())
        bar = stack.enter_context(tqdm(total=steps, initial=first, desc='train', unit='step', smoothing=0.05))
        log = TrainLog(report, bar, build.schedule(config), config.train.log_every)
        logger.info('compiling the step')
        for number in range(first + 1, steps + 1):
            state, metrics = step(state, put_batch(next(batches), mesh))
            log.add(number, metrics)
            if number == steps or number % config.train.eval_every == 0:
                log.flush()
                scores = evaluation.run(state.variables, number, config.dataset.eval_split, report)
                logger.info('step %d: mIoU %.2f on %s', number, 100 * scores.miou, config.dataset.eval_split)
                checkpoints.save(state, facts, scores.miou)
            elif number % config.train.checkpoint_every == 0:
                log.flush()
                checkpoints.save(state, facts)
        best = checkpoints.best
    print(report.table(scores))
    print(f'step {steps} of {steps}, best checkpoint at step {best}; written to {workdir}')


def evaluate_best(config: ConfigDict, workdir: Path) -> None:
    """Evaluates the best checkpoint of the workdir, or without one the weights of `init.from`.

    The network and its input are those the weights were trained with, whatever the config says.

    Raises:
        DataError: the dataset cannot be used.
        ConfigError: there are no weights, or they tell other classes than the dataset has.
    """
    path = Path(config.init['from'] or workdir).expanduser()
    path = workdir if (workdir / 'checkpoints').is_dir() else path
    weights = open_weights(path)
    if not weights.classes:
        raise ConfigError(f'{path} is a backbone alone, which tells no classes: train a head first')
    for line in adopt(config, model=weights.model, input=weights.input):
        logger.info('as trained, not as given: %s', line)
    mesh = make_mesh()
    evaluation = build.evaluation(config, mesh)
    dataset = evaluation.source.dataset
    if len(weights.classes) != dataset.num_classes:
        raise ConfigError(
            f'{path} tells {len(weights.classes)} classes, but {dataset.name} has {dataset.num_classes}: '
            'train its classifier first'
        )
    variables = jax.device_put(weights.variables, replicated(mesh))
    step = weights.source.get('step', 0)
    with contextlib.closing(Report(workdir, dataset.classes, dataset.colors)) as report:
        scores = evaluation.run(variables, step, config.dataset.eval_split, report)
    print(report.table(scores))
    print(f'{path} at step {step}, {len(evaluation.source)} images; written to {workdir}')


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
            'use those, or another --workdir'
        )


def _versions(mesh: Mesh) -> str:
    device = mesh.devices.flat[0].device_kind
    versions = f'ann_jax {__version__}, jax {jax.__version__}, flax {flax.__version__}'
    return f'{versions} on {mesh.size} x {device}'
