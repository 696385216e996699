"""The images that a setting names: a file, a folder, or a pattern."""

import glob
import itertools
import os
from pathlib import Path

from ann_jax.data.disk import hidden
from ann_jax.errors import ConfigError
from ann_jax.inference.intake import find_images


def input_files(text: str, mode: str, out: Path) -> tuple[list[Path], Path]:
    """The files, and the folder that their names are relative to; not what was written to `out`.

    Args:
        text: a file, a folder, or a pattern such as 'a/*.jpg'.
        mode: whose settings `input` and `output` errors name.
        out: the folder that is written into.

    Raises:
        ConfigError: nothing is named, or nothing is there.
        DataError: a folder holds no images.
    """
    if not text:
        raise ConfigError(
            f'--config.{mode}.input is missing: name an image, a folder, or a pattern such as "a/*.jpg"'
        )
    path = Path(text).expanduser()
    # Not Path.resolve, to which a link that leads to itself is an error: reading it says so.
    folders = lambda file: Path(os.path.realpath(file)).parents
    apart = lambda files: [file for file in files if out.resolve() not in folders(file)]
    if path.is_dir():
        if not (files := apart(find_images(path))):
            raise ConfigError(f'{mode}.input={text} holds no images but those of {mode}.output={out}')
        return files, path
    if path.exists():
        return [path], path.parent
    top = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
    found = (Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if not os.path.isdir(name))
    files = apart(file for file in found if not any(map(hidden, file.relative_to(top).parts)))
    if not files:
        raise ConfigError(f'{mode}.input={text}: no such file, folder or pattern')
    return files, top
