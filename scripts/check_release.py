"""Builds the sdist and the wheel, and tests both as users get them: in empty environments and folders.

    pip install build
    python scripts/check_release.py --out=dist

The wheel is built from the sdist, and again from this folder: both must have the same content. With --wheel,
an existing wheel is tested, with the Python that runs this.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# A run of seconds on the embedded scenes, with a worker process, which imports the command again.
RUN = [
    '--config=configs/scenes.py:runlocal',
    '--workdir=run',
    '--config.dataset.scenes.train_count=4',
    '--config.eval.limit=2',
    '--config.train.steps=2',
    '--config.train.eval_every=2',
    '--config.train.checkpoint_every=2',
    '--config.loader.workers=1',
]
IMPORT = """
import sys
from pathlib import Path

import ann_jax

assert Path(ann_jax.__file__).is_relative_to(sys.prefix), ann_jax.__file__
"""
TOOLS = """
import importlib
import pkgutil

import ann_jax.tools

names = [module.name for module in pkgutil.iter_modules(ann_jax.tools.__path__)]
assert len(names) > 4, names
for name in names:
    try:
        importlib.import_module(f'ann_jax.tools.{name}').main(['--help'])
    except SystemExit as end:
        assert not end.code, (name, end.code)
"""


def main():
    """Parses the command line, builds and tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--out', type=Path, help='empty folder for both files; if not given, they are removed'
    )
    parser.add_argument('--wheel', type=Path, help='build nothing, test this wheel')
    parser.add_argument('--environment', type=Path, help='folder that keeps the environment of the wheel')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        wheel = options.wheel or build(options.out or work / 'dist', work)
        try_wheel(wheel.resolve(), options.environment or work / 'wheel', work)
    print('the release works')


def build(out, work):
    """Builds sdist and wheel into `out`, tests the sdist, and returns the wheel."""
    if out.exists() and any(out.iterdir()):
        sys.exit(f'error: {out} is not empty: name an empty folder')
    run(sys.executable, '-m', 'build', '--outdir', out, ROOT)
    run(sys.executable, '-m', 'build', '--wheel', '--outdir', work / 'direct', ROOT)
    (wheel,), (sdist,), (direct,) = out.glob('*.whl'), out.glob('*.tar.gz'), (work / 'direct').glob('*.whl')
    ours, theirs = content(wheel), content(direct)
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if differing:
        sys.exit(f'error: the wheels of sdist and folder differ in {differing}; an old build/ may be why')
    kinds = ('.py', '.jinja', '.html', '.typed')
    files = (path for path in (ROOT / 'ann_jax').rglob('*') if path.suffix in kinds)
    here = {path.relative_to(ROOT).as_posix(): path for path in files}
    here |= {f'ann_jax/configs/{path.name}': path for path in (ROOT / 'configs').glob('*.py')}
    held = {name: data for name, data in ours.items() if '.dist-info/' not in name}
    if held != {name: path.read_bytes() for name, path in here.items()}:
        sys.exit(f'error: the wheel holds other files than this folder: {sorted(held.keys() ^ here.keys())}')

    with tarfile.open(sdist) as archive:
        packed = {name.partition('/')[2] for name in archive.getnames()}
    if (ROOT / '.git').exists():
        tracked = run('git', 'ls-files', cwd=ROOT).splitlines()
        missing = [name for name in tracked if name not in packed and name != '.gitignore']
        if missing:
            sys.exit(f'error: the sdist lacks {missing}: see MORE in setup.py')

    run(sys.executable, '-m', 'venv', work / 'sdist')
    run(python(work / 'sdist'), '-m', 'pip', 'install', '-q', '--no-deps', sdist.resolve())
    empty = work / 'away'
    empty.mkdir()
    run(python(work / 'sdist'), '-c', IMPORT, cwd=empty)
    return wheel


def content(wheel):
    """The files in a wheel, except for the list of them, which may contain a date."""
    with zipfile.ZipFile(wheel) as archive:
        return {n: archive.read(n) for n in archive.namelist() if not n.endswith('/RECORD')}


def try_wheel(wheel, environment, work):
    """Installs the wheel with its dependencies, trains, evaluates and predicts, and calls the tools."""
    run(sys.executable, '-m', 'venv', environment)
    ours = python(environment)
    run(ours, '-m', 'pip', 'install', '-q', wheel)
    run(ours, '-m', 'pip', 'check')
    empty = work / 'empty'
    empty.mkdir()
    run(ours, '-c', IMPORT, cwd=empty)
    run(ours, '-c', TOOLS, cwd=empty)
    expect(run(ours.with_name('ann-jax'), '--help', cwd=empty), 'cityscapes')
    expect(run(ours.with_name('ann-jax'), *RUN, cwd=empty), 'which comes with ann_jax', 'mean')
    launch = ['-m', 'ann_jax.tools.launch', 'machine', '--processes=1', '--']
    expect(run(ours, *launch, *RUN, '--mode=evaluate', cwd=empty), 'mean')
    images = '--config.predict.input=run/pictures'
    expect(run(ours, '-m', 'ann_jax', *RUN, '--mode=predict', images, cwd=empty), '2 of 2 images')
    expect(run(ours, '-m', 'ann_jax.main', '--config=scens', cwd=empty, status=1), "did you mean 'scenes'")
    assert len(list((empty / 'run' / 'predictions' / 'overlays').glob('*.png'))) == 2


def python(environment):
    """The interpreter of a virtual environment."""
    return environment.absolute() / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')


def run(*command, cwd=None, status=0):
    """Runs a command without the caller's Python paths; returns its output, or ends the program with it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith('PYTHON')}
    start = time.monotonic()
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment | {'PYTHONNOUSERSITE': '1', 'PYTHONUTF8': '1'},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding='utf-8',
        errors='replace',
    )
    shown = ' '.join(str(word) if '\n' not in str(word) else '...' for word in command)
    print(f'{time.monotonic() - start:5.1f} s  {shown}', flush=True)
    if done.returncode != status:
        sys.exit(f'{done.stdout}\nerror: exit status {done.returncode}, not {status}, of: {shown}')
    return done.stdout


def expect(text, *words):
    """Ends the program if a text lacks one of the words."""
    for word in words:
        if word not in text:
            sys.exit(f'{text}\nerror: {word!r} is not in the lines above')


if __name__ == '__main__':
    main()
