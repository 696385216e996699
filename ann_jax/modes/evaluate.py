"""--mode=evaluate: scores trained weights on the evaluation split."""

import contextlib
import hashlib
import json
import logging
from pathlib import Path

from ml_collections import ConfigDict

from ann_jax import build
from ann_jax.buckets.paths import place
from ann_jax.config import defaults, validate
from ann_jax.data.datasets import Checked
from ann_jax.errors import ConfigError
from ann_jax.evaluation.report import Report
from ann_jax.modes.alike import refuse_unlike
from ann_jax.modes.report import report_of_run
from ann_jax.modes.trained import open_trained
from ann_jax.parallel.processes import is_main
from ann_jax.runs.history import flat
from ann_jax.runs.record import Record
from ann_jax.typing import Backbone, Source, Writer

logger = logging.getLogger(__name__)

_LONG = 40  # characters of a value in a name


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
        workdir: its working directory, a folder or gs://BUCKET/NAME.
        eval_source: in place of the one that the config names.
        backbone: in place of the one that the config names.
        writer: gets curves, pictures and texts in place of TensorBoard's event files; it is not closed.

    Raises:
        DataError: the dataset cannot be used.
        ConfigError: there are no weights, the dataset has another number of classes, or processes differ in
            settings or data.
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
    name = _name(config, workdir, path)
    with contextlib.closing(Record(workdir, silent=not is_main(), writer=writer)) as record:
        protocol = build.protocol_settings(config)
        if not (workdir / 'checkpoints').is_dir():  # nothing else here tells whose scores these are
            protocol['weights'] = str(path)
        report = Report(record, dataset.classes, dataset.colors, protocol, name)
        scores = evaluation.run(weights.variables, step, config.dataset.eval_split, report)
    if is_main():
        print(report.table(scores))
        apart = f', apart from those of the training: {name}' if name else ''
        print(f'{path} at step {step}, {len(evaluation.source)} images; written to {workdir}{apart}')
        print(report_of_run(workdir))


def _name(config, workdir, path):
    """How this evaluation differs from those of the run in the working directory, '' if it does not."""
    try:
        saved = json.loads((workdir / 'config.json').read_text(encoding='utf-8'))
        model, then = saved['model'], flat(saved['dataset'])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # there is no run
        return '' if _evaluated(workdir) in ('', str(path)) else f'from={_short(path)}'
    trained = build.protocol_settings(defaults())
    trained |= {key: value for key, value in saved.get('eval', {}).items() if key in trained}
    trained['dtype'] = model.get('dtype', 'float32')
    changed = {
        key: _plain(value)
        for key, value in build.protocol_settings(config).items()
        if _plain(value) != _plain(trained[key])
    }
    now = flat(config.dataset.to_dict())
    before = build.scored_data({**now, **then})
    for key, value in build.scored_data(now).items():
        if key != 'eval_split' and _plain(value) != _plain(before.get(key, value)):
            changed[key] = _plain(value)
    if now['root'] != then.get('root', now['root']):
        changed['root'] = _short(now['root'])
    if path != workdir:
        changed['from'] = _short(path)
    if config.init.prefer == 'weights' and saved.get('optim', {}).get('ema_decay'):
        changed['prefer'] = 'weights'  # the training evaluates the average
    split = config.dataset.eval_split
    parts = [split] if split != then.get('eval_split') else []
    return ' '.join([*parts, *(f'{key}={value or "()"}' for key, value in changed.items())])


def _evaluated(workdir):
    """The weights of which the working directory holds scores, '' if it has none."""
    try:
        metrics = json.loads((workdir / 'metrics.json').read_text(encoding='utf-8'))
        return metrics['protocol']['weights']
    except (OSError, ValueError, LookupError, TypeError):
        return ''


def _plain(value):
    """A value as part of a name: itself, or the beginning and a checksum of a long one."""
    text = ','.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= _LONG else f'{text[:10]}-{_checksum(text)}'


def _short(path):
    """The name of a folder, and what tells it from others of that name."""
    return f'{Path(path).name}-{_checksum(str(Path(path).absolute()))}'


def _checksum(text):
    return hashlib.sha256(text.encode()).hexdigest()[:6]
