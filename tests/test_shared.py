"""What killed runs left in shared memory is removed, and nothing else."""

import fcntl
import logging
import multiprocessing
import os
from multiprocessing import shared_memory

import pytest

from ann_jax.data import shared


@pytest.fixture
def alone(monkeypatch):
    """Nothing that is claimed here stays."""
    monkeypatch.setattr(shared, '_held', {})
    monkeypatch.setattr(shared.atexit, 'register', lambda *_, **__: None)
    monkeypatch.setitem(multiprocessing.current_process()._config, 'semprefix', '/mp')
    yield
    for _, lock in shared._held.values():
        lock.close()


def test_only_what_ended_runs_left_is_removed(alone, tmp_path, caplog):
    dead, lives, bare = ('0' * 11 + digit for digit in '123')
    names = [f'ann_jax-{dead}.lock', f'ann_jax-{dead}-1f', f'sem.ann_jax-{dead}-x_y', f'ann_jax-{bare}-1']
    kept = [f'ann_jax-{lives}.lock', f'ann_jax-{lives}-1', f'sem.ann_jax-{lives}-z', 'psm_1', 'ann_jax-my-1']
    for name in (*names, *kept):
        (tmp_path / name).write_bytes(bytes(1 << 19))
    with open(tmp_path / f'ann_jax-{lives}.lock') as other, caplog.at_level(logging.INFO):
        fcntl.flock(other, fcntl.LOCK_EX)
        mine = shared.claim(tmp_path)
        assert shared.claim(tmp_path) == mine
        assert sorted(os.listdir(tmp_path)) == sorted([*kept, f'ann_jax-{mine}.lock'])
    assert caplog.messages == [f'{tmp_path}: removed 3 files (1.5 MiB) that killed runs left']
    assert multiprocessing.current_process()._config['semprefix'] == f'/ann_jax-{mine}'
    first = shared._held.pop(tmp_path)[1]  # another run, after the other ended and before this one does
    os.unlink(tmp_path / f'ann_jax-{lives}.lock')
    shared.claim(tmp_path)
    first.close()
    assert {'psm_1', 'ann_jax-my-1'} < {*os.listdir(tmp_path)} and len(os.listdir(tmp_path)) == 4


def test_segments_are_named_after_the_run(alone, monkeypatch):
    monkeypatch.setattr(shared_memory, 'SharedMemory', shared_memory.SharedMemory)
    shared.name_segments('abcdef012345')
    segment = shared_memory.SharedMemory(create=True, size=8)
    try:
        assert segment.name.startswith('ann_jax-abcdef012345-')
        assert shared_memory.SharedMemory(segment.name).size >= 8
    finally:
        segment.close()
        segment.unlink()


def test_no_room_or_no_folder_leaves_the_names_of_python(alone, tmp_path, monkeypatch):
    assert shared.claim(tmp_path / 'absent') == ''
    monkeypatch.setattr(shared, '_lock', lambda folder: open(folder / 'absent' / 'lock', 'xb'))
    assert shared.claim(tmp_path) == ''
    before = shared_memory.SharedMemory
    shared.name_segments('')
    assert shared_memory.SharedMemory is before
