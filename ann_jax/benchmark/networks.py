"""Table 2: inference of the whole network, and the training step."""

import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from ann_jax import build
from ann_jax.benchmark.attention import parse_sizes
from ann_jax.benchmark.contest import (
    Row,
    compiled,
    contest,
    count_flops,
    device_memory,
    on_cpu,
    on_one_device,
    random,
)
from ann_jax.config import CHOICES
from ann_jax.data.frequencies import count_classes
from ann_jax.data.pipeline import train_batches
from ann_jax.errors import ConfigError, unknown
from ann_jax.models.ann import VARIANTS
from ann_jax.models.fold import fold
from ann_jax.models.initializers import initial_variables
from ann_jax.parallel.arrays import put_batch, put_weights
from ann_jax.parallel.mesh import make_mesh
from ann_jax.training.state import count_parameters, create_state
from ann_jax.training.step import make_train_step


def network(config: ConfigDict, rates: Sequence[Row]) -> list[Row]:
    """Inference of the config's network in each variant and dtype: one image, logits not resized.

    Raises:
        ConfigError: a size is malformed, or a variant or a dtype is unknown.
    """
    variants, dtypes = names_of(config, 'variants'), names_of(config, 'dtypes')
    rows, settings = [], config.copy_and_resolve_references()
    for height, width in parse_sizes(config.benchmark.image_sizes, 'benchmark.image_sizes'):
        contestants, more = {}, []
        for dtype in dtypes:
            for variant in variants:
                settings.model.update(variant=variant, dtype=dtype)
                model = build.model(settings, 19)
                variables = initial_variables(model, 0)
                folded = put_weights(fold(model, variables), make_mesh(jax.local_devices()[:1]))
                image = random((1, height, width, build.channels(config)))
                start = time.perf_counter()
                name = f'{variant} {height}x{width} {dtype}'
                model = model.clone(folded=True)
                forward = lambda variables, image, model=model: model.apply(variables, image).main
                contestants[name] = compiled(forward, folded, image)
                inference = {k: v for k, v in variables['params'].items() if not k.startswith('aux_')}
                more.append(
                    {
                        'parameters (M)': count_parameters(inference) / 1e6,
                        'compile (s)': time.perf_counter() - start,
                    }
                )
        results = contest(contestants, config.benchmark.rounds, rates)
        rows += [row | added for row, added in zip(results, more, strict=True)]
    return rows


def names_of(config: ConfigDict, key: str) -> list[str]:
    """The names in `benchmark.variants` or `benchmark.dtypes`, each once.

    Raises:
        ConfigError: one is unknown.
    """
    names = list(dict.fromkeys(name.strip() for name in config.benchmark[key].split(',')))
    known = {'variants': VARIANTS, 'dtypes': CHOICES['model.dtype']}[key]
    for name in names:
        if name not in known:
            raise ConfigError(unknown(f'benchmark.{key}', name, known))
    return names


def check_step(config: ConfigDict) -> None:
    """Refuses what the section `step` would not measure.

    Raises:
        ConfigError: the batch is to be computed in parts.
    """
    if (parts := config.train.accumulate) > 1:
        raise ConfigError(
            f'train.accumulate={parts}: benchmark.sections=step measures a batch in one part: leave it at 1, '
            'and give the size of a part by --config.train.batch_size'
        )


def step(config: ConfigDict, rates: Sequence[Row]) -> list[Row]:
    """Training steps on one device, with real training data.

    The batch, then the crop, is halved until the program fits into memory. Each step is waited for, to
    separate its parts: waiting for data, which is read ahead meanwhile; moving it to the device and starting
    the program; and the time on the device.

    Raises:
        ConfigError: see `check_step`.
        DataError: the dataset cannot be used.
    """
    check_step(config)
    mesh = make_mesh(jax.local_devices()[:1])
    samples = build.source(config, config.dataset.train_split)
    classes = samples.dataset.num_classes
    model, tx = build.model(config, classes), build.optimizer(config)
    train_step = make_train_step(model, tx, **build.step_settings(config, build.loss(config, classes)))
    start = time.perf_counter()
    variables = initial_variables(model, config.seed)
    state = jax.device_put(create_state(variables, tx, **build.state_settings(config)))
    initial = time.perf_counter() - start
    count, crop = config.train.batch_size, tuple(config.augment.crop)
    while True:
        shapes = {
            'image': jax.ShapeDtypeStruct((count, *crop, build.channels(config)), jnp.uint8),
            'label': jax.ShapeDtypeStruct((count, *crop), jnp.uint8),
        }
        start = time.perf_counter()
        program = on_one_device(train_step, donate_argnums=0).lower(state, shapes).compile()
        compiling = time.perf_counter() - start
        if _fits(program) or (count == 1 and min(crop) < 64):
            break
        count, crop = (count // 2, crop) if count > 1 else (1, tuple(n // 2 for n in crop))
    settings = config.copy_and_resolve_references()
    settings.augment.crop = crop
    read_by = build.readers(config, training=True)
    # Only copy_paste needs to know where classes are; crops around rare ones take as long if all are alike.
    counted = settings.augment.mix == 'copy_paste'
    counts = count_classes(samples, num_threads=read_by.threads) if counted else None
    batches = train_batches(
        samples,
        build.augment(settings),
        batch_size=count,
        seed=config.seed,
        num_workers=read_by.workers,
        num_threads=read_by.threads,
        mix=build.mix(settings, samples, counts),
    )
    times = []
    for _ in tqdm(range(config.benchmark.rounds + 1), desc='steps', leave=False):
        clock = [time.perf_counter()]
        batch = next(batches)
        clock.append(time.perf_counter())
        state, metrics = program(state, put_batch(batch, mesh))
        clock.append(time.perf_counter())
        jax.block_until_ready(metrics)
        clock.append(time.perf_counter())
        times.append(np.diff(clock))
    wait, host, device = np.median(times[1:], 0)
    total = np.median(np.sum(times[1:], 1))
    mark = device_memory().get('peak_bytes_in_use')
    flops, memory = count_flops(train_step, program, state, shapes), program.memory_analysis()
    return [
        {
            'step': f'batch {count} of {crop[0]}x{crop[1]}, {config.model.dtype}',
            'median (ms)': 1e3 * float(total),
            'data wait (ms)': 1e3 * float(wait),
            'host (ms)': 1e3 * float(host),
            'device (ms)': 1e3 * float(device),
            'images/s': count / float(total),
            'GFLOP': flops and flops / 1e9,
            'share of peak': flops and flops / float(device + host) / 1e9 / rates[0]['GFLOP/s'],
            'scratch (MB)': memory.temp_size_in_bytes / 1e6 if memory else None,
            'device peak (MB)': mark and mark / 1e6,
            'initialise (s)': initial,
            'compile (s)': compiling,
        }
    ]


def _fits(program):
    """Whether a program fits into memory, as far as the compiler and the device say."""
    plan = program.memory_analysis()
    limit = device_memory().get('bytes_limit')
    meminfo = Path('/proc/meminfo')
    if limit is None and on_cpu() and meminfo.exists():
        lines = dict(line.split(':') for line in meminfo.read_text(encoding='ascii').splitlines())
        limit = int(lines['MemAvailable'].split()[0]) * 1024
    if plan is None or limit is None:
        return True
    return plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes < 0.9 * limit
