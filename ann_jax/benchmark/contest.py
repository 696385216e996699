"""Contestants run alternately in one process, so that a temporary slowdown of the machine affects all of
them.

They are compared by the median ratio over the rounds. FLOPs and bytes are those of the compiled program; on
accelerators, FLOPs are counted before compilation.
"""

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from ann_jax.benchmark import counting
from ann_jax.parallel.mesh import make_mesh
from ann_jax.parallel.programs import Program, jit

Row = dict[str, Any]

QUEUE = 0.05  # seconds that queued runs take together


class Contestant(NamedTuple):
    """A function to run, and its compiled program if there is one.

    Attributes:
        run: starts the work, and returns the result to wait for.
        program: of `jax.stages`; None for other libraries.
        flops: FLOPs of a run; None if unknown.
        growth: for other libraries, measures the memory in MB that a run takes.
        wait: waits for a result.
    """

    run: Callable[[], Any]
    program: Any = None
    flops: float | None = None
    growth: Callable[[], float | None] | None = None
    wait: Callable[[Any], Any] = jax.block_until_ready


def compiled(function: Callable, *args: Any, **options: Any) -> Contestant:
    """Compiles a function of arrays; `options` are passed to `jax.jit`."""
    program = on_one_device(function, **options).lower(*args).compile()
    return Contestant(lambda: program(*args), program, count_flops(function, program, *args))


def on_cpu() -> bool:
    """Whether contestants run on CPUs."""
    return jax.local_devices()[0].platform == 'cpu'


def on_one_device(function: Callable, **options: Any) -> Program:
    """A program for the first device; `options` are passed to `jax.jit`."""
    return jit(function, make_mesh(jax.local_devices()[:1]), **options)


def count_flops(function: Callable, program: Any, *args: Any) -> float | None:
    """FLOPs of a compiled function of `args`.

    On accelerators, the compiler does not count what it passes to libraries (jax-ml/jax#22249); there, the
    convolutions and products of the function in its default forms are counted.
    """
    if on_cpu():
        return (program.cost_analysis() or {}).get('flops')
    return counting.count_flops(function, *args)


def random(shape: Sequence[int], dtype: Any = jnp.float32, seed: int = 0) -> jax.Array:
    """Normally distributed numbers, since products of equal numbers or zeros may run faster."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def peak(config: ConfigDict) -> list[Row]:
    """Measured rates of a matrix product and a copy, which limit everything else."""
    n = config.benchmark.peak_size or (2048 if on_cpu() else 8192)
    matrix = random((n, n), config.model.dtype)
    contestants = {
        'matrix product': compiled(lambda x: x @ x, matrix),
        'copy': compiled(lambda x: x + 1, matrix),
    }
    seconds = _race(contestants, config.benchmark.rounds)
    product, copy = (min(seconds[name]) for name in contestants)
    return [
        {'program': f'matrix product {n}', 'GFLOP/s': 2 * n**3 / product / 1e9},
        {'program': f'copy {n} x {n}', 'GB/s': 2 * matrix.nbytes / copy / 1e9},
    ]


def contest(contestants: Mapping[str, Contestant], rounds: int, rates: Sequence[Row]) -> list[Row]:
    """Runs contestants alternately.

    Args:
        contestants: by name; the others are compared with the first.
        rounds: number of rounds, after a warm-up round.
        rates: what `peak` measured.

    Returns:
        A row for each: milliseconds, ratio to the first, GFLOP and share of the peak rate, GB that the
        program reads and writes (on CPUs), MB of scratch memory as planned by the compiler, and MB by which
        the process, or memory in use on the device, grows during a run.
    """
    marks = {} if on_cpu() else _device_growth(contestants)
    seconds = _race(contestants, rounds)
    first = next(iter(seconds.values()))
    rows = []
    for name, (run, program, flops, growth, _) in contestants.items():
        median = float(np.median(seconds[name]))
        row = {
            'contestant': name,
            'median (ms)': 1e3 * median,
            'lowest': 1e3 * min(seconds[name]),
            'highest': 1e3 * max(seconds[name]),
            'ratio': float(np.median(np.divide(seconds[name], first))),
        }
        # On accelerators, the compiler does not count what it passes to libraries.
        cost = (on_cpu() and program and program.cost_analysis()) or {}
        memory = program and program.memory_analysis()
        if flops:
            row |= {'GFLOP': flops / 1e9, 'share of peak': flops / median / 1e9 / rates[0]['GFLOP/s']}
        row |= {
            'GB': cost['bytes accessed'] / 1e9 if 'bytes accessed' in cost else None,
            'scratch (MB)': memory.temp_size_in_bytes / 1e6 if memory else None,
            'growth (MB)': growth() if growth else _growth(run) if on_cpu() else marks[name],
        }
        rows.append(row)
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cell = lambda value: '-' if value is None else f'{value:.4g}' if isinstance(value, float) else str(value)
    lines = [keys, ['---'] * len(keys), *([cell(row.get(key)) for key in keys] for row in rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _race(contestants, rounds):
    """Seconds of each contestant in each round, after a warm-up round.

    Every other round runs in reverse order: a library's threads stay busy for a moment after its turn, and it
    leaves its own data in the caches. On accelerators, short runs are queued behind each other and waited for
    together, so that what is measured is the device, not how the host starts it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names, queued = list(contestants), dict.fromkeys(contestants, 1)
    for number in tqdm(range(rounds + 1), desc='rounds', leave=False):
        for name in names if number % 2 else reversed(names):
            once = _time(contestants[name], queued[name])
            if number:
                seconds[name].append(once)
            elif not on_cpu():
                # The first run may have compiled or chosen something.
                queued[name] = int(np.clip(QUEUE / _time(contestants[name], 1), 1, 100))
    return seconds


def _time(contestant, queued):
    """Seconds of a run, one of several that are queued."""
    start = time.perf_counter()
    for _ in range(queued):
        result = contestant.run()
    contestant.wait(result)
    return (time.perf_counter() - start) / queued


def _growth(run):
    """MB by which the resident memory of this process grows during `run`; only on Linux.

    The compiler's plan is incomplete: on CPUs, XLA calls libraries whose memory it does not know.
    """
    if sys.platform != 'linux':
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # otherwise, reuse of freed memory would not be seen
    try:
        Path('/proc/self/clear_refs').write_text('5', encoding='ascii')  # resets the high-water mark
    except OSError:
        return None
    before = _resident('VmRSS')
    result = jax.block_until_ready(run())
    after = _resident('VmHWM')
    del result
    return after - before


def _device_growth(contestants):
    """MB by which memory in use on the device grows during each run; None if the device does not say.

    The high-water mark only rises: small programs run first, and a program that stays below the mark has
    None.
    """
    plan = lambda name: contestants[name].program and contestants[name].program.memory_analysis()
    size = lambda name: plan(name).temp_size_in_bytes + plan(name).output_size_in_bytes if plan(name) else 0
    growth = {}
    for name in sorted(contestants, key=size):
        before = device_memory()
        jax.block_until_ready(contestants[name].run())
        mark = device_memory().get('peak_bytes_in_use', 0)
        rises = mark > before.get('peak_bytes_in_use', 0)
        growth[name] = (mark - before['bytes_in_use']) / 1e6 if rises else None
    return growth


def device_memory() -> dict[str, int]:
    """Memory statistics of the first device, in bytes; empty for CPUs."""
    return jax.local_devices()[0].memory_stats() or {}


def _resident(key):
    lines = dict(
        line.split(':') for line in Path('/proc/self/status').read_text(encoding='utf-8').splitlines()
    )
    return int(lines[key].split()[0]) * 1024 / 1e6
