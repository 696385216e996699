"""--mode=benchmark: what Tables 1 and 2 of the paper tell, on the machine at hand.

The contestants of a section run in turn in one process, so that what slows the machine down for a while slows
all of them, and are compared by the median of the ratios of each round. FLOPs and bytes are those of the
compiled program. `scripts/benchmark_peer.py` measures beside PyTorch.
"""

import functools
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from ann_jax import __version__, build
from ann_jax.errors import ConfigError, unknown
from ann_jax.models.ann import VARIANTS
from ann_jax.models.blocks import Attention
from ann_jax.models.deploy import InferenceNetwork, fold
from ann_jax.report import write_json
from ann_jax.state import count_parameters, initial_variables

# Stage4 and Stage5 channels of ResNet-101, and C^ (Sec. 4.2).
LOW, HIGH, CHANNELS = 1024, 2048, 256
BLOCKS = {  # name -> share, sampling, channels of the low map
    'NB': ('query_key', 'all', HIGH),
    'APNB': ('query_key', 'average', HIGH),
    'FNB': ('none', 'all', LOW),
    'AFNB': ('none', 'average', LOW),
}
# (height, width) -> multiply-accumulates in 1e9 as Table 1 prints them.
PAPER_GMACS = {(96, 96): {'NB': 58.0, 'APNB': 15.5}, (256, 128): {'NB': 601.4, 'APNB': 43.5}}


def benchmark(config: ConfigDict, workdir: Path) -> None:
    """Runs the sections of `benchmark.sections`, prints tables and writes benchmark.json.

    Raises:
        ConfigError: a section or a variant is unknown.
    """
    c = config.benchmark
    sections = {'peak': peak, 'blocks': blocks, 'network': network}
    names = [name.strip() for name in c.sections.split(',')]
    for name in names:
        if name not in sections:
            raise ConfigError(unknown('benchmark.sections', name, sections))
    device = f'{jax.device_count()} x {jax.devices()[0].device_kind}, one of them used'
    print(f'ann_jax {__version__}, jax {jax.__version__}, {device}')
    record = {'device': device, 'jax': jax.__version__}
    for name in names:
        rows = sections[name](config)
        print(f'\n{name}\n\n{_table(rows)}')
        record[name] = rows
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / 'benchmark.json', record)


def peak(config: ConfigDict) -> list[dict[str, Any]]:
    """Measured rates of a matrix product and of a copy, the limits of everything else."""
    n = config.benchmark.peak_size
    matrix = jnp.ones((n, n), jnp.dtype(config.model.dtype))
    programs = {
        'matrix product': jax.jit(lambda x: x @ x).lower(matrix).compile(),
        'copy': jax.jit(lambda x: x + 1).lower(matrix).compile(),
    }
    times = _race(
        {name: (lambda run=run: run(matrix)) for name, run in programs.items()}, config.benchmark.rounds
    )
    product, copy = (float(np.median(times[name])) for name in programs)
    return [
        {'program': f'matrix product {n}', 'GFLOP/s': 2 * n**3 / product / 1e9},
        {'program': f'copy {n} x {n}', 'GB/s': 2 * matrix.nbytes / copy / 1e9},
    ]


def blocks(config: ConfigDict) -> list[dict[str, Any]]:
    """Table 1: the attention of each block on ResNet-101's maps, forward."""
    height, width = config.benchmark.block_size
    dtype = jnp.dtype(config.model.dtype)
    high = jnp.ones((1, height, width, HIGH), dtype)
    programs, counts = {}, {}
    for name, (share, sampling, channels) in BLOCKS.items():
        module = Attention(CHANNELS, sampling, share=share, dtype=dtype)
        low = high if channels == HIGH else jnp.ones((1, height, width, channels), dtype)
        initial = functools.partial(_attend, module.init, jax.random.key(0), channels == HIGH)
        variables = jax.tree.map(
            lambda x: jnp.full(x.shape, 0.01, x.dtype), jax.eval_shape(initial, low, high)
        )
        apply = functools.partial(_attend, module.apply, same=channels == HIGH)
        program = jax.jit(lambda v, x, y, f=apply: f(v, low=x, high=y)).lower(variables, low, high).compile()
        programs[name] = program, (lambda run=program, v=variables, x=low: run(v, x, high))
        anchors = height * width if sampling == 'all' else 110
        # Three 1x1 convolutions and two products, as the paper counts.
        counts[name] = (3 * HIGH * CHANNELS + 2 * CHANNELS * anchors) * height * width / 1e9
    times = _race({name: run for name, (_, run) in programs.items()}, config.benchmark.rounds)
    rows = []
    for name, (program, run) in programs.items():
        dense = 'NB' if name in ('NB', 'APNB') else 'FNB'
        row = {'block': f'{name} {height}x{width}', **_timing(times[name], times[dense])}
        row |= _cost(program, run) | {'GMAC as the paper counts': counts[name]}
        rows.append(row | {'paper': PAPER_GMACS.get((height, width), {}).get(name)})
    return rows


def _attend(function, first, same, low, high):
    """Calls a method of `Attention` in evaluation; `query_key` needs one and the same input twice."""
    return function(first, low, low if same else high, False)


def network(config: ConfigDict) -> list[dict[str, Any]]:
    """Table 2: inference of the config's network in each variant, one image, logits not resized."""
    height, width = config.benchmark.image_size
    variants = [name.strip() for name in config.benchmark.variants.split(',')]
    programs, sizes = {}, {}
    for name in variants:
        if name not in VARIANTS:
            raise ConfigError(unknown('benchmark.variants', name, VARIANTS))
        with config.unlocked():
            config.model.variant = name
        model = build.model(config, 19)
        variables = initial_variables(model, 0)
        params = jax.device_put(fold(model, variables))
        image = jnp.zeros((1, height, width, 3))
        start = time.perf_counter()
        program = jax.jit(lambda p, x, m=model: InferenceNetwork(m)(p, x)[0]).lower(params, image).compile()
        programs[name] = program, (lambda run=program, p=params, x=image: run(p, x))
        inference = {key: tree for key, tree in variables['params'].items() if not key.startswith('aux_')}
        sizes[name] = {
            'parameters (M)': count_parameters(inference) / 1e6,
            'compile (s)': time.perf_counter() - start,
        }
    times = _race({name: run for name, (_, run) in programs.items()}, config.benchmark.rounds)
    rows = []
    for name, (program, run) in programs.items():
        row = {'variant': f'{name} {height}x{width}', **_timing(times[name], times[variants[0]])}
        rows.append(row | _cost(program, run) | sizes[name])
    return rows


def _race(contestants: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one round that does not count."""
    times = {name: [] for name in contestants}
    for number in tqdm(range(rounds + 1), desc='rounds', leave=False):
        for name, run in contestants.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def _timing(seconds, reference):
    return {
        'median (ms)': 1e3 * float(np.median(seconds)),
        'lowest': 1e3 * min(seconds),
        'highest': 1e3 * max(seconds),
        'times as fast': float(np.median(np.divide(reference, seconds))),
    }


def _cost(program, run):
    """FLOPs and scratch memory of a compiled program, and what the process grows by while it runs."""
    cost, memory = program.cost_analysis() or {}, program.memory_analysis()
    flops = cost.get('flops')
    return {
        'GFLOP': None if flops is None else flops / 1e9,
        # The CPU backend hands some fusions to a library, whose memory the compiler does not know.
        'scratch (MB)': None if memory is None else memory.temp_size_in_bytes / 1e6,
        'growth (MB)': _growth(run),
    }


def _growth(run):
    """MB by which the resident memory of this process grows while `run` runs; on a CPU under Linux only."""
    statm = Path('/proc/self/statm')
    if jax.default_backend() != 'cpu' or not statm.exists():
        return None
    resident = lambda: int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6
    samples, done = [resident()], threading.Event()

    def sample():
        while not done.wait(0.001):
            samples.append(resident())

    watcher = threading.Thread(target=sample)
    watcher.start()
    jax.block_until_ready(run())
    done.set()
    watcher.join()
    return max(samples) - samples[0]


def _table(rows):
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cell = lambda value: '-' if value is None else f'{value:.4g}' if isinstance(value, float) else str(value)
    lines = [keys, ['---'] * len(keys), *([cell(row.get(key)) for key in keys] for row in rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
