r"""Repeats the ablation studies of the paper (Tables 6, 7 and 9), or yours, on any config with several seeds.

    python -m ann_jax.tools.ablation --tables 6 --workdir=runs/ablation
    python -m ann_jax.tools.ablation --tables 6 7 9 --config=configs/camvid.py:small -- \
        --config.dataset.root=/data/camvid
    python -m ann_jax.tools.ablation --own paper= 'dice=--config.loss.terms=ohem:1,dice:1' 'both=--config...'

Rows of your own are names and what the command gets for them. With `--splits`, the best checkpoint of each
run is scored on further splits too.

Rows that two tables share are trained once. Finished runs are not repeated and interrupted ones go on, so
the same command continues a comparison, and tables, rows and seeds can be added. Arguments after `--` are
passed to every run, before those of its row, which win: `-- --config.train.steps=100`. The tables and all
scores are written to ablation.md and ablation.json in the working directory and, with the extra `report`, to
ablation.png.
"""

import argparse
import contextlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ann_jax import files
from ann_jax.buckets.paths import place
from ann_jax.data.scene_objects import LOOK_ALIKES
from ann_jax.runs.checkpoints import Checkpoints
from ann_jax.runs.record import suffix


class Row(NamedTuple):
    """One network of a table.

    Attributes:
        label: what the table calls it.
        paper: mIoU on Cityscapes val in the paper, in percent; None for a row of the user's own.
        variant: of Table 6; '' for that of the config.
        settings: of `config.model`, in which it differs from that variant.
        flags: more of the command line.
    """

    label: str
    paper: float | None
    variant: str = ''
    settings: Mapping[str, Any] = {}
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of its runs: two rows of one name are one network."""
        if not self.variant:
            return self.label
        return '-'.join([self.variant, *(_text(value).replace(',', '_') for value in self.settings.values())])

    def arguments(self) -> list[str]:
        """Settings on the command line."""
        return [
            *(f'--config.model.{key}={_text(value)}' for key, value in self.settings.items()),
            *self.flags,
        ]


def _text(value):
    return value if isinstance(value, str) else ','.join(map(str, value))


def _sampled(label, paper, sampling, *sizes):
    settings = {'sampling': sampling} if sampling != 'average' else {}
    return Row(label, paper, 'full', settings | ({'sizes': sizes} if sizes != (1, 3, 6, 8) else {}))


# Pyramid average 1,3,6,8 of Table 7 scores what the full network does in Table 6: the rows are its variants.
TABLES = {
    6: (
        Row('Baseline', 75.8, 'baseline'),
        Row('+ NB', 78.4, 'nb'),
        Row('+ APNB', 78.6, 'apnb'),
        Row('+ Common fusion', 76.5, 'common'),
        Row('+ FNB', 77.3, 'fnb'),
        Row('+ AFNB', 77.1, 'afnb'),
        Row('+ Common fusion + NB', 79.0, 'common_nb'),
        Row('+ FNB + NB', 79.7, 'fnb_nb'),
        Row('+ AFNB + APNB (Full)', 79.9, 'full'),
    ),
    7: (
        _sampled('random 15', 78.2, 'random', 15),
        _sampled('max 15', 78.1, 'max', 15),
        _sampled('average 15', 78.4, 'average', 15),
        _sampled('pyramid random 1,2,3,6', 78.8, 'random', 1, 2, 3, 6),
        _sampled('pyramid max 1,2,3,6', 79.1, 'max', 1, 2, 3, 6),
        _sampled('pyramid average 1,2,3,6', 79.3, 'average', 1, 2, 3, 6),
        _sampled('pyramid average 1,3,6,8', 79.9, 'average', 1, 3, 6, 8),
        _sampled('pyramid average 1,4,8,12', 80.1, 'average', 1, 4, 8, 12),
    ),
    9: (
        Row('Baseline', 75.8, 'baseline'),
        Row('AFNB, 4 & 5', 77.1, 'afnb'),
        Row('AFNB, 3 & 5, 4 & 5', 76.7, 'afnb', {'fuse_stages': (3, 4)}),
        Row('AFNB, 2 & 5, 3 & 5, 4 & 5', 76.2, 'afnb', {'fuse_stages': (2, 3, 4)}),
    ),
}
OWN = 0  # number of the table of the user's own rows
ROWS = {row.name: row for rows in TABLES.values() for row in rows}


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line, trains what is missing, then prints and writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', default='configs/scenes.py', help='with its argument, if any')
    parser.add_argument('--workdir', type=place, default=Path('runs/ablation'))
    parser.add_argument('--tables', nargs='+', type=int, choices=TABLES, help='6 if nothing is given')
    parser.add_argument('--rows', nargs='+', metavar='ROW', choices=ROWS, help=f'some of {", ".join(ROWS)}')
    parser.add_argument('--own', nargs='+', default=[], metavar='NAME=FLAGS', type=own_row)
    parser.add_argument('--splits', nargs='+', default=[], metavar='SPLIT', help='to score on as well')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('arguments', nargs='*', help='passed on to every run')
    options = parser.parse_args(argv)
    if len({*options.seeds}) < len(options.seeds):
        parser.error(f'--seeds {" ".join(map(str, options.seeds))}: each once')
    for flag in (*options.arguments, *(flag for row in options.own for flag in row.flags)):
        if re.match(r'--?(config(=|$)|config\.seed\b|workdir\b|mode\b)', flag):
            parser.error(f'{flag} is not for a row: --config, --seeds and --workdir are of all')
    numbers = options.tables or ([] if options.own and not options.rows else [6])
    tables = {
        number: rows
        for number in numbers
        if (rows := [row for row in TABLES[number] if not options.rows or row.name in options.rows])
    }
    found = {row.name for rows in tables.values() for row in rows}
    if lost := [name for name in options.rows or () if name not in found]:
        parser.error(f'tables {numbers} have none of the rows {lost}')
    if options.own:
        tables[OWN] = list({row.name: row for row in options.own}.values())
        if len(tables[OWN]) < len(options.own):
            parser.error('two rows of --own have one name')

    runs = {row.name: row for rows in tables.values() for row in rows}
    for seed in options.seeds:  # every row once, then again: what is interrupted compares all rows
        for row in runs.values():
            train(options.config, row, seed, options.workdir, options.arguments, options.splits)
    scores = {
        name: [score(options.workdir, name, seed, options.splits) for seed in options.seeds] for name in runs
    }
    text = '\n\n'.join(f'{title(number)}\n\n{table(rows, scores)}' for number, rows in tables.items())
    print(text)
    with files.replacing(options.workdir / 'ablation.md') as path:
        path.write_text(text + '\n', encoding='utf-8')
    # A class that never occurs has no IoU, and nan is not JSON.
    plain = lambda run: {key: value if np.isfinite(value) else None for key, value in run.items()}
    kept = {name: [plain(run) for run in each] for name, each in scores.items()}
    record = {'seeds': options.seeds, 'arguments': options.arguments, 'scores': kept}
    files.write_json(options.workdir / 'ablation.json', record)
    plot(tables, scores, options.workdir / 'ablation.png')


def own_row(text: str) -> Row:
    """A row from the command line: NAME=FLAGS.

    Raises:
        argparse.ArgumentTypeError: it has another form.
    """
    name, equals, flags = text.partition('=')
    if not equals or not re.fullmatch(r'[\w.-]+', name) or name in ROWS:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not NAME=FLAGS, with a name of letters, digits, dots and dashes that is no row of '
            "the paper, as in 'dice=--config.loss.terms=dice:1'"
        )
    words = tuple(shlex.split(flags))
    if words and not words[0].startswith('-'):
        raise argparse.ArgumentTypeError(
            f'{text!r}: {words[0]} must be a flag with its value, as in --config.loss.terms=dice:1'
        )
    return Row(name, None, flags=words)


def title(number: int) -> str:
    """What a table is called."""
    return f'Table {number}' if number != OWN else 'Own rows'


def folder(workdir: Path, name: str, seed: int) -> Path:
    """The working directory of a run."""
    return workdir / f'{name}_{seed}'


def train(
    config: str, row: Row, seed: int, workdir: Path, arguments: Sequence[str], splits: Sequence[str] = ()
) -> None:
    """Trains one row with one seed, and scores it on further splits, unless that has been done.

    Raises:
        SystemExit: the run failed.
    """
    if row.variant:
        config += f'{"," if ":" in config else ":"}variant={row.variant}'
    into = folder(workdir, row.name, seed)
    command = [sys.executable, '-m', 'ann_jax.main', f'--config={config}', f'--workdir={into}']
    command += [f'--config.seed={seed}', *arguments, *row.arguments()]  # of a setting, the last counts
    _run(command, row, seed)
    for split in splits:
        if not _is_of_best(_metrics(into, split), into):
            _run([*command, '--mode=evaluate', f'--config.dataset.eval_split={split}'], row, seed)
            if not _metrics(into, split).is_file():
                sys.exit(
                    f'error: the run of {row.name} with seed {seed} was trained with other settings of its '
                    'evaluation: use those, or another --workdir'
                )


def _is_of_best(metrics, run):
    """Whether scores on a split are those of the best checkpoint that the run has now."""
    if not metrics.is_file():
        return False
    scored = json.loads(metrics.read_text(encoding='utf-8')).get('step')
    with contextlib.closing(Checkpoints(run / 'checkpoints')) as checkpoints:
        return scored == checkpoints.best


def _run(command, row, seed):
    if status := subprocess.run(command).returncode:
        sys.exit(f'error: the run of {row.name} with seed {seed} ended with status {status}: see above')


def _metrics(run, split=''):
    """The file of the scores on a split; '' for the one that is evaluated in training."""
    if split:
        own = json.loads((run / 'config.json').read_text(encoding='utf-8'))['dataset']['eval_split']
        split = '' if split == own else split
    return run / f'metrics{suffix(split)}.json'


def score(workdir: Path, name: str, seed: int, splits: Sequence[str] = ()) -> dict[str, float]:
    """Scores of a run in percent: of all classes, and of the pairs of look-alikes where it has them."""
    read = lambda split='': json.loads(
        _metrics(folder(workdir, name, seed), split).read_text(encoding='utf-8')
    )
    metrics = read()
    found = {'mIoU': 100 * metrics['miou']} | {split: 100 * read(split)['miou'] for split in splits}
    if set(LOOK_ALIKES) <= metrics['iou'].keys():
        for key, pair in (('cars', LOOK_ALIKES[:2]), ('people', LOOK_ALIKES[2:])):
            # None, the IoU of a class that never occurs, becomes nan.
            found[key] = float(100 * np.mean(np.array([metrics['iou'][each] for each in pair], float)))
    return found


def table(rows: Sequence[Row], scores: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Mean and sample deviation over the seeds, beside the figure of the paper, as Markdown.

    A single seed has no deviation.
    """
    keys = list(scores[rows[0].name][0])
    published = any(row.paper for row in rows)
    head = ['network', *keys, *(['paper, Cityscapes'] if published else [])]
    lines = [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
    for row in rows:
        values = np.array([[run[key] for key in keys] for run in scores[row.name]])
        texts = '{:.1f} ± {:.1f}' if len(values) > 1 else '{:.1f}'
        cells = [texts.format(*each) for each in zip(*spread(values), strict=True)]
        lines.append(f'| {" | ".join([row.label, *cells, *([f"{row.paper:.1f}"] if published else [])])} |')
    return '\n'.join(lines)


def spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sample deviation over the first axis; a deviation of 0 for a single run."""
    return values.mean(0), values.std(0, ddof=min(1, len(values) - 1))


def plot(
    tables: Mapping[int, Sequence[Row]],
    scores: Mapping[str, Sequence[Mapping[str, float]]],
    path: Path,
) -> None:
    """Draws the mIoU of every seed, their mean, and the paper's beside it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no ablation.png: pip install 'ann_jax[report]'")
        return
    count = sum(map(len, tables.values()))
    figure = Figure((9, 1 + 0.4 * count + 0.5 * len(tables)), layout='constrained')
    axes = figure.subplots(
        len(tables), 2, squeeze=False, height_ratios=[len(rows) + 1 for rows in tables.values()]
    )
    for (number, rows), (ours, paper) in zip(tables.items(), axes, strict=True):
        places = np.arange(len(rows))
        runs = np.array([[run['mIoU'] for run in scores[row.name]] for row in rows])
        ours.plot(runs, places, 'o', color='0.7', markersize=4)
        mean, deviation = spread(runs.T)
        ours.errorbar(mean, places, xerr=deviation, fmt='D', color='#0072b2', capsize=3)
        ours.set_yticks(places, [row.label for row in rows])
        ours.set_title(f'{title(number)}: here', fontsize=10)
        paper.plot([row.paper for row in rows], places, 'D', color='#d55e00')
        paper.set_yticks(places, [''] * len(rows))
        paper.set_title('the paper, Cityscapes val', fontsize=10)
        for axis in (ours, paper):
            axis.invert_yaxis()
            axis.grid(axis='x', alpha=0.3)
            axis.set_xlabel('mIoU (%)')
        paper.set_visible(number != OWN)
    with files.replacing(path) as partial:
        figure.savefig(partial, dpi=150, format='png')


if __name__ == '__main__':
    main()
