"""The command line of the drivers: --config and its settings, help, and one-line errors.

A config is a file, or the name of one that comes with the package; its argument follows a colon:

    --config=mine.py    --config=configs/cityscapes.py:variant=apnb    --config=cityscapes:variant=apnb
"""

import importlib.machinery
import importlib.util
import itertools
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from ann_jax.errors import ConfigError, DataError, unknown
from ann_jax.runs.history import flat


class ConfigFile(NamedTuple):
    """The location of a config.

    Attributes:
        path: the file.
        argument: the text after the colon; None if there is none.
        packaged: whether it comes with the package.
    """

    path: Path
    argument: str | None
    packaged: bool


def packaged_configs() -> dict[str, Path]:
    """The configs that come with the package, by name."""
    package = Path(__file__).parent
    # In a wheel they are in the package, in a checkout beside it.
    inside, beside = package / 'configs', package.parent / 'configs'
    return {path.stem: path for path in sorted((inside if inside.is_dir() else beside).glob('*.py'))}


def find_config(text: str) -> ConfigFile:
    """Finds a config: a file, or else the config of that name that comes with the package.

    Args:
        text: 'mine.py', 'configs/scenes.py', 'scenes.py' or 'scenes', with an argument after a colon.

    Raises:
        ConfigError: there is neither; the message lists the packaged ones.
    """
    # The colon of a drive, as in C:\mine.py, is part of the path.
    parts = re.fullmatch(r'((?:[A-Za-z]:[\\/])?[^:]*)(?::(.*))?', text, re.DOTALL)
    assert parts  # any text matches
    name, argument = parts.groups()
    path = Path(name).expanduser()
    if path.is_file():
        return ConfigFile(path, argument, packaged=False)
    known, stem = packaged_configs(), path.name.removesuffix('.py')
    if stem in known and path.parent in (Path(), Path('configs')):
        return ConfigFile(known[stem], argument, packaged=True)
    raise ConfigError(f'no such file, and {unknown("config", stem, known)}')


def load_config(text: str | os.PathLike) -> ConfigDict:
    """Runs `get_config` of a config and returns the result, locked.

    Args:
        text: as in `find_config`.

    Raises:
        ConfigError: there is no such config, its argument is wrong, or its code fails.
    """
    file = find_config(os.fspath(text))
    loader = importlib.machinery.SourceFileLoader('ann_jax_config', str(file.path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec  # a SourceFileLoader always has one
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module
    try:
        loader.exec_module(module)
        config = module.get_config(*(() if file.argument is None else (file.argument,)))
    except (ConfigError, DataError):
        raise
    except Exception as error:  # it is the user's code
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file.path)]
        where = f'{file.path}, line {lines[-1]}' if lines else file.path
        raise ConfigError(f'{where}: {type(error).__name__}: {error}') from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f'{file.path}: get_config() returns {type(config).__name__}, not a ConfigDict')
    return config.lock()


class _Parser(flags.ArgumentParser):
    def parse(self, argument):
        return load_config(argument)

    def flag_type(self):
        return 'config file'


def define_config(
    help_string: str, flag_values: flags.FlagValues = flags.FLAGS, argv: list[str] | None = None
) -> flags.FlagHolder:
    """Defines --config, and with it --config.KEY=VALUE for each setting.

    Args:
        help_string: for --help.
        flag_values: gets the flag.
        argv: the command line that `parse` will get; sys.argv at the time if None.
    """
    holder = config_flags.DEFINE_config_file(
        'config', None, help_string, flag_values=flag_values, sys_argv=argv
    )
    # The original takes the colon of a drive for that of an argument, and knows no packaged configs.
    flag_values['config'].parser = _Parser()
    return holder


def arguments(argv: Iterable[str] | None = None) -> list[str]:
    """The command line with the program's name in front, as `define_config` and `parse` take it.

    Args:
        argv: without the name of the program; those of the process if None.
    """
    # ml_collections parses keys as Python, where `from` is a keyword.
    rename = lambda text: re.sub(r'^--?config\.init\.from(?==|$)', '--config.init["from"]', text)
    words: list[str] = []
    for text in sys.argv[1:] if argv is None else argv:
        if words and re.fullmatch(r'--?config\.[^=]+', words[-1]) and not text.startswith('--'):
            words[-1] += f'={text}'  # --config.KEY VALUE
        else:
            words.append(text)
    # Of a setting that is given twice the last counts; ml_collections would append a tuple to the first.
    given: dict[int | str, str] = {}
    for i, text in enumerate(map(rename, words)):
        setting = re.match(r'--?(config\.[^=]+)=', text)
        given[setting[1] if setting else i] = text
    return [sys.argv[0], *given.values()]


def parse(
    argv: list[str],
    description: str,
    flag_values: flags.FlagValues = flags.FLAGS,
    names: Iterable[str] | None = None,
) -> list[str]:
    """Parses the command line; errors end the program with one line.

    Args:
        argv: of `arguments`.
        description: for --help.
        flag_values: holds the flags, `config` among them.
        names: of the flags that --help describes; None for all.

    Returns:
        What is left: the name of the program.
    """
    if {'-h', '-help', '--help', '--helpshort', '--helpfull'} & set(argv[1:]):
        print(_help(description, [flag_values[name] for name in names or flag_values]))
        sys.exit(0)
    try:
        _refuse_unknown(argv)
        rest = flag_values(argv)
        if flag_values['config'].value is None:
            raise _missing()
        if len(rest) > 1:
            raise ConfigError(f'unexpected argument {rest[1]!r}: settings are --config.key=value')
        return rest
    except (flags.Error, AttributeError, KeyError, ValueError, OSError) as error:
        text = str(error)
        if isinstance(error, KeyError):  # its text is quoted
            text = text.replace('\\n', '\n').strip('\'"\n ')
        text = re.sub(r"\('Non-boolean argument to boolean flag', .*\)", 'must be True or False', text)
        text = re.sub(r'invalid literal for int\(\) with base 10: .*', 'must be a whole number', text)
        # Of several lines the last says what is wrong.
        sys.exit(f'error: {text.strip().splitlines()[-1].strip()}')


def _missing():
    known = ', '.join(packaged_configs())
    return ConfigError(f'--config is missing: name a file, or a config that comes with ann_jax: {known}')


def _refuse_unknown(argv):
    """Raises ConfigError for settings that the config does not have, with the closest that it has."""
    configs = [text for flag, text in itertools.pairwise(argv) if flag in ('-config', '--config')]
    configs += [match[1] for text in argv if (match := re.match('--?config=(.*)', text))]
    if not configs and any(re.match(r'--?config\.', text) for text in argv):
        raise _missing()  # in place of a setting that is unknown without one
    try:
        known = flat(load_config(configs[-1]).to_dict())
    except (IndexError, ConfigError, DataError):  # the flag itself says what is wrong
        return
    for match in filter(None, (re.match(r'--?config\.([^=]+)', text) for text in argv)):
        setting = match[1].replace('["from"]', '.from')  # see `arguments`
        if setting in known or any(key.startswith(f'{setting}.') for key in known):
            continue
        group, _, name = setting.rpartition('.')
        elsewhere = [key for key in known if key.rpartition('.')[2] == name]
        beside = [key for key in known if key.startswith(f'{group}.')]
        above = [group] if group in known else list(dict.fromkeys(key.partition('.')[0] for key in known))
        raise ConfigError(unknown('setting', setting, elsewhere or beside or above))


def _help(description, shown):
    wrap = lambda text: textwrap.fill(
        ' '.join(text.split()), 100, initial_indent='    ', subsequent_indent='    '
    )
    lines = [description.strip(), '']
    for flag in shown:
        lines += [f'--{flag.name}=...', wrap(flag.help)]
    lines += ['--config.KEY=VALUE', wrap('A setting of the config, such as --config.train.steps=100.')]
    return '\n'.join([*lines, '', 'Configs that come with ann_jax:', wrap(', '.join(packaged_configs()))])
