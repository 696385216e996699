"""Runs whose folder of checkpoints is damaged."""

import contextlib
import json
import os
import shutil

import numpy as np
from reference import random_variables

from ann_jax import build, command
from ann_jax.data.scene_objects import CLASSES, COLORS
from ann_jax.runs.checkpoints import Checkpoints
from ann_jax.weights.opening import open_network
from fuzzed.values import damaged
from fuzzed.weights import numbers


class Run:
    """What a run of two steps leaves: a checkpoint at each, of known numbers."""

    def __init__(self, folder):
        self.folder = folder if folder.exists() else make_run(folder)
        self.known = [numbers(open_network(folder / 'checkpoints' / str(step))) for step in (1, 2)]


def draw(run, rng, folder):
    """A copy of a run with up to three damages."""
    copied = folder / 'run'
    shutil.copytree(run.folder, copied)
    done = [spoil(rng, copied / 'checkpoints') for _ in range(int(rng.integers(1, 4)))]
    return '; '.join(done), lambda: restored(copied, run.known)


def restored(path, known):
    got = numbers(open_network(path))
    for arrays in known:
        if got.keys() == arrays.keys() and all(np.array_equal(got[name], arrays[name]) for name in got):
            return ''
    return 'numbers of no checkpoint'


def spoil(rng, folder):
    paths = [path for path in sorted(folder.rglob('*')) if rng.random() < 0.9] or [folder]
    path = paths[rng.integers(len(paths))]
    kind = ('bytes', 'gone', 'empty', 'folder', 'link', 'pipe', 'number', 'zero')[rng.integers(8)]
    if kind == 'number':
        name = str(
            rng.choice(['99', '0', '-1', '1e3', '003', '7.orbax-checkpoint-tmp', 'damaged.2', 'x', '2 '])
        )
        with contextlib.suppress(FileExistsError):
            (folder / name).mkdir(parents=True)
        return f'a folder {name}'
    if not os.path.lexists(path):
        return 'nothing'
    if kind == 'bytes' and path.is_file():
        path.write_bytes(damaged(rng, path.read_bytes() or b'\0')[0])
        return f'bytes of {path.relative_to(folder)}'
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == 'empty':
        path.write_bytes(b'')
    elif kind == 'folder':
        path.mkdir()
    elif kind == 'link':
        path.symlink_to(rng.choice(['nowhere', '.', path.name, '/dev/null']))
    elif kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'zero':
        path.symlink_to('/dev/zero')
    return f'{path.relative_to(folder)} {kind}'


def make_run(folder):
    config = command.load_config('scenes:runlocal')
    facts = {'config': config.to_dict(), 'classes': CLASSES, 'colors': COLORS}
    facts = json.loads(json.dumps(facts))
    model = build.model(config, len(CLASSES))
    with contextlib.closing(Checkpoints(folder / 'checkpoints')) as checkpoints:
        for step in (1, 2):
            variables = random_variables(model, step, np.zeros((1, 33, 33, 3), np.float32))
            checkpoints.save(step, dict(variables), facts)
            checkpoints.score(step, 0.1 * step)
    return folder
