"""--mode=report: one page about one or several runs, which opens without a network."""

import glob
import os
from pathlib import Path

from ann_jax.buckets.paths import place
from ann_jax.buckets.services import remote
from ann_jax.errors import ConfigError
from ann_jax.evaluation.gather import gather
from ann_jax.evaluation.page import INSTALL, can_write, write_page

NAME = 'report.html'


def report(workdirs: str) -> Path:
    """Writes the page of the runs that a text names, and prints where it is.

    Args:
        workdirs: a working directory; several, separated by commas; or a pattern such as 'runs/*', of which
            folders without a run are left out.

    Returns:
        The file: report.html in the working directory or, of several, in the folder that holds them all.

    Raises:
        ConfigError: there is no such folder, or Bokeh is missing.
        DataError: a folder holds no run.
        SaveError: the file cannot be written.
    """
    folders = _folders(workdirs)
    file = _top(folders) / NAME
    runs = [gather(folder) for folder in folders]
    if len({run.name for run in runs}) < len(runs):
        names = _apart(folders)
        runs = [run._replace(name=name) for run, name in zip(runs, names, strict=True)]
    write_page(file, runs)
    print(f'{len(folders)} run{"s" if len(folders) > 1 else ""}: {file}')
    return file


def _top(folders):
    """The folder of a run; of several, the one that holds them all, in a bucket that of the first."""
    if len(folders) == 1:
        return folders[0]
    if remote(folders[0]):
        return folders[0].parent
    local = [each.resolve() for each in folders if not remote(each)]
    top = Path(os.path.commonpath(local))
    return top.parent if top in local else top  # a run has a page of its own


def _apart(folders):
    """The paths of folders of one name, without what they begin with."""
    parts = [(each if remote(each) else each.resolve()).parts for each in folders]
    return ['/'.join(each[len(os.path.commonprefix(parts)) :]) or each[-1] for each in parts]


def report_of_run(workdir: Path) -> str:
    """Writes the page at the end of a run; returns a line about it, also where it could not be written."""
    if not can_write():
        return (
            f'for a page with curves, classes and pictures: {INSTALL}, then --mode=report --workdir={workdir}'
        )
    try:
        write_page(workdir / NAME, [gather(workdir)])
    except Exception as error:  # whatever it is, the run itself is done
        return f'no {NAME}: {type(error).__name__}: {error}'
    return f'report: {workdir / NAME}'


def _folders(text):
    folders: list[Path] = []
    for item in [text] if text and Path(text).expanduser().is_dir() else filter(None, text.split(',')):
        path = place(item.strip())
        if path.is_dir():
            folders.append(path)
            continue
        found = (
            sorted(path.parent.glob(path.name))
            if remote(path)
            else [Path(name) for name in sorted(glob.glob(str(path)))]
        )
        runs = [each for each in found if any(each.glob('metrics*.json')) or (each / 'tensorboard').is_dir()]
        if not runs:
            raise ConfigError(f'--workdir={item}: no such folder, and no runs of that pattern')
        folders += runs
    if not folders:
        raise ConfigError('--workdir is missing: name the working directory of a run, or several')
    return list({str(each if remote(each) else each.resolve()): each for each in folders}.values())
