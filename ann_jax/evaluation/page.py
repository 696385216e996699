"""The page of one or several runs: one HTML file that loads nothing, by Bokeh and Jinja."""

import base64
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ann_jax.errors import ConfigError
from ann_jax.evaluation import plots
from ann_jax.evaluation.gather import Run, Scored
from ann_jax.evaluation.samples import Kept
from ann_jax.files import replacing
from ann_jax.inference.pictures import WRONG, present
from ann_jax.typing import IGNORE

INSTALL = "pip install 'ann_jax[report]'"
_LAYERS = ('image', 'truth', 'prediction', 'errors')
_OPACITY = 150  # of class colours, of 255
# Figures: title, unit, endings of the curves in it, whether the axis is logarithmic.
_FIGURES = (
    ('Loss', 'loss', ('train/loss', 'train/main_loss', 'train/auxiliary_loss'), False),
    ('Learning rate', 'learning rate', ('train/learning_rate',), False),
    ('Scores', 'score', ('/miou', '/mean_accuracy', '/pixel_accuracy'), False),
    ('Speed', 'seconds per step', ('train/seconds_per_step', 'train/seconds_waiting'), False),
    ('Norm of the gradient', 'norm', ('train/gradient_norm',), True),
)


def can_write() -> bool:
    """Whether the packages that a page takes are installed."""
    return all(importlib.util.find_spec(name) for name in ('bokeh', 'jinja2'))


def write_page(path: Path, runs: Sequence[Run]) -> None:
    """Writes the page of runs, side by side.

    Raises:
        ConfigError: Bokeh or Jinja is missing.
        SaveError: the file cannot be written.
    """
    if not can_write():
        raise ConfigError(f'a report takes Bokeh and Jinja: {INSTALL}')
    text = render(runs)
    with replacing(path) as draft:
        draft.write_text(text, encoding='utf-8')


def render(runs: Sequence[Run]) -> str:
    """The page as HTML; every text is escaped."""
    import jinja2
    from markupsafe import Markup

    primary = [(run, run.scored[0]) for run in runs if run.scored]
    several = len(runs) > 1
    figures = {f'curves{n}': figure for n, figure in enumerate(_curves(runs))}
    for number, (run, scored) in enumerate(primary):
        if scored.details.confusion is not None:
            title = run.name if several else f'split {scored.metrics.get("split")}'
            names = scored.details.classes
            figures[f'matrix{number}'] = plots.confusion(
                title, names, scored.details.confusion, 440 if several else 640
            )
    scripts, parts = plots.embedded(figures)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(
        Path(__file__).with_name('page.html.jinja').read_text(encoding='utf-8')
    )
    rows = [_score_row(run, scored) for run in runs for scored in run.scored]
    return template.render(
        title=', '.join(run.name for run in runs),
        runs=runs,
        scripts=Markup(scripts),
        curves=[Markup(part) for name, part in parts.items() if name.startswith('curves')],
        matrices=[Markup(part) for name, part in parts.items() if name.startswith('matrix')],
        scores=rows,
        categories=any(row['category_miou'] for row in rows),
        scored_runs=[run.name for run, _ in primary],
        classes=_class_rows([scored for _, scored in primary]),
        galleries=[each for run, scored in primary for each in _galleries(run.name, scored, several)],
        layers=_LAYERS,
        settings=_settings(runs),
    )


def _curves(runs):
    """Figures of the curves that there are."""
    for title, unit, endings, log in _FIGURES:
        lines = {}
        for run in runs:
            for name, points in run.curves.items():
                whole = title != 'Scores'
                fits = name in endings if whole else name.endswith(endings)
                # A log axis shows no zero, and no axis shows NaN.
                points = {x: y for x, y in points.items() if np.isfinite(y) and (y > 0 or not log)}
                if fits and points:
                    label = name.removeprefix('train/') if whole else name
                    lines[f'{run.name}: {label}' if len(runs) > 1 else label] = points
        if lines:
            yield plots.curves(title, unit, lines, log)


def _score_row(run: Run, scored: Scored) -> dict[str, Any]:
    metrics, images = scored.metrics, scored.details.images
    protocol = {key: value for key, value in (metrics.get('protocol') or {}).items() if value not in ([], '')}
    row = {name: _percent(metrics.get(name)) for name in ('miou', 'pixel_accuracy', 'mean_accuracy')}
    return row | {
        'run': run.name,
        'name': scored.name,
        'split': metrics.get('split', ''),
        'images': f'{images:,}' if images else '',
        'step': metrics.get('step', ''),
        'category_miou': _percent(metrics['category_miou']) if 'category_miou' in metrics else '',
        'protocol': ', '.join(f'{key}={_plain(value)}' for key, value in protocol.items()),
    }


def _class_rows(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """A row per class of any run, by the IoU of the first run that has it."""
    names = list(dict.fromkeys(name for each in scored for name in each.metrics['iou']))
    rows = []
    for name in names:
        cells, first = [], None
        for each in scored:
            iou = each.metrics['iou'].get(name)
            first = iou if first is None else first
            accuracy = each.metrics.get('accuracy', {}).get(name)
            cells.append(
                {'iou': _percent(iou), 'width': f'{100 * (iou or 0):.1f}', 'accuracy': _percent(accuracy)}
            )
        row = {'name': name, 'cells': cells, 'order': -1 if first is None else first}
        rows.append(row | {'color': '', 'pixels': '', 'share': ''} | _about(name, scored))
    return sorted(rows, key=lambda row: -row['order'])


def _about(name, scored):
    """Colour and true pixels of a class, where an evaluation has details."""
    for each in scored:
        details = each.details
        if details.confusion is not None and name in details.classes:
            i = details.classes.index(name)
            pixels, total = int(details.confusion[i].sum()), max(int(details.confusion.sum()), 1)
            return {
                'color': plots.css(details.colors[i]),
                'pixels': f'{pixels:,}',
                'share': f'{100 * pixels / total:.2f} %',
            }
    return {}


def _galleries(run_name, scored, several):
    details = scored.details
    for kind in ('worst', 'best'):
        if samples := details.samples.get(kind):
            title = f'{run_name}: {kind}' if several else kind.capitalize()
            yield {'title': title, 'samples': [_sample(sample, details) for sample in samples]}


def _sample(sample: Kept, details) -> dict[str, Any]:
    ids = [sample.truth, sample.prediction]
    colors = [(*color, _OPACITY) for color in details.colors]
    # Index 0: right, 1: wrong, IGNORE: no label.
    wrong = np.where(sample.truth == IGNORE, IGNORE, sample.truth != sample.prediction).astype(np.uint8)
    legend = [(details.classes[i], plots.css(details.colors[i])) for i in present(*ids)]
    return {
        'name': sample.score.name,
        'miou': _percent(sample.score.miou),
        'pixel_accuracy': _percent(sample.score.pixel_accuracy),
        'legend': legend,
        'image': _data(Image.fromarray(sample.image), 'jpeg', quality=88),
        'truth': _layer(sample.truth, colors),
        'prediction': _layer(sample.prediction, colors),
        'errors': _layer(wrong, [(255, 255, 255, 140), (*WRONG, 255)], (0, 0, 0, 255)),
    }


def _layer(ids, colors, ignored=(0, 0, 0, 0)):
    """A class map as a PNG of few bytes, whose colours are partly transparent."""
    palette = np.zeros((256, 4), np.uint8)
    palette[: len(colors)] = colors
    palette[IGNORE] = ignored
    picture = Image.fromarray(ids, 'P')
    picture.putpalette(palette[:, :3].tobytes())
    return _data(picture, 'png', transparency=palette[:, 3].tobytes(), optimize=True)


def _data(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f'data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}'


def _settings(runs):
    """Tables of settings: those that differ, and all."""
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    rows = [(key, [_plain(run.config.get(key, '-')) for run in runs]) for key in keys]
    differing = [row for row in rows if len(set(row[1])) > 1]
    tables = [{'title': f'All {len(rows)} settings', 'open': False, 'rows': rows}]
    if len(runs) > 1:
        title = f'{len(differing)} settings differ'
        tables.insert(0, {'title': title, 'open': True, 'rows': differing})
    return tables


def _percent(value):
    return '' if value is None or value != value else f'{100 * value:.2f}'


def _plain(value):
    return ', '.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
