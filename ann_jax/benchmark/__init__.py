"""--mode=benchmark: measures Tables 1 and 2 of the paper, and more, on this machine."""

import importlib
import importlib.metadata
import os
import platform
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ann_jax import __version__, build
from ann_jax.benchmark.attention import parse_sizes
from ann_jax.benchmark.contest import peak, table
from ann_jax.benchmark.networks import check_step, names_of
from ann_jax.errors import ConfigError, unknown
from ann_jax.files import write_json

# Section -> the module with a function of that name; imported on demand, since `reference` needs torch.
SECTIONS = {
    'peak': 'contest',
    'blocks': 'attention',
    'network': 'networks',
    'step': 'networks',
    'input': 'reading',
    'loss': 'heads',
    'dilation': 'dilation',
    'reference': 'reference',
    'stream': 'stream',
}
SIZES = {
    'blocks': ('block_sizes',),
    'network': ('image_sizes',),
    'reference': ('reference_sizes', 'reference_step_sizes'),
    'stream': ('stream_sizes',),
}
# Of which the versions are kept, where they are installed.
PACKAGES = 'jax', 'jaxlib', 'flax', 'torch', 'mmsegmentation', 'opencv-python-headless'


def benchmark(config: ConfigDict, workdir: Path) -> None:
    """Runs the sections in `benchmark.sections`, prints tables and writes benchmark.json.

    Raises:
        ConfigError: a section, variant, dtype or size is unknown, or needs a package that is not installed.
        SaveError: benchmark.json cannot be written.
    """
    names = list(dict.fromkeys(['peak', *(name.strip() for name in config.benchmark.sections.split(','))]))
    for name in names:
        if name not in SECTIONS:
            raise ConfigError(unknown('benchmark.sections', name, SECTIONS))
    _check(config, names)
    device = f'{jax.device_count()} x {jax.devices()[0].device_kind}, one of them used'
    print(f'ann_jax {__version__}, jax {jax.__version__}, {device}')
    record: dict[str, Any] = {
        'device': device,
        'processor': _processor(),
        'platform': platform.platform(),
        'versions': _versions(),
        'date': datetime.now().astimezone().isoformat(timespec='seconds'),
    }
    record['peak'] = rates = peak(config)
    print(f'\npeak\n\n{table(rates)}')
    for name in names[1:]:
        try:
            module = importlib.import_module(f'ann_jax.benchmark.{SECTIONS[name]}')
        except ImportError as error:
            raise ConfigError(
                f'benchmark.sections={name} takes {error.name}: pip install {error.name}'
            ) from None
        record[name] = getattr(module, name)(config, rates)
        print(f'\n{name}\n\n{table(record[name])}', flush=True)
        write_json(workdir / 'benchmark.json', record)
    write_json(workdir / 'benchmark.json', record)


def _check(config, names):
    """Refuses what a section would refuse, before others take their time."""
    c = config.benchmark
    for key in (key for name in names for key in SIZES.get(name, ())):
        if c[key] or not key.startswith('reference'):  # of which '' is none
            parse_sizes(c[key], f'benchmark.{key}')
    if 'network' in names:
        names_of(config, 'variants'), names_of(config, 'dtypes')
    if 'step' in names:
        check_step(config)
    if (bands := build.channels(config)) != 3 and (without := {'reference', 'stream'} & {*names}):
        raise ConfigError(
            f'dataset.bands={config.dataset.bands}: {" and ".join(sorted(without))} of benchmark.sections '
            f'measure networks for RGB, not for {bands} bands: leave it out'
        )


def _processor():
    """The name of the CPU, and its cores."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text(encoding='utf-8').splitlines() if info.is_file() else []
    names = [line.partition(': ')[2] for line in lines if line.startswith('model name')]
    return f'{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores'


def _versions():
    versions = {'ann_jax': __version__, 'python': platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
