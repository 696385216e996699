"""Compares the variants of Table 6 on the embedded scenes: trains each with several seeds, prints a table.

    python -m ann_jax.tools.ablation --workdir=runs/ablation

Finished runs are not repeated, so an interrupted comparison continues where it stopped, and --seeds or
--variants can be added. Arguments after `--` are passed to every run: `-- --config.train.steps=100`.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from ann_jax.data.scene_objects import LOOK_ALIKES
from ann_jax.models.ann import VARIANTS


def main(argv=None):
    """Parses the command line, trains what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config', default='configs/scenes.py')
    parser.add_argument('--workdir', type=Path, default=Path('runs/ablation'))
    rows = ['baseline', 'afnb', 'apnb', 'full']
    parser.add_argument('--variants', nargs='+', default=rows, choices=VARIANTS)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('arguments', nargs='*', help='passed on to every run')
    options = parser.parse_args(argv)

    for seed in options.seeds:
        for variant in options.variants:
            train(options.config, variant, seed, options.workdir, options.arguments)
    print(table(options.workdir, options.variants, options.seeds))


def folder(workdir, variant, seed):
    """The working directory of a run."""
    return workdir / f'{variant}_{seed}'


def train(config, variant, seed, workdir, arguments):
    """Trains one variant with one seed, unless that has been done."""
    command = [sys.executable, '-m', 'ann_jax.main', f'--config={config}:variant={variant}']
    command += [f'--workdir={folder(workdir, variant, seed)}', f'--config.seed={seed}', *arguments]
    if status := subprocess.run(command).returncode:
        sys.exit(f'error: the run of {variant} with seed {seed} ended with status {status}: see above')


def table(workdir, variants, seeds):
    """Mean and sample deviation over the seeds of mIoU, and of the IoU of the look-alike classes."""
    lines = ['| variant | mIoU | cars (IoU) | people (IoU) |', '|---|---|---|---|']
    for variant in variants:
        runs = []
        for seed in seeds:
            scores = json.loads((folder(workdir, variant, seed) / 'metrics.json').read_text(encoding='utf-8'))
            cars, people = (
                # None, the IoU of a class that never occurs, becomes nan.
                np.mean(np.array([scores['iou'][name] for name in pair], float))
                for pair in (LOOK_ALIKES[:2], LOOK_ALIKES[2:])
            )
            runs.append([scores['miou'], cars, people])
        mean, deviation = np.mean(runs, 0), np.std(runs, 0, ddof=min(1, len(seeds) - 1))
        cells = [f'{100 * m:.1f} ± {100 * d:.1f}' for m, d in zip(mean, deviation, strict=True)]
        lines.append(f'| {variant} | {" | ".join(cells)} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
