"""Seeded inputs that should not be, and a judge: each is used rightly, or refused in one line.

    python tests/fuzz.py --seed=1 --count=600 [--kinds=config,images,...] [--verbose]

`fuzzed/` draws them, a file for each kind; `test_fuzz.py` runs a few of each.
"""

import argparse
import functools
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import numpy as np
from fuzzed import arrays, checkpoints, images, settings, weights

from ann_jax.errors import ConfigError, DataError, SaveError
from ann_jax.inference.segmenter import Segmenter
from ann_jax.weights.opening import open_network

KINDS = 'config', 'images', 'weights', 'arrays', 'checkpoints'
# After which an input hangs: a machine that is busy elsewhere makes it wait, not work.
SECONDS = 180
SECONDS_OF_CPU = 40
REFUSALS = ConfigError, DataError, SaveError


class _Late(BaseException):
    pass


def judge(case) -> tuple[str, str]:
    """Runs a case, which returns '' if it was used rightly, or what it gave instead.

    Returns:
        'used', 'refused', 'unclear', 'WRONG', 'TRACEBACK' or 'HANG', and what was said.
    """

    def late(*_):
        raise _Late

    before = {kind: signal.signal(kind, late) for kind in (signal.SIGALRM, signal.SIGPROF)}
    signal.alarm(SECONDS)
    signal.setitimer(signal.ITIMER_PROF, SECONDS_OF_CPU)
    try:
        wrong = case()
        return ('WRONG', wrong) if wrong else ('used', '')
    except REFUSALS as error:
        text = str(error)
        clear = 15 < len(text) < 3000 and text.count('\n') < 12 and 'Traceback' not in text
        return 'refused' if clear else 'unclear', text
    except SystemExit as end:
        text = str(end.code)
        return 'refused' if text.startswith('error: ') and '\n' not in text else 'unclear', text
    except _Late:
        return 'HANG', ''
    except BaseException as error:
        return 'TRACEBACK', ''.join(traceback.format_exception(error)[-6:])
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for kind, handler in before.items():
            signal.signal(kind, handler)


def generators(kinds, place, run=None):
    """Yields each kind and its generator, (rng, folder) -> name and case.

    Args:
        kinds: of `KINDS`.
        place: a folder for what the kinds begin with: a folder of weights, and a run.
        run: another place of that run, which is made if it is not there.
    """
    whole = weights.Whole(place) if {'weights', 'arrays'} & {*kinds} else None
    for kind in kinds:
        match kind:
            case 'config':
                yield kind, settings.draw
            case 'images':
                yield kind, images.draw
            case 'weights':
                yield kind, functools.partial(weights.draw, whole)
            case 'arrays':
                yield kind, functools.partial(arrays.draw, Segmenter(open_network(whole.path)))
            case 'checkpoints':
                yield kind, functools.partial(checkpoints.draw, checkpoints.Run(run or place / 'run'))


def run(kind, generate, seed, count, verbose):
    """Judges inputs of one kind; returns the verdicts."""
    verdicts: Counter = Counter()
    for number in range(count):
        with tempfile.TemporaryDirectory() as folder:
            rng = np.random.default_rng([seed, number])
            start = time.monotonic()
            try:
                name, case = generate(rng, Path(folder))
            except Exception:
                print(kind, seed, number, 'the generator failed', traceback.format_exc())
                verdicts['not drawn'] += 1
                continue
            verdict, said = judge(case)
            verdicts[verdict] += 1
            slow = time.monotonic() - start > 5
            if verbose or slow or verdict not in ('used', 'refused'):
                name = re.sub(r'[^ -~]', '?', name)[:150]
                print(
                    f'{kind} {number}: {verdict}{" slow" if slow else ""} {name}: {said[-700:]!r}', flush=True
                )
    return verdicts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--count', type=int, default=600, help='of all kinds together')
    parser.add_argument('--kinds', default=','.join(KINDS))
    parser.add_argument(
        '--run', type=Path, help='folder of a run with two checkpoints, made if it is not there'
    )
    parser.add_argument('--verbose', action='store_true')
    options = parser.parse_args()
    kinds = options.kinds.split(',')
    if not {*kinds} <= {*KINDS}:
        parser.error(f'--kinds={options.kinds}: some of {",".join(KINDS)}')
    total: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for kind, generate in generators(kinds, Path(folder), options.run):
            verdicts = run(kind, generate, options.seed, options.count // len(kinds), options.verbose)
            print(kind, dict(verdicts), flush=True)
            total += verdicts
    print('all', dict(total))
    bad = total.total() - total['used'] - total['refused']
    return 1 if bad else 0


if __name__ == '__main__':
    sys.exit(main())
