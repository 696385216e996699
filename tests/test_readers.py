"""Who reads samples, beside accelerators, in containers and in programs of other people."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from ann_jax import build
from ann_jax.config import defaults
from ann_jax.data import readers

MIB = 2**20


def module(name='ann_jax.main', file='main.py'):
    found = ModuleType('__main__')
    found.__spec__, found.__file__ = name and SimpleNamespace(name=name), file
    return found


@pytest.fixture
def machine(monkeypatch):
    """A machine of 16 cores with 160 MiB of shared memory, on which the command runs."""

    def make(cores=16, free=160 * MIB, main=None):
        monkeypatch.setattr(readers, 'cores', lambda: cores)
        monkeypatch.setattr(readers.shutil, 'disk_usage', lambda _: SimpleNamespace(free=free))
        monkeypatch.setitem(sys.modules, '__main__', main or module())

    make()
    return make


def choose(threads=0, workers=readers.AUTO, *, accelerator=True, sharing=1, batch_bytes=8 * MIB):
    return readers.choose(threads, workers, accelerator=accelerator, sharing=sharing, batch_bytes=batch_bytes)


@pytest.mark.parametrize(
    ('given', 'threads', 'workers', 'faster'),
    [
        ({}, 4, 4, 'all 16 cores read'),
        ({'accelerator': False}, 2, 0, 'loader.threads=16 '),
        ({'workers': 0}, 16, 0, 'loader.workers=4 '),
        ({'threads': 2}, 2, 4, 'loader.threads=4 '),
        ({'threads': 2, 'workers': 3}, 2, 3, 'loader.threads=6 '),
        ({'sharing': 2, 'batch_bytes': MIB}, 4, 2, 'all 8 cores read'),
        ({'sharing': 4}, 4, 0, 'loader.workers=1 '),
        ({'sharing': 32}, 1, 0, 'all 1 cores read'),
    ],
)
def test_readers_share_the_cores(given, threads, workers, faster, machine):
    chosen = choose(**given)
    assert (chosen.threads, chosen.workers, chosen.note) == (threads, workers, '')
    assert faster in chosen.faster


@pytest.mark.parametrize(('batch', 'free', 'workers'), [(8, 160, 4), (8, 159, 0), (3, 64, 4), (4, 64, 0)])
def test_workers_start_where_shared_memory_holds_their_batches(batch, free, workers, machine):
    machine(free=free * MIB)
    chosen = choose(batch_bytes=batch * MIB)
    assert (chosen.workers, chosen.threads) == (workers, 4 if workers else 16)
    said = f'4 processes would read faster, but need {20 * batch} MiB in /dev/shm, of which {free} are free'
    assert bool(chosen.note) != bool(workers) and (workers or said in str(chosen))


@pytest.mark.parametrize(
    ('main', 'workers'),
    [
        (module('ann_jax.main'), 4),
        (module('ann_jax.__main__'), 4),
        (module('', '/opt/bin/ann-jax'), 4),
        (module('ann_jaxed.main'), 0),
        (module('', 'mine.py'), 0),
        (module('', None), 0),
    ],
)
def test_only_the_command_is_imported_again(main, workers, machine):
    machine(main=main)
    assert choose().workers == workers
    assert ('loader.workers=4' in choose().note) == (not workers)
    assert choose(workers=3).workers == 3


@pytest.mark.parametrize(
    ('files', 'count'),
    [
        ({}, 16),
        ({'cpu.max': 'max 100000\n'}, 16),
        ({'cpu.max': '400000 100000\n'}, 4),
        ({'cpu.max': '50000 100000\n'}, 1),
        ({'cpu.max': '3200000 100000\n'}, 16),
        ({'cpu/cpu.cfs_quota_us': '-1\n', 'cpu/cpu.cfs_period_us': '100000\n'}, 16),
        ({'cpu/cpu.cfs_quota_us': '250000\n', 'cpu/cpu.cfs_period_us': '100000\n'}, 2),
    ],
)
def test_cores_of_a_container(files, count, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, '_CGROUP', tmp_path)
    monkeypatch.setattr(readers.os, 'sched_getaffinity', lambda _: set(range(16)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert readers.cores() == count


def test_only_training_starts_processes_by_itself(machine, monkeypatch):
    monkeypatch.setattr(build, 'has_accelerator', lambda: True)
    config = defaults()
    config.augment.crop, config.train.batch_size = (769, 769), 3
    assert build.readers(config, training=True).workers == 4  # 135 MiB
    assert (build.readers(config).workers, build.readers(config).threads) == (0, 16)
    config.train.batch_size = 4
    assert '180 MiB in /dev/shm' in build.readers(config, training=True).note
    config.loader.workers = 2
    assert build.readers(config).workers == build.readers(config, training=True).workers == 2
