"""What only some systems have: the package imports, loads, predicts, checks and exports without it."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from small import small_folder

from ann_jax.data.classes import DATASETS

REPOSITORY = Path(__file__).parent.parent
# Run before any module of the package is imported, and after all that it imports: those know their systems.
WITHOUT = """
import sys, os, signal
import absl.app, cv2, flax, grain, jax, ml_collections.config_flags, numpy, optax, PIL.Image
import jax.export, jax.experimental.multihost_utils, multiprocessing.pool, orbax.checkpoint
import tensorboardX, tqdm.contrib.logging

for name in ('fcntl', 'grp', 'posix', 'pty', 'pwd', 'resource', 'syslog', 'termios', 'tty'):
    sys.modules[name] = None
for module, names in (
    (os, 'fork forkpty geteuid getgid getpgid getuid killpg nice sched_getaffinity setsid uname wait3'),
    (signal, 'SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGALRM alarm pthread_sigmask sigwait'),
):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
"""
IMPORT = """
import importlib, pkgutil
import ann_jax
takes_torch = {f'ann_jax.benchmark.{name}' for name in ('reference', 'torch_ann', 'mmseg_ann')}
names = {module.name for module in pkgutil.walk_packages(ann_jax.__path__, 'ann_jax.')}
assert len(names) > 50
for name in names - takes_torch:
    importlib.import_module(name)
"""
USE = """
from pathlib import Path
from ann_jax.runs.lock import lock
with lock(Path('run')):
    pass
import ann_jax
from ann_jax.command import load_config
from ann_jax.modes import check, export, predict
config = load_config('folder:runlocal')
config.dataset.update(root='data', classes='names.txt')
assert check.check(config) == 0
config.init['from'] = 'weights'
config.predict.update(input='data/images/val', write='ids,overlays')
assert predict.predict(config, Path('run')) == 0
config.export.update(size=(33, 40))
export.export(config, Path('run'))
ann_jax.load('run/export')('data/images/val/a.png')
"""


def python(code, folder, *options):
    """Runs code where files are ASCII unless told otherwise."""
    plain = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'PYTHONIOENCODING': 'utf-8'}
    return subprocess.run(
        [sys.executable, *options, '-c', code],
        cwd=folder,
        env=os.environ | plain | {'PYTHONPATH': str(REPOSITORY)},
        capture_output=True,
        encoding='utf-8',
        timeout=300,
    )


def test_every_module_is_imported_without_what_windows_lacks(tmp_path):
    result = python(WITHOUT + IMPORT, tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_modes_that_need_no_training_run_without_it_and_keep_names_of_any_script(tmp_path):
    names = ('дорога', '空', 'Fußgänger')
    dataset = replace(DATASETS['camvid'], classes=names, colors=((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    small_folder(tmp_path / 'weights', dataset=dataset)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'names.txt').write_text('\n'.join(names), encoding='utf-8')
    for split in ('train', 'val'):
        for kind, shape in (('images', (33, 40, 3)), ('labels', (33, 40))):
            folder = tmp_path / 'data' / kind / split
            folder.mkdir(parents=True)
            Image.fromarray(np.random.default_rng(0).integers(0, 3, shape, np.uint8)).save(folder / 'a.png')
    result = python(WITHOUT + USE, tmp_path)
    assert result.returncode == 0, result.stderr
    assert 'run cannot be locked' in result.stderr and 'do not start a second run in it' in result.stderr
    assert 'Fußgänger' in result.stdout  # the table of --mode=check
    card = (tmp_path / 'run' / 'export' / 'README.md').read_text(encoding='utf-8')
    assert all(name in card for name in names)
    assert (tmp_path / 'run' / 'predictions' / 'overlays' / 'a.png').is_file()
