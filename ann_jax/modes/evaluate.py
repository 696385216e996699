"""--mode=evaluate: scores trained weights on the evaluation split."""

import contextlib
import logging
from pathlib import Path

from ml_collections import ConfigDict

from ann_jax import build
from ann_jax.buckets.paths import place
from ann_jax.config import validate
from ann_jax.data.datasets import Checked
from ann_jax.errors import ConfigError
from ann_jax.evaluation.report import Report
from ann_jax.modes.alike import refuse_unlike
from ann_jax.modes.evaluation_name import name_evaluation
from ann_jax.modes.report import report_of_run
from ann_jax.modes.score_settings import describe_source, protocol_settings
from ann_jax.modes.trained import open_trained
from ann_jax.parallel.processes import is_main
from ann_jax.runs.record import Record
from ann_jax.typing import Backbone, Source, Writer

logger = logging.getLogger(__name__)


def evaluate(
    config: ConfigDict,
    workdir: str | Path,
    *,
    eval_source: Source | None = None,
    backbone: Backbone | None = None,
    writer: Writer | None = None,
) -> None:
    """Evaluates the best checkpoint of the run or, if there is none, the weights of `init.from`.

    The network and its normalisation are those the weights were trained with, whatever the config says.

    Args:
        config: of the run.
        workdir: its working directory, a folder, gs://BUCKET/NAME or s3://BUCKET/NAME.
        eval_source: in place of the one that the config names.
        backbone: in place of the one that the config names.
        writer: gets curves, pictures and texts in place of TensorBoard's event files; it is not closed.

    Raises:
        DataError: the dataset or the weights cannot be used.
        ConfigError: there are no weights, the dataset has another number or order of classes, a setting does
            not suit the devices, or processes differ in settings or data.
        SaveError: a file cannot be written.
    """
    validate(config)
    config = config.copy_and_resolve_references()  # it follows the weights, for this evaluation alone
    workdir = place(workdir)
    weights, path = open_trained(config, workdir, backbone)
    mesh = build.mesh(config)
    if eval_source is not None:
        eval_source = Checked(eval_source, 'eval_source', build.channels(config))
    evaluation = build.evaluation(config, mesh, eval_source, backbone)
    refuse_unlike(config, evaluate=evaluation.source)
    dataset = evaluation.source.dataset
    if len(weights.classes) != dataset.num_classes:
        raise ConfigError(
            f'{path} has {len(weights.classes)} classes, but {dataset.name} has {dataset.num_classes}: '
            'train a classifier for them first'
        )
    if tuple(weights.classes) != tuple(dataset.classes):
        if sorted(weights.classes) == sorted(dataset.classes):
            raise ConfigError(
                f'{path} has the classes {", ".join(weights.classes)}, and {dataset.name} has them in '
                f'another order: {", ".join(dataset.classes)}'
            )
        other = next(pair for pair in zip(weights.classes, dataset.classes, strict=True) if len({*pair}) > 1)
        logger.warning('%s names classes otherwise than %s, such as %r for %r', path, dataset.name, *other)
    step = weights.source.get('step', 0)
    with contextlib.closing(Record(workdir, silent=not is_main(), writer=writer)) as record:
        protocol = protocol_settings(config)
        if eval_source is not None:
            protocol['source'] = describe_source(eval_source)
        name = name_evaluation(config, workdir, path, protocol.get('source', ''))
        if not (workdir / 'checkpoints').is_dir():  # nothing else here tells whose scores these are
            protocol['weights'] = str(path)
        report = Report(record, dataset.classes, dataset.colors, protocol, name)
        scores = evaluation.run(weights.variables, step, config.dataset.eval_split, report)
    if is_main():
        print(report.table(scores))
        apart = f', apart from those of the training: {name}' if name else ''
        print(f'{path} at step {step}, {len(evaluation.source)} images; written to {workdir}{apart}')
        print(report_of_run(workdir))
