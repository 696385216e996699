"""The run: config -> sources -> batches -> step -> checkpoints -> evaluation -> table and pictures."""

import contextlib
import functools
import json
import logging
import platform
import time
from collections.abc import Callable
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from ann_jax import __version__, build
from ann_jax.buckets.paths import place
from ann_jax.buckets.services import remote
from ann_jax.config import validate
from ann_jax.data.datasets import Checked
from ann_jax.data.decode.levels import AUTO
from ann_jax.data.pipeline import train_batches
from ann_jax.errors import ConfigError, DataError, SaveError
from ann_jax.evaluation.metrics import Scores
from ann_jax.evaluation.report import Report
from ann_jax.modes.alike import refuse_unlike
from ann_jax.modes.class_counts import class_counts, set_class_weights
from ann_jax.modes.first_look import first_look
from ann_jax.modes.idle import idle_settings
from ann_jax.modes.report import report_of_run
from ann_jax.modes.resume import first_state, keep_settings, refuse_other_run
from ann_jax.modes.scene_samples import leave_samples
from ann_jax.modes.score_settings import describe_source, protocol_settings, scored_how
from ann_jax.parallel.arrays import put_batch, put_flag, replicated
from ann_jax.parallel.mesh import check_batch_size
from ann_jax.parallel.processes import all_agree, is_main
from ann_jax.parallel.programs import jit
from ann_jax.runs.checkpoints import Checkpoints
from ann_jax.runs.lock import lock
from ann_jax.runs.log import log_file, note
from ann_jax.runs.profile import Trace, parse_steps
from ann_jax.runs.progress import TrainLog
from ann_jax.runs.record import Record
from ann_jax.runs.signals import Stop, Stopped
from ann_jax.training.accumulate import make_accumulated_step
from ann_jax.training.losses import totals_of
from ann_jax.training.state import AveragedState
from ann_jax.training.step import make_step, make_step_parts
from ann_jax.typing import Backbone, Source, Writer
from ann_jax.weights.inputs import for_channels

logger = logging.getLogger(__name__)


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    train_source: Source | None = None,
    eval_source: Source | None = None,
    backbone: Backbone | None = None,
    loss: Callable | None = None,
    optimizer: optax.GradientTransformation | None = None,
    writer: Writer | None = None,
) -> None:
    """Trains up to `train.steps`, from the newest intact checkpoint in the working directory, if any.

    On SIGTERM and Ctrl-C, it finishes the current step, saves a checkpoint and returns.

    Args:
        config: of the run.
        workdir: its working directory, a folder, gs://BUCKET/NAME or s3://BUCKET/NAME.
        train_source: in place of the one that the config names, like the next four; a resumed run needs the
            same ones.
        eval_source: likewise.
        backbone: likewise.
        loss: likewise.
        optimizer: likewise.
        writer: gets curves, pictures and texts in place of TensorBoard's event files; it is not closed.

    Raises:
        DataError: the dataset cannot be used, its labels cannot be learned, or no checkpoint is intact.
        ConfigError: a setting does not suit the devices, the dataset or the run in the working directory,
            another run is using that directory, or processes differ in settings or data.
        SaveError: a file of the run cannot be written.
        FloatingPointError: the loss or gradient is not finite.
    """
    validate(config)
    config = config.copy_and_resolve_references()  # what is found is filled in, for this run alone
    workdir = place(workdir)
    _check_settings(config, workdir)
    keep_settings(config, workdir)
    mesh = build.mesh(config)
    check_batch_size(config.train.batch_size, mesh, 'train.batch_size', config.train.accumulate)
    # Opened now, so that their errors show before anything is written.
    source, evaluated, protocol = _sources(config, train_source, eval_source)
    dataset, steps = source.dataset, config.train.steps
    # Functions, since the config is completed below: by class weights, and by what `init.from` needs.
    make_loss = lambda: loss or build.loss(config, dataset.num_classes)
    make_model = lambda: build.model(config, dataset.num_classes, backbone)
    build.check_accumulation(config, make_loss())
    schedule = None if optimizer else build.schedule(config)
    tx = optimizer or build.optimizer(config)

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(Stop())
        check_lock = _hold(stack, workdir)
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir / 'checkpoints')))
        if _is_finished(config, workdir, checkpoints):
            return
        _log_start(mesh)
        first_look(config, source, evaluated)
        counts = class_counts(config, source, workdir)
        set_class_weights(config, counts, source)
        own_backbone = '' if backbone is None else type(backbone).__name__
        classes, images = tuple(dataset.classes), len(source)
        state, first, origin = first_state(
            config, workdir, checkpoints, make_model, tx, mesh, own_backbone, classes, images
        )
        evaluation = build.evaluation(config, mesh, evaluated, backbone)
        build.check_frozen_norm(config, state.batch_stats)
        _log_setting(config, source, evaluation, state)
        step = _step(config, make_model(), tx, make_loss(), mesh)
        read_by = build.readers(config, training=True)
        logger.info('%s', read_by)
        batches = _batches(config, source, first, counts, read_by)
        stack.enter_context(contextlib.closing(batches))
        record = Record(workdir, first + 1, silent=not is_main(), writer=writer)
        stack.enter_context(contextlib.closing(record))
        report = Report(record, dataset.classes, dataset.colors, protocol)
        record.config(first, config.to_dict())
        bar = stack.enter_context(
            tqdm(total=steps, initial=first, desc='train', unit='step', smoothing=0.05, disable=not is_main())
        )
        log = TrainLog(
            record,
            bar,
            schedule,
            config.train.log_every,
            newest=lambda: checkpoints.latest,
            cure=read_by.faster,
            behind=first - _updates(state, first),
        )
        facts = {'config': config.to_dict(), 'classes': dataset.classes, 'colors': dataset.colors}
        facts['images'] = images
        if own_backbone:
            facts['backbone'] = own_backbone
        if train_source is not None:
            facts['dataset'] = dataset.name
        if origin:
            facts['started_from'] = origin
        save = functools.partial(_save, checkpoints, facts, check_lock, log)
        score = functools.partial(_score, config, evaluation, report, checkpoints, log, stop)

        number = first
        scores: Scores | None = None
        try:
            if first and _is_due(config, first) and not checkpoints.scored(first):
                scores = score(first, state)  # the run was stopped during this evaluation
            last = first if scores and _is_stale(config, checkpoints, first) else steps
            trace = _trace(config, workdir, first)
            stack.callback(trace.close)
            trained = _steps(step, state, batches, range(first + 1, last + 1), stop, log, trace)
            for number, state in trained:
                due = _is_due(config, number)
                if due or log.stop or number % config.train.checkpoint_every == 0:
                    save(number, state)
                if log.stop:
                    raise Stopped
                if due:
                    # After saving: a run that is killed during evaluation loses no step.
                    scores = score(number, state)
                    if _is_stale(config, checkpoints, number):
                        break
        except Stopped:
            logger.info('stopped as asked')
            bar.close()  # or else the line is the end of its own
            _print(f'stopped at step {number} of {steps}: the same command resumes')
            return
        best = checkpoints.best
        early = f', ended by train.patience={config.train.patience}' if number < steps else ''
        logger.info('finished%s; %d steps skipped, %d samples replaced', early, log.skipped, log.replaced)
    assert scores is not None  # the last step is always evaluated
    _print(report.table(scores))
    _print(f'step {number} of {steps}{early}, best checkpoint at step {best}; written to {workdir}')
    if is_main():
        print(report_of_run(workdir))
        if train_source is None and config.dataset.name == 'scenes':
            print(leave_samples(config, workdir))


def _check_settings(config, workdir):
    """Refuses settings that do not suit the working directory or each other."""
    if config.profile.steps and remote(workdir):
        raise ConfigError(
            f'profile.steps={config.profile.steps}: the profiler needs a --workdir on this machine, not '
            f'{workdir}'
        )
    for key, off in (('parts', 'all'), ('prefer', '')):
        if not config.init['from'] and (value := config.init[key]) != off:
            raise ConfigError(
                f'init.{key}={value}: there is no init.from to take it from: name one, or leave this out'
            )


def _sources(config, train_source, eval_source):
    """Opens what to train on and what to evaluate: those given, or else the config's.

    Returns:
        Both, and how the scores of the second are made.
    """
    channels = build.channels(config)
    if train_source is None:
        source = build.source(config, config.dataset.train_split)
    else:
        source = Checked(train_source, 'train_source', channels)
    protocol = protocol_settings(config)
    if eval_source is None:
        evaluated = build.source(config, config.dataset.eval_split, limit=config.eval.limit)
    else:
        evaluated = Checked(eval_source, 'eval_source', channels)
        protocol['source'] = describe_source(evaluated)
    if config.dataset.image_range == AUTO:
        raise ConfigError('dataset.image_range=auto cannot be found in a train_source: give LOW,HIGH')
    refuse_unlike(config, train=source, evaluate=evaluated)
    _refuse_other_classes(source.dataset, evaluated.dataset.classes)
    return source, evaluated, protocol


def _refuse_other_classes(dataset, others):
    """Refuses to evaluate another number or order of classes; other names may mean the same."""
    reordered = sorted(others) == sorted(dataset.classes) and tuple(others) != tuple(dataset.classes)
    if len(others) != dataset.num_classes or reordered:
        raise DataError(
            f'the classes to train are {", ".join(dataset.classes)}, but those to evaluate '
            f'{", ".join(others)}: give both sources the same, in the same order'
        )


def _hold(stack, workdir):
    """Locks the working directory, for all processes or for none, and opens the log.

    Returns:
        What `lock` yields.
    """
    refusal, check = None, lambda: None
    if is_main():
        try:
            check = stack.enter_context(lock(workdir))
        except (ConfigError, SaveError) as error:
            refusal = error
    if not all_agree(refusal is None):
        raise refusal or ConfigError(f'process 0 could not lock {workdir}')
    stack.enter_context(log_file(workdir, jax.process_index()))
    return check


def _is_finished(config, workdir, checkpoints):
    """Whether nothing is left to train or to evaluate, which it then prints."""
    newest, steps = checkpoints.reached, config.train.steps
    early = ', where train.patience ended it' if _is_stale(config, checkpoints, newest) else ''
    if not (newest > steps or early or (newest == steps and checkpoints.scored(newest))):
        return False
    refuse_other_run(config, workdir, checkpoints)
    _print(f'{workdir} is at step {newest} of {steps}{early}: --mode=evaluate evaluates its best checkpoint')
    return True


def _is_stale(config, checkpoints, number):
    """Whether `train.patience` ends the run at a step."""
    return 0 < config.train.patience <= checkpoints.without_better(number)


def _is_due(config, number):
    """Whether a step is evaluated."""
    return number == config.train.steps or number % config.train.eval_every == 0


def _step(config, model, tx, loss, mesh):
    """(state, this process's batch and flag) -> state and metrics; compiled when first called.

    Processes get signals at different steps, or only one gets any: the metrics of a step tell all of them
    whether one has, so that they stop after the same step.
    """
    settings = build.step_settings(config, loss)
    if config.train.accumulate > 1:
        parts = make_step_parts(model, tx, **settings)
        accumulated = make_accumulated_step(
            parts, *totals_of(loss), mesh, deterministic=config.train.deterministic
        )
        update = lambda state, batch: accumulated(state, _in_parts(batch, config.train.accumulate, mesh))
    else:
        update = make_step(model, tx, mesh, deterministic=config.train.deterministic, **settings)
    any_flag = jit(jnp.any, mesh, out_shardings=replicated(mesh))

    def step(state, batch, stop):
        state, metrics = update(state, batch)
        return state, metrics | {'stop': any_flag(put_flag(stop, mesh))}

    return step


def _in_parts(batch, count, mesh):
    size = len(batch['label']) // count
    slices = [slice(i * size, (i + 1) * size) for i in range(count)]
    return [put_batch({key: batch[key][rows] for key in batch}, mesh) for rows in slices]


def _batches(config, source, first, counts, read_by):
    samples, mix = build.epoch(config, source, counts)
    return train_batches(
        samples,
        build.augment(config, counts),
        batch_size=config.train.batch_size,
        seed=config.seed,
        start_step=first,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        num_workers=read_by.workers,
        num_threads=read_by.threads,
        mix=mix,
    )


def _updates(state, first):
    """How many updates the optimizer counts; `first` if it does not count."""
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    counts = [int(x) for path, x in leaves if jax.tree_util.keystr(path).endswith('.count')]
    return min(max(counts, default=first), first)


def _trace(config, workdir, first):
    traced, steps = parse_steps(config.profile.steps), config.train.steps
    if traced and not range(max(first + 1, traced[0]), min(steps, traced[-1]) + 1):
        logger.warning('no trace: steps %d to %d follow, not %s', first + 1, steps, config.profile.steps)
    return Trace(workdir / 'profile', traced)


def _steps(step, state, batches, numbers, stop, log, trace):
    """Yields the number of each step, and the state after it."""
    for number in numbers:
        with log.clock('data'):
            batch = next(batches)
        with log.clock('step'), trace.step(number):
            state, metrics = step(state, batch, stop.requested)
        trace.stepped(number, metrics)
        if number == numbers.start:
            logger.info('compiled the step in %.1f s', log.clock.take('step'))
            log.restart()
        log.add(number, metrics, batch)
        yield number, state


def _score(config, evaluation, report, checkpoints, log, stop, number, state):
    start, split = time.perf_counter(), config.dataset.eval_split
    asked = lambda: not all_agree(not stop.requested)
    scores = evaluation.run(state.averaged, number, split, report, asked)
    checkpoints.score(number, scores.miou, scored_how(config))
    took = time.perf_counter() - start
    what = ' of the moving average' if isinstance(state, AveragedState) else ''
    logger.info('step %d: mIoU %.2f%s on %s, in %.1f s', number, 100 * scores.miou, what, split, took)
    log.restart()
    return scores


def _save(checkpoints, facts, check_lock, log, number, state):
    log.flush()
    check_lock()
    checkpoints.check()
    spent, waited = log.seconds_per_step()
    start = time.perf_counter()
    checkpoints.save(number, state, facts)
    took = time.perf_counter() - start
    logger.info(
        'step %d: %.3f s per step, %.3f s of it waiting for data; saved in %.1f s, the rest in the '
        'background',
        number, spent, waited, took,
    )  # fmt: skip
    log.restart()


def _print(text):
    if is_main():
        print(text)


def _log_start(mesh: Mesh) -> None:
    """Logs versions, devices and the mesh."""
    logger.info(
        'ann_jax %s, jax %s, flax %s, python %s, %s',
        __version__, jax.__version__, flax.__version__, platform.python_version(), platform.platform(),
    )  # fmt: skip
    device = mesh.devices.flat[0]
    logger.info(
        '%d x %s (%s), mesh %s, process %d of %d with %d of the devices',
        mesh.size, device.device_kind, device.platform, dict(mesh.shape),
        jax.process_index(), jax.process_count(), len(mesh.local_devices),
    )  # fmt: skip


def _log_setting(config, source, evaluation, state) -> None:
    logger.info('%d images to train on, %d to evaluate', len(source), len(evaluation.source))
    logger.info('%s', build.parameter_counts(config, state.params))
    if (warmup := config.optim.warmup_steps) >= config.train.steps:
        logger.warning('optim.warmup_steps=%d: the run of %d steps ends in it', warmup, config.train.steps)
    channels = build.channels(config)
    if channels != len(config.input.mean):
        mean = for_channels(config.input, channels)['mean'][0]
        logger.info('each of the %d channels is normalised by the average of RGB, mean %.2f', channels, mean)
    for line in idle_settings(config):
        logger.warning('%s', line)
    if not config.model.aux_channels and config.loss.aux_weight:
        weight = config.loss.aux_weight
        logger.info('the network has no auxiliary head: loss.aux_weight=%s counts as 0', weight)
    note('config %s', json.dumps(config.to_dict()))
