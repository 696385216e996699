"""Opens trained weights: a run, one of its checkpoints, or a weights folder."""

import contextlib
import dataclasses
import json
import logging
from pathlib import Path

from ann_jax import __version__
from ann_jax.buckets import reasons
from ann_jax.buckets.copies import fetched, naming
from ann_jax.buckets.services import remote
from ann_jax.data.scenes import VERSIONS
from ann_jax.errors import ConfigError, DataError, unknown
from ann_jax.files import refuse_special
from ann_jax.runs.checkpoints import Checkpoints
from ann_jax.runs.facts import unknown_parts
from ann_jax.runs.history import complete, note, note_unknown, saved_config
from ann_jax.weights import folder
from ann_jax.weights.converter import convert
from ann_jax.weights.folder import Weights, as_tuples
from ann_jax.weights.hub import foreign, located, origin
from ann_jax.weights.torch_files import ENDINGS

logger = logging.getLogger(__name__)

PREFERENCES = ('', 'ema', 'weights')


def open_weights(path: str | Path, prefer: str = '') -> Weights:
    """Reads the best checkpoint of a run (the newest if none has a score), a given one, or a weights folder.

    Settings and arrays are checked, see `soundness.check`.

    Args:
        path: a run, RUN/checkpoints/STEP, a folder with a model.json, any of them also in a bucket, as
            gs://BUCKET/NAME; or hf://OWNER/NAME[@REVISION]. A folder that timm or transformers wrote, here or
            on the hub, is converted on the way.
        prefer: of a run with a moving average, 'ema' or 'weights', the last ones; '' for the average if there
            is one.

    Raises:
        ConfigError: the path is none of these, or a file of torch or Paddle; or it does not hold what is
            preferred.
        DataError: the weights folder, the given checkpoint, or every checkpoint of the run is damaged; or
            what it holds cannot be weights.
        VersionError: another version wrote it, and this one cannot read it.
    """
    if prefer not in PREFERENCES:
        raise ConfigError(unknown('prefer', prefer, PREFERENCES[1:]))
    found = located(path)
    try:
        near = _near(found)
        with naming(found, near):
            weights = _read(near, prefer)
            weights.check()
    except (ConfigError, DataError):
        raise
    except Exception as error:
        if why := remote(found) and reasons.reason(error):
            raise DataError(f'cannot read {found}: {why}') from error
        raise
    return weights if near == found else dataclasses.replace(weights, path=found)


def _near(path):
    """Weights in a bucket as a copy on this machine; a run stays there, where orbax reads it."""
    if remote(path) and any((path / name).exists() for name in ('model.json', 'config.json')):
        if not (path / 'checkpoints').is_dir():
            return Path(fetched(str(path)))
    return path


def _read(path, prefer):
    file = foreign(path)
    if prefer and (file or (path / 'model.json').is_file()):
        raise ConfigError(
            f'init.prefer={prefer}: {path} is not a run, and holds its weights once: leave it empty'
        )
    if file:
        converted = convert(file)
        for line in converted.notes:
            logger.info('%s: %s', path, line)
        return dataclasses.replace(converted.weights, path=path, version=__version__)
    if (path / 'model.json').is_file():
        loaded = folder.load(path)
        model, added = folder.complete_model(loaded.model)
        note(path, added)
        source = {**loaded.source, **origin(path / 'model.json')}
        return dataclasses.replace(loaded, model=as_tuples(model), source=source)
    return _read_run(path, prefer)


def _read_run(path, prefer):
    """Reads the best intact checkpoint of a run, or the one that the path names."""
    if not path.is_dir():
        refuse_special(path, 'weights')
    only = None
    if path.parent.name == 'checkpoints' and path.name.isdigit() and path.is_dir():
        path, only = path.parent.parent, int(path.name)
    if path.suffix in ENDINGS and path.is_file():
        out, kind = path.with_suffix(''), 'Paddle' if path.suffix == '.pdparams' else 'torch'
        raise ConfigError(
            f"{path} is a {kind} file: convert it once, with ann_jax.convert('{path}', '{out}') or "
            f'python -m ann_jax.tools.convert_checkpoint {path} --out {out}, and use the folder {out}'
        )
    if not (path / 'checkpoints').is_dir():
        raise ConfigError(f'{path} holds no checkpoint and no model.json: name a run or a weights folder')
    with contextlib.closing(Checkpoints(path / 'checkpoints')) as checkpoints:
        best, scores = checkpoints.best, checkpoints.scores
        # Damaged checkpoints are skipped.
        steps = [step for step in (best, *checkpoints.steps) if step is not None]
        if not steps:
            raise ConfigError(f'{path} holds no checkpoint yet: train first')
        read = lambda step, _: _variables(checkpoints, step, prefer)
        if only is None:
            step, facts, (variables, averaged) = checkpoints.first_whole(dict.fromkeys(steps), read)
        else:
            step, facts, (variables, averaged) = only, checkpoints.facts(only), read(only, None)
    kind = 'its best' if step == best else 'its newest intact one' if only is None else 'as named'
    logger.info('%s at step %d, %s%s', path, step, kind, ': the moving average' if averaged else '')
    found = path / 'checkpoints' / str(step)
    saved = saved_config(facts, found)
    if 'classes' not in facts and (names := _class_names(path, saved, variables)):
        facts['classes'] = names
    classes, colors = folder.class_facts(facts, variables, path)
    model, added = folder.complete_model(saved['model'])
    data = complete(saved)[0]['dataset']
    note(path, added)
    note_unknown(found, unknown_parts(found, facts))
    return Weights(
        variables=variables,
        model=as_tuples(model),
        input=as_tuples(saved['input']),
        classes=classes,
        colors=colors,
        source={'run': path.name, 'step': step, **_of_run(saved, facts, scores.get(step), averaged)},
        backbone=facts.get('backbone', ''),
        images={key: data[key] for key in folder.IMAGES if data[key]},
        path=found,
        version=facts.get('version', ''),
    )


def _variables(checkpoints, step, prefer):
    """Variables of a network in a checkpoint, and whether they are the moving average."""
    has_average = 'ema' in checkpoints.branches(step)
    if prefer == 'ema' and not has_average:
        raise ConfigError(f'init.prefer=ema: {checkpoints.folder.parent} keeps no moving average')
    if not has_average or prefer == 'weights':
        return checkpoints.read(step, ('params', 'batch_stats')), False
    average = checkpoints.read(step, ('ema',))['ema']
    return {key: average.get(key, {}) for key in ('params', 'batch_stats')}, True


def _of_run(saved, facts, score, averaged):
    """Dataset, crops and first weights of a run, and the score of a checkpoint, where they are known."""
    crop = saved.get('augment', {}).get('crop')
    name = facts.get('dataset') or _dataset_name(saved.get('dataset', {}))  # the first: a source in Python
    known = {'crop': as_tuples(crop), 'dataset': name, 'miou': score}
    known['started_from'] = facts.get('started_from')
    if averaged:
        known['weights'] = f'exponential moving average, decay {saved["optim"]["ema_decay"]}'
    elif saved.get('optim', {}).get('ema_decay'):
        known['miou'] = None  # which is that of the average
    return {key: value for key, value in known.items() if value not in (None, '')}


def _dataset_name(data):
    """The dataset that a run read: without a root, the one that stands in for it."""
    return (not data.get('root') and data.get('stand_in')) or data.get('name')


def _class_names(path, saved, variables):
    """Class names of a run that does not save them: those of the scenes, or those in its scores."""
    count = len(variables['params'].get('classifier', {}).get('bias', ()))
    data = complete(saved)[0]['dataset']
    names = []
    if _dataset_name(data) == 'scenes':
        names = list(VERSIONS[data['scenes']['version']])
    else:
        with contextlib.suppress(OSError, ValueError, KeyError):
            names = list(json.loads((path / 'metrics.json').read_text(encoding='utf-8'))['iou'])
    return names if len(names) == count else None


def open_network(path: str | Path, prefer: str = '') -> Weights:
    """Reads weights as `open_weights` does, and refuses a backbone alone.

    Raises:
        ConfigError: there are no weights, or they have no classifier.
        DataError: they are damaged.
    """
    opened = open_weights(path, prefer)
    if not opened.classes:
        raise ConfigError(f'{path} is a backbone alone, without classes: train a head first')
    return opened
