"""--mode=benchmark: measures Tables 1 and 2 of the paper, and more, on this machine."""

import importlib
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ann_jax import __version__
from ann_jax.benchmark.contest import peak, table
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


def benchmark(config: ConfigDict, workdir: Path) -> None:
    """Runs the sections in `benchmark.sections`, prints tables and writes benchmark.json.

    Raises:
        ConfigError: a section or variant is unknown, or needs a package that is not installed.
        SaveError: benchmark.json cannot be written.
    """
    names = list(dict.fromkeys(['peak', *(name.strip() for name in config.benchmark.sections.split(','))]))
    for name in names:
        if name not in SECTIONS:
            raise ConfigError(unknown('benchmark.sections', name, SECTIONS))
    device = f'{jax.device_count()} x {jax.devices()[0].device_kind}, one of them used'
    print(f'ann_jax {__version__}, jax {jax.__version__}, {device}')
    record: dict[str, Any] = {'device': device, 'jax': jax.__version__}
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
