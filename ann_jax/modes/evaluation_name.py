"""Names for evaluations that differ from those of the run in whose working directory they are written."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ann_jax.buckets.paths import same
from ann_jax.config import defaults
from ann_jax.modes.score_settings import protocol_settings, scored_data
from ann_jax.runs.history import flat

_LONG = 40  # characters of a value in a name


def name_evaluation(config: ConfigDict, workdir: Path, weights: Path, source: str = '') -> str:
    """How an evaluation differs from those of the run, '' if it does not, such as `val flip=True`.

    Args:
        config: of the evaluation.
        workdir: of the run. If there is none in it, scores of other weights are what is kept apart.
        weights: that are evaluated; those of the run are at its working directory.
        source: of the caller's own, if there is one, as `describe_source` has it.
    """
    protocol = _protocol(workdir)
    try:
        saved = json.loads((workdir / 'config.json').read_text(encoding='utf-8'))
        model, then = saved['model'], flat(saved['dataset'])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # there is no run
        return '' if protocol.get('weights', '') in ('', str(weights)) else f'from={_short(weights)}'
    trained = protocol_settings(defaults())
    trained |= {key: value for key, value in saved.get('eval', {}).items() if key in trained}
    trained['dtype'] = model.get('dtype', 'float32')
    changed = {
        key: _plain(value)
        for key, value in protocol_settings(config).items()
        if _plain(value) != _plain(trained[key])
    }
    if not source:
        changed |= _changed_data(flat(config.dataset.to_dict()), then)
    if source != protocol.get('source', ''):
        changed['source'] = _plain(source) if source else 'config'
    if weights != workdir:
        changed['from'] = _short(weights)
    if config.init.prefer == 'weights' and saved.get('optim', {}).get('ema_decay'):
        changed['prefer'] = 'weights'  # the training evaluates the average
    split = config.dataset.eval_split
    parts = [split] if split != then.get('eval_split') else []
    return ' '.join([*parts, *(f'{key}={value or "()"}' for key, value in changed.items())])


def _changed_data(now: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, str]:
    """What tells one dataset from another, of their settings."""
    before = scored_data({**now, **then})
    changed = {
        key: _plain(value)
        for key, value in scored_data(now).items()
        if key != 'eval_split' and _plain(value) != _plain(before.get(key, value))
    }
    if not same(now['root'], then.get('root', now['root'])):
        changed['root'] = _short(now['root'])
    return changed


def _protocol(workdir):
    """That of the scores in the working directory, {} if it has none."""
    try:
        return dict(json.loads((workdir / 'metrics.json').read_text(encoding='utf-8'))['protocol'])
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _plain(value):
    """A value as part of a name: itself, or the beginning and a checksum of a long one."""
    text = ','.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= _LONG else f'{text[:10]}-{_checksum(text)}'


def _short(path):
    """The name of a folder, and what tells it from others of that name."""
    return f'{Path(path).name}-{_checksum(str(Path(path).absolute()))}'


def _checksum(text):
    return hashlib.sha256(text.encode()).hexdigest()[:6]
