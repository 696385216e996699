"""The run: config -> sources -> batches -> step -> checkpoints -> evaluation -> table and pictures."""

import logging
import math
from collections import deque
from pathlib import Path

import flax
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from ann_jax import __version__, build
from ann_jax.checkpoint import Checkpoints
from ann_jax.data.pipeline import eval_batches, train_batches
from ann_jax.errors import ConfigError
from ann_jax.evaluate import evaluate, make_eval_step
from ann_jax.inference import whole_image
from ann_jax.metrics import Scores
from ann_jax.report import Report, write_json
from ann_jax.sharding import check_batch_size, make_mesh, put_batch, replicated, split_batch
from ann_jax.state import TrainState, abstract_state, count_parameters, create_state
from ann_jax.train_step import make_train_step

logger = logging.getLogger(__name__)

# Steps under way on the device while the host prepares the next batch: enough to keep the device
# busy, few enough not to pile up batches.
IN_FLIGHT = 2


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains up to `train.steps`, from the newest checkpoint of the workdir if it has one.

    Raises:
        DataError: the dataset cannot be used.
        ConfigError: a setting cannot be used on these devices or with this dataset.
        FloatingPointError: the loss is not finite any more.
    """
    mesh = make_mesh()
    check_batch_size(config.train.batch_size, mesh, 'train.batch_size')
    source = build.source(config, config.dataset.train_split)
    evaluation = Evaluation(config, workdir, mesh)
    num_classes = source.dataset.num_classes
    model, tx = build.model(config, num_classes), build.optimizer(config)
    step = jax.jit(
        make_train_step(
            model,
            tx,
            loss=build.loss(config, num_classes),
            normalize=build.normalize(config),
            align_corners=config.model.align_corners,
            seed=config.seed,
        ),
        in_shardings=(replicated(mesh), split_batch(mesh)),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )

    checkpoints = Checkpoints(workdir / 'checkpoints')
    first, steps = checkpoints.latest or 0, config.train.steps
    if first >= steps:
        print(f'{workdir} is at step {first} of {steps}: --mode=evaluate evaluates its best checkpoint')
        return
    write_json(workdir / 'config.json', config.to_dict())
    _log_versions(mesh)
    logger.info('%d images to train on, %d to evaluate', len(source), len(evaluation.source))
    if first:
        logger.info('resuming from step %d', first)
        state = checkpoints.restore(first, abstract_state(model, tx, replicated(mesh)))
    else:
        state = jax.device_put(create_state(model, tx, config.seed), replicated(mesh))
    logger.info('%s parameters', f'{count_parameters(state.params):,}')

    batches = train_batches(
        source,
        build.augment(config),
        batch_size=config.train.batch_size,
        seed=config.seed,
        start_step=first,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        num_workers=config.loader.workers,
        num_threads=config.loader.threads,
    )
    with tqdm(total=steps, initial=first, desc='train', unit='step', smoothing=0.05) as bar:
        log = TrainLog(config, evaluation.report, bar)
        for number in range(first + 1, steps + 1):
            state, metrics = step(state, put_batch(next(batches), mesh))
            log.add(number, metrics)
            if number == steps or number % config.train.eval_every == 0:
                log.flush()
                scores = evaluation.run(state, config.dataset.eval_split)
                checkpoints.save(state, config.to_dict(), scores.miou)
            elif number % config.train.checkpoint_every == 0:
                log.flush()
                checkpoints.save(state, config.to_dict())
    batches.close()
    best = checkpoints.best
    checkpoints.close()
    evaluation.close()
    print(evaluation.report.table(scores))
    print(f'step {steps} of {steps}, best checkpoint at step {best}; written to {workdir}')


def evaluate_best(config: ConfigDict, workdir: Path) -> Scores:
    """Evaluates the checkpoint of the workdir with the best score, or else the newest one.

    Raises:
        DataError: the dataset cannot be used.
        ConfigError: there is no checkpoint.
    """
    folder = workdir / 'checkpoints'
    checkpoints = Checkpoints(folder) if folder.is_dir() else None
    step = checkpoints and (checkpoints.best or checkpoints.latest)
    if step is None:
        raise ConfigError(f'--workdir={workdir} holds no checkpoint: train first, or name a run that has one')
    mesh = make_mesh()
    evaluation = Evaluation(config, workdir, mesh)
    model, tx = build.model(config, evaluation.num_classes), build.optimizer(config)
    state = checkpoints.restore(step, abstract_state(model, tx, replicated(mesh)))
    checkpoints.close()
    scores = evaluation.run(state, config.dataset.eval_split)
    evaluation.close()
    print(evaluation.report.table(scores))
    print(f'checkpoint of step {step}, {len(evaluation.source)} images; written to {workdir}')
    return scores


class Evaluation:
    """The evaluation split with all that scoring a state on it takes; one compilation per image size."""

    def __init__(self, config: ConfigDict, workdir: Path, mesh: Mesh):
        """Opens the split.

        Raises:
            DataError, ConfigError: as `train` does.
        """
        self._config, self._mesh = config, mesh
        self._batch_size = config.eval.batch_size or mesh.shape['data']
        check_batch_size(self._batch_size, mesh, 'eval.batch_size')
        self.source = build.source(config, config.dataset.eval_split, limit=config.eval.limit)
        dataset = self.source.dataset
        self.num_classes = dataset.num_classes
        model = build.model(config, self.num_classes)
        logits = whole_image(model, build.normalize(config), config.model.align_corners)
        self._step = make_eval_step(logits, self.num_classes, mesh)
        self.report = Report(workdir, dataset.classes, dataset.colors)

    def run(self, state: TrainState, split: str) -> Scores:
        """Scores a state, and writes scores and pictures."""
        count = len(self.source)
        pictured = set(np.linspace(0, count - 1, min(self._config.eval.pictures, count)).round().astype(int))
        step, numbers = int(state.step), iter(range(count))

        def on_sample(name, *arrays):
            if next(numbers) in pictured:
                self.report.picture(step, name, *arrays)

        batches = eval_batches(
            self.source,
            batch_size=self._batch_size,
            num_workers=self._config.loader.workers,
            num_threads=self._config.loader.threads,
        )
        with tqdm(total=count, desc='evaluate', unit='image', leave=False) as bar:
            confusion = evaluate(
                self._step,
                state.variables,
                batches,
                num_classes=self.num_classes,
                mesh=self._mesh,
                progress=bar.update,
                on_sample=on_sample,
            )
        scores = self.report.scores(step, split, confusion)
        logger.info(
            'step %d: mIoU %.2f, pixel accuracy %.2f on %s',
            step,
            100 * scores.miou,
            100 * scores.pixel_accuracy,
            split,
        )
        return scores

    def close(self) -> None:
        """Writes out the event files."""
        self.report.close()


class TrainLog:
    """Curves and progress bar of training, read from the device a few steps late so that it never waits."""

    def __init__(self, config: ConfigDict, report: Report, bar: tqdm):
        self._report, self._bar = report, bar
        self._schedule, self._every = build.schedule(config), config.train.log_every
        self._pending: deque = deque()

    def add(self, number: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step, and logs those of the step `IN_FLIGHT` before."""
        self._pending.append((number, metrics))
        if len(self._pending) > IN_FLIGHT:
            self._log(*self._pending.popleft())

    def flush(self) -> None:
        """Logs what is pending.

        Raises:
            FloatingPointError: the loss of a step is not finite.
        """
        while self._pending:
            self._log(*self._pending.popleft())

    def _log(self, number, metrics):
        loss = float(metrics['loss'])
        if not math.isfinite(loss):
            raise FloatingPointError(
                f'the loss is {loss} at step {number}: lower optim.learning_rate, or look at the batch; '
                'the newest checkpoint is from before it'
            )
        self._bar.update()
        if number % self._every == 0:
            values = {f'train/{name}': float(value) for name, value in jax.device_get(metrics).items()}
            values['train/learning_rate'] = float(self._schedule(number - 1))
            self._report.scalars(number, values)
            self._bar.set_postfix(loss=f'{loss:.3f}', accuracy=f'{values["train/pixel_accuracy"]:.3f}')


def _log_versions(mesh: Mesh) -> None:
    device = mesh.devices.flat[0].device_kind
    versions = __version__, jax.__version__, flax.__version__
    logger.info('ann_jax %s, jax %s, flax %s on %d x %s', *versions, mesh.size, device)
