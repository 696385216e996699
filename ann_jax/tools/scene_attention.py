"""Measures whether the look-alikes of the embedded scenes attend to what tells them apart.

    python -m ann_jax.tools.scene_attention --run=runs/scenes

Cars are stopped or moving as the barrier is lowered or raised, and people are workers or pedestrians as the
structure is a crane or a hoist. Every scene of the val split is drawn both ways, which changes the cues only.
"""

import argparse
import sys

import numpy as np

from ann_jax.data.scenes import SPLITS, VERSIONS, render
from ann_jax.errors import ConfigError, DataError
from ann_jax.inference.segmenter import load
from ann_jax.tools.launch import count

SIZE = 96, 208
# Pixels of a class, and the cue that they are measured against.
ROWS = (
    ('stopped car', 'barrier'),
    ('moving car', 'barrier'),
    ('worker', 'structure'),
    ('pedestrian', 'structure'),
    ('road', 'barrier'),
    ('road', 'structure'),
)


def main(argv=None):
    """Parses the command line, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--run', required=True, help='a run on the embedded scenes')
    parser.add_argument('--scenes', type=count, default=50, help='of the val split, each drawn in two ways')
    options = parser.parse_args(argv)
    try:
        print(table(measure(options.run, options.scenes)))
    except (ConfigError, DataError) as error:
        sys.exit(f'error: {error}')


def measure(run, scenes):
    """(class, cue) -> block -> per scene, the share of attention, and that if all anchors weighed the same.

    The share is that of the anchors whose boxes meet the box of the cue, over the pixels of the class.

    Raises:
        ConfigError: the run is of other classes, or its network attends to nothing.
    """
    segmenter = load(run)
    if tuple(segmenter.classes) != tuple(VERSIONS[3]):
        raise ConfigError(f'{run} is no run on the embedded scenes of today: name one of configs/scenes.py')
    found: dict[tuple[str, str], dict] = {row: {} for row in ROWS}
    for index in range(scenes):
        for state in (True, False):
            image, label, info = render((0, SPLITS.index('val'), index), *SIZE, lowered=state, crane=state)
            blocks = next(segmenter.stream([image])).attention()
            if not blocks:
                raise ConfigError(f'{run} has no attention, as its model.variant says: name another run')
            for name, cue in ROWS:
                pixels = np.nonzero(label == VERSIONS[3].index(name))
                if not len(pixels[0]):
                    continue
                top, left, bottom, right = getattr(info, f'{cue}_box')
                for block, each in blocks.items():
                    a, b, c, d = each.boxes.T
                    meets = (a < bottom) & (c > top) & (b < right) & (d > left)
                    share = each.at(*pixels).mean(0)[meets].sum()
                    found[name, cue].setdefault(block, []).append((share, meets.mean()))
    return found


def table(found):
    """Means over the scenes, in percent."""
    blocks = list(dict.fromkeys(block for row in found.values() for block in row))
    lines = [f'| pixels | anchors on the | scenes | {" | ".join(blocks)} | if all weighed the same |']
    lines.append('|---' * (len(blocks) + 4) + '|')
    for (name, cue), row in found.items():
        if row:
            means = {block: 100 * np.mean(values, 0) for block, values in row.items()}
            cells = [f'{means[block][0]:.1f}' for block in blocks]
            number, even = len(row[blocks[0]]), means[blocks[0]][1]
            lines.append(f'| {name} | {cue} | {number} | {" | ".join(cells)} | {even:.1f} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
