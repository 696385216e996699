"""How many threads and processes read samples: as set, or as many as suit the machine."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from ann_jax.data import shared

AUTO = -1
# Cores for each worker: beyond that, threads wait for Python's lock more than they read.
_CORES_PER_WORKER = 4
_MOST_WORKERS = 16
# Batches of each worker in shared memory: grain has up to 4.25 while steps are slow.
_IN_SHARED_MEMORY = 5
_CGROUP = Path('/sys/fs/cgroup')


@dataclass(frozen=True)
class Readers:
    """Who reads samples.

    Attributes:
        threads: that read, in each process.
        workers: processes that read; 0 if the run itself does.
        cores: that they may use.
        note: why there are no workers though they would help, and what to do about it; '' if there is nothing
            to say.
    """

    threads: int
    workers: int
    cores: int
    note: str = ''

    def __str__(self):
        apart = f' in each of {self.workers} processes' if self.workers else ''
        return f'read by {self.threads} threads{apart}, on {self.cores} cores{self.note and "; "}{self.note}'

    @property
    def faster(self) -> str:
        """What helps if steps wait for data, in one line."""
        count, workers = self.cores, self.workers
        if self.threads * max(workers, 1) < count:
            return f'--config.loader.threads={-(-count // max(workers, 1))} reads on all {count} cores'
        if not workers and count >= _CORES_PER_WORKER:
            workers = count // _CORES_PER_WORKER
            return (
                f'--config.loader.workers={workers} reads in {workers} processes, which do not share one '
                'interpreter, but need room in /dev/shm'
            )
        return (
            f'all {count} cores read; larger files take longer, so store images at the size that is trained, '
            'or JPEGs instead of PNGs'
        )


def cores() -> int:
    """Number of CPU cores that this process may use: those of the machine, its affinity or its container."""
    affinity = getattr(os, 'sched_getaffinity', None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(min(count, int(_quota() or count)), 1)


def _quota():
    """Cores that a container may use (docker's --cpus, limits of Kubernetes); None where that is not set."""
    for names in (('cpu.max',), ('cpu/cpu.cfs_quota_us', 'cpu/cpu.cfs_period_us')):
        try:
            quota, period = ' '.join((_CGROUP / name).read_text(encoding='utf-8') for name in names).split()
        except (OSError, ValueError):
            continue
        if quota.isdigit() and int(period):
            return int(quota) / int(period)
    return None


def choose(threads: int, workers: int, *, accelerator: bool, sharing: int = 1, batch_bytes: int) -> Readers:
    """Who reads samples for training.

    On CPUs the network needs the cores, and two threads are enough. Beside an accelerator all cores read, and
    from eight cores on in processes of four threads or more, because the threads of a process share Python's
    lock. Processes are chosen for the command alone, which can be imported again in each of them, and where
    shared memory has room for their batches.

    Args:
        threads: `loader.threads`; 0 to choose.
        workers: `loader.workers`; AUTO to choose.
        accelerator: whether the network runs on a GPU or TPU.
        sharing: number of processes of the run on this machine.
        batch_bytes: size of a batch of this process.
    """
    count = max(cores() // sharing, 1)
    note = ''
    if workers == AUTO:
        workers = min(count // _CORES_PER_WORKER, _MOST_WORKERS) if accelerator else 0
        needed = workers * _IN_SHARED_MEMORY * batch_bytes * sharing
        if workers < 2:
            workers = 0
        elif not _is_command():
            note = f'loader.workers={workers} reads in processes, which needs an `if __name__ == "__main__"`'
            workers = 0
        elif (free := _room()) < needed:
            note = (
                f'{workers} processes would read faster, but need {needed / 2**20:,.0f} MiB in /dev/shm, of '
                f'which {free / 2**20:,.0f} are free: make it larger, in docker with --shm-size=8g or '
                '--ipc=host'
            )
            workers = 0
    if not threads:
        threads = max(count // max(workers, 1), 1) if accelerator else 2
    return Readers(threads, workers, count, note)


def _is_command():
    """Whether the main module is ours: processes that are spawned import it again."""
    main = sys.modules['__main__']
    module = getattr(getattr(main, '__spec__', None), 'name', '') or ''
    script = Path(getattr(main, '__file__', None) or '').stem
    return module.partition('.')[0] == 'ann_jax' or script == 'ann-jax'


def _room():
    """Free bytes of shared memory; without a limit where it is not a file system."""
    try:
        return shutil.disk_usage(shared.FOLDER).free
    except OSError:
        return sys.maxsize
