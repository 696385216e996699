"""Checks and times this package on the accelerator that is there, in less than eight minutes.

    scripts/accelerator_check.sh FOLDER

- equality: what has forms of its own for accelerators, with its gradients, and a training step, beside the
  CPU, on random inputs that differ from call to call;
- times: training step and inference, beside PyTorch if it is installed, the step of `configs/camvid.py`, and
  APNB beside NB;
- profile: where the time of the step of CamVid goes, by kernel; without PyTorch, of the other step too.

Prints short tables and writes check.json into the folder. A part that fails is reported; the others go on.
"""

import argparse
import importlib.util
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ann_jax import __version__, files
from ann_jax.benchmark import networks
from ann_jax.benchmark.contest import Contestant, contest, count_flops, peak, table
from ann_jax.command import load_config
from ann_jax.errors import SaveError
from ann_jax.kernels.convolution import convolve
from ann_jax.kernels.expansion import normalize_product
from ann_jax.kernels.normalization import normalize
from ann_jax.kernels.pooling import max_pool
from ann_jax.kernels.products import product
from ann_jax.kernels.resizing import resize_bilinear
from ann_jax.models.initializers import initial_variables
from ann_jax.parallel.mesh import make_mesh
from ann_jax.parallel.programs import jit
from ann_jax.tools.cost_model import step_of
from ann_jax.training.state import create_state

Row = dict[str, Any]

CLASSES = 19
# Relative, of norms; products of float32 in full precision.
BOUNDS = {'float32': 1e-4, 'bfloat16': 2e-2}
STEP_BOUNDS = {'float32': 2e-3, 'bfloat16': 1e-1}  # of the update of all parameters together
KERNELS = 12  # that the profile names
STEPS = 3  # that are profiled


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all parts; returns the exit status, 0 if none failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=Path)
    parser.add_argument('--small', action='store_true', help='small sizes, to try this on a CPU')
    options = parser.parse_args(argv)
    try:
        files.make_folder(options.folder)
    except SaveError as error:
        sys.exit(f'error: {error}')
    device = jax.devices()[0]
    found: dict[str, Any] = {
        'device': f'{device.device_kind} ({device.platform})',
        'ann_jax': __version__,
        'jax': jax.__version__,
        'date': time.strftime('%Y-%m-%d %H:%M'),
    }
    print(', '.join(f'{key} {value}' for key, value in found.items()), flush=True)
    failed = []
    for name, part in PARTS.items():
        start = time.perf_counter()
        try:
            found[name] = part(options.small, options.folder)
            print(f'\n{name}, {time.perf_counter() - start:.0f} s\n\n{table(found[name])}', flush=True)
        except Exception as error:  # the other parts are worth having
            traceback.print_exc()
            failed.append(name)
            found[name] = [{'error': f'{type(error).__name__}: {error}'}]
        files.write_json(options.folder / 'check.json', found)
    wrong = [row['what'] for row in found['equality'] if not row.get('equal', True)]
    for name in failed:
        print(f'error: {name} failed, see above')
    if wrong:
        print(f'error: not what the CPU computes: {", ".join(wrong)}')
    return int(bool(failed or wrong))


def equality(small: bool, folder: Path) -> list[Row]:
    """Forms for accelerators and their gradients, and a step, beside the CPU."""
    del folder
    seed = time.time_ns() % 2**32
    rng = np.random.default_rng(seed)
    rows = []
    for dtype in ('float32', 'bfloat16'):
        for name, (function, *args) in _functions(rng, dtype).items():
            differences = _beside_cpu(function, args, rng)
            rows.append(_row(f'{name}, {dtype}', max(differences), BOUNDS[dtype], seed))
        difference = _step_beside_cpu(rng, dtype, small)
        rows.append(_row(f'update of a step, {dtype}', difference, STEP_BOUNDS[dtype], seed))
    return rows


def _row(name, difference, bound, seed):
    return {
        'what': name,
        'difference': difference,
        'bound': bound,
        'equal': difference <= bound,
        'seed': seed,
    }


def _functions(rng, dtype):
    """Functions and arguments; those of bfloat16 are rounded."""
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    of = lambda x: jnp.asarray(x, dtype)
    x, wide = np.maximum(draw(2, 33, 37, 64), 0), draw(2, 33, 37, 256)
    kernel, scale, bias = 0.2 * draw(64, 256), draw(256) + 1, draw(256)
    normalized = lambda x, scale, bias: normalize(x, scale, bias, 1e-5, relu=True)[0]
    functions = {
        'normalisation': (normalized, of(wide), scale, bias),
        'dilated convolution': (
            lambda *args: convolve(*args, dilation=2),
            of(x),
            of(0.1 * draw(3, 3, 64, 64)),
        ),
        '1x1 convolution': (product, of(x), of(kernel)),
        'max pooling': (lambda x: max_pool(x, True), of(x)),
        'resizing': (lambda x: resize_bilinear(x, (97, 129), True), of(wide)),
    }
    if dtype == 'bfloat16':
        run = lambda x, kernel, scale, bias, shortcut: normalize_product(
            x, kernel, scale, bias, 1e-5, None, shortcut, True
        )
        functions['normalised product'] = (lambda *a: run(*a)[0], of(x), of(kernel), scale, bias, of(wide))
    return functions


def _beside_cpu(function, args, rng):
    """Relative differences of the result and of the gradients."""
    shape = jax.eval_shape(function, *args)
    cotangent = jnp.asarray(rng.standard_normal(shape.shape, np.float32), shape.dtype)

    def both(cotangent, *args):
        y, pull = jax.vjp(function, *args)
        return y, pull(cotangent)

    ours, theirs = (
        jax.tree.leaves(_run_on(device, both, cotangent, *args))
        for device in (jax.devices()[0], jax.devices('cpu')[0])
    )
    return [_difference(x, y) for x, y in zip(ours, theirs, strict=True)]


def _run_on(device, function, *args):
    with jax.default_matmul_precision('highest'):
        return jit(function, make_mesh([device]))(*jax.device_put(args, device))


def _difference(x, y):
    x, y = (np.asarray(value, np.float64) for value in (x, y))
    return float(np.linalg.norm(x - y) / (np.linalg.norm(y) or 1))


def _step_beside_cpu(rng, dtype, small):
    config = _config('cityscapes', dtype)
    config.model.update(depth=18 if small else 50, dropout=0.0)
    config.loss.ohem = False  # which pixels are hard may be decided by the last digit
    batch = {
        'image': rng.integers(0, 256, (2, 65, 65, 3), np.uint8),
        'label': rng.integers(0, CLASSES, (2, 65, 65), np.uint8),
    }
    step, state = _step(config, CLASSES)
    updates = []
    for device in (jax.devices()[0], jax.devices('cpu')[0]):
        after, _ = _run_on(device, step, state, batch)
        change = jax.tree.map(
            lambda x, y: np.ravel(np.asarray(x) - np.asarray(y)), after.params, state.params
        )
        updates.append(np.concatenate(jax.tree.leaves(change)))
    return _difference(*updates)


def _config(name, dtype) -> ConfigDict:
    config = load_config(f'configs/{name}.py')
    config.model.dtype = dtype
    return config


def _step(config, classes):
    """A step and its first state."""
    step = step_of(config, classes)
    return step.function, create_state(initial_variables(step.model, 0), step.tx, **(step.settings or {}))


def beside_torch(small: bool, folder: Path) -> list[Row]:
    """ANN-ResNet-101 beside PyTorch: inference at 1024 x 2048, and a step of 8 crops of 769 x 769."""
    config = _config('cityscapes', 'bfloat16')
    if small:
        config.model.depth = 50
        config.augment.crop = (65, 65)
    count, image = (2, '65x129') if small else (8, '1024x2048')
    config.benchmark.rounds = 5
    rates = peak(config)
    if not importlib.util.find_spec('torch'):
        config.benchmark.update(image_sizes=image, variants='full', dtypes='bfloat16')
        rows = _alone('step', config, CLASSES, count, rates, folder)
        missing = {'contestant': "PyTorch is not installed: pip install 'ann_jax[convert]'"}
        return [*networks.network(config, rates), *rows, missing]
    from ann_jax.benchmark.reference import reference

    config.benchmark.update(
        reference_compile=not small,
        reference_batch=count,
        reference_sizes=image,
        reference_step_sizes='x'.join(map(str, config.augment.crop)),
    )
    return reference(config, rates)


def blocks(small: bool, folder: Path) -> list[Row]:
    """NB, NB by a fused kernel where there is one, and APNB, forward and with gradients."""
    from ann_jax.benchmark.attention import blocks as measure

    config = _config('cityscapes', 'bfloat16')
    config.benchmark.update(rounds=5, backward=True, block_sizes='16x16' if small else '256x128')
    return measure(config, peak(config))


def camvid(small: bool, folder: Path) -> list[Row]:
    """The step of `configs/camvid.py` and, after it, where its time goes."""
    config = _config('camvid', 'bfloat16')
    if small:
        config.augment.crop = (65, 65)
    count = 2 if small else config.train.batch_size
    return _alone('step of CamVid', config, 11, count, peak(config), folder)


def _alone(name, config, classes, count, rates, folder):
    """The time of a step of `count` crops, and its profile."""
    crop = config.augment.crop
    rng = np.random.default_rng(0)
    batch = {
        'image': jnp.asarray(rng.integers(0, 256, (count, *crop, 3), np.uint8)),
        'label': jnp.asarray(rng.integers(0, classes, (count, *crop), np.uint8)),
    }
    step, state = _step(config, classes)
    start = time.perf_counter()
    program = jit(step, make_mesh(jax.devices()[:1]), donate_argnums=0).lower(state, batch).compile()
    compiling = time.perf_counter() - start
    box = [jax.device_put(state, jax.devices()[0])]

    def run():
        box[0], metrics = program(box[0], batch)
        return metrics

    flops = count_flops(step, program, state, batch)
    rows = contest({f'{name}, {count} crops': Contestant(run, program, flops)}, 5, rates)
    rows[0]['compile (s)'] = compiling
    return rows + _profile(run, folder)


def _profile(run: Callable[[], Any], folder: Path) -> list[Row]:
    """The kernels that take longest, summed by name without its number; their time in a step."""
    with jax.profiler.trace(str(folder / 'profile')):
        results = [run() for _ in range(STEPS)]
        jax.block_until_ready(results)
    newest = max((folder / 'profile').rglob('*.xplane.pb'), key=lambda path: path.stat().st_mtime)
    spent: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for plane in jax.profiler.ProfileData.from_file(str(newest)).planes:
        if not plane.name.startswith('/device:'):
            continue
        for line in plane.lines:
            if line.name.startswith('Stream') or line.name == 'XLA Ops':
                for event in line.events:
                    name = re.sub(r'[._]?\d+$', '', event.name)[:60]
                    spent[name] += event.duration_ns / 1e6 / STEPS
                    count[name] += 1
    rows = [
        {'contestant': f'kernel {name}', 'median (ms)': milliseconds, 'number': count[name] / STEPS}
        for name, milliseconds in spent.most_common(KERNELS)
    ]
    return [{'contestant': 'all kernels', 'median (ms)': sum(spent.values())}, *rows]


PARTS: dict[str, Callable[[bool, Path], list[Row]]] = {
    'equality': equality,
    'camvid': camvid,
    'blocks': blocks,
    'beside torch': beside_torch,
}

if __name__ == '__main__':
    sys.exit(main())
