"""Reads what the page of a run shows from its working directory."""

import json
import logging
import re
import statistics
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from ann_jax.errors import DataError
from ann_jax.evaluation.details import Details, read_details
from ann_jax.runs.events import read_scalars
from ann_jax.runs.history import flat

logger = logging.getLogger(__name__)

_STAMP = re.compile(r'(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ (\w+) (.*)')
_STEP = re.compile(r'step \d+: ([\d.]+) s per step, ([\d.]+) s of it waiting')
_SHOWN = 500  # lines of the log
_LONG = re.compile(r'config \{|step \d+: loss')  # lines of the log that the page shows elsewhere


class Scored(NamedTuple):
    """One evaluation: the content of its metrics*.json, and its details."""

    name: str  # '' for that of the training
    metrics: dict[str, Any]
    details: Details


class Run(NamedTuple):
    """What lies in a working directory; anything may be missing."""

    name: str
    curves: dict[str, dict[int, float]]  # name -> step -> value
    config: dict[str, Any]  # settings by names such as 'train.steps'
    scored: list[Scored]
    facts: dict[str, str]  # versions, devices and timings
    log: list[str]


def gather(workdir: Path) -> Run:
    """Reads a working directory.

    Raises:
        DataError: there is neither a score nor a curve in it.
    """
    curves = read_scalars(workdir / 'tensorboard')
    scored = []
    for file in sorted(workdir.glob('metrics*.json')):
        name = file.stem.removeprefix('metrics')
        metrics = _json(file)
        if isinstance(metrics.get('iou'), dict):
            details = read_details(workdir / f'evaluation{name}')
            fits = details.classes == tuple(metrics['iou'])
            scored.append(Scored(name[1:], metrics, details if fits else Details()))
    if not scored and not curves:
        raise DataError(
            f'{workdir} holds no scores (metrics.json) and no curves (tensorboard/): name the working '
            'directory of a run'
        )
    log = _log(workdir / 'log.txt')
    scored.sort(key=lambda each: each.name)
    name = workdir.resolve().name
    return Run(name, curves, flat(_json(workdir / 'config.json')), scored, _facts(log, scored), log[-_SHOWN:])


def _json(file):
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning('%s cannot be read (%s): the page goes without it', file, error)
        return {}
    return content if isinstance(content, dict) else {}


def _log(file):
    try:
        lines = file.read_bytes().decode('utf-8', 'replace').splitlines()
    except OSError:
        return []
    stamped = filter(None, map(_STAMP.fullmatch, lines))
    return [f'{each[1]} {each[3]}' for each in stamped if not _LONG.match(each[3])]


def _facts(log, scored):
    """What the log and the details say about versions, devices and time, the newest of each."""
    facts = {}
    for line in log:
        text = line[20:]
        for mark, name in (
            (r'ann_jax [\w.]+, jax ', 'versions'),
            (r'\d+ x .*, mesh ', 'devices'),
            (r'[\d,]+ parameters\b', 'network'),
            (r'\d+ images to train on', 'data'),
            (r'compiled the step in ', 'compiling'),
        ):
            if re.match(mark, text):
                facts[name] = text
    steps = [(float(found[1]), float(found[2])) for line in log if (found := _STEP.match(line[20:]))]
    if steps:
        spent, waited = (statistics.median(column) for column in zip(*steps, strict=True))
        facts['training'] = f'{spent:.3f} s per step, {waited:.3f} s of it waiting for data (medians)'
    if len(log) > 1:
        first, last = (datetime.fromisoformat(line[:19]) for line in (log[0], log[-1]))
        facts['log'] = f'from {first} to {last}'
    for each in scored:
        about = each.details.about
        if about:
            versions = ', '.join(f'{name} {version}' for name, version in about['versions'].items())
            took = f'{each.details.images} images in {about["seconds"]:.1f} s'
            told = f'{took}, {about["date"]}, {about["device"]}, {versions}'
            facts[f'evaluation {each.name}'.strip()] = told
    return facts
