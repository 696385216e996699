"""Which config is meant, what --help shows, and what a wrong command line prints, from any folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

import ann_jax
from ann_jax import command
from ann_jax.command import find_config, load_config
from ann_jax.errors import ConfigError

REPOSITORY = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (REPOSITORY / 'configs').glob('*.py'))
MINE = 'from ann_jax.config import defaults, finish, parse_argument\n\n\ndef get_config(argument=None):\n'
GOOD = (
    MINE
    + '    config = defaults()\n    config.seed = 7\n    return finish(config, parse_argument(argument))\n'
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    'text', ['configs/scenes.py', './configs/scenes.py', 'scenes.py', 'scenes', 'configs/scenes']
)
@pytest.mark.parametrize('argument', [None, '', 'variant=apnb,runlocal', 'a:b'])
def test_a_name_alone_means_the_packaged_config_and_keeps_its_argument(text, argument):
    found = find_config(text if argument is None else f'{text}:{argument}')
    assert found == (REPOSITORY / 'configs' / 'scenes.py', argument, True)


def test_every_config_is_packaged_and_loads():
    assert list(command.packaged_configs()) == NAMES
    for name in NAMES:
        config = load_config(f'{name}:variant=apnb,runlocal')
        assert config.model.variant == 'apnb' and config.is_locked
    assert load_config('cityscapes').model.variant == 'full'


@pytest.mark.parametrize('name', ['scenes.py', 'configs/scenes.py', 'scenes', 'mine.py', 'deep/er/mine.txt'])
def test_an_existing_file_wins(name, elsewhere):
    file = elsewhere / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(GOOD)
    for text in (name, str(file)):
        assert find_config(text) == (Path(text), None, False)
        config = load_config(f'{text}:variant=apnb')
        assert (config.seed, config.model.variant) == (7, 'apnb')


def test_a_folder_of_the_name_is_no_config(elsewhere):
    (elsewhere / 'scenes').mkdir()
    assert find_config('scenes').packaged


def test_in_a_wheel_the_configs_lie_in_the_package(elsewhere, monkeypatch):
    package = elsewhere / 'site-packages' / 'ann_jax'
    for folder, name in ((package / 'configs', 'own'), (package.parent / 'configs', 'of_another_package')):
        folder.mkdir(parents=True)
        (folder / f'{name}.py').write_text(GOOD)
    monkeypatch.setattr(command, '__file__', str(package / 'command.py'))
    assert find_config('configs/own.py:runlocal') == (package / 'configs' / 'own.py', 'runlocal', True)
    with pytest.raises(ConfigError, match='unknown config'):
        find_config('of_another_package')


@pytest.mark.parametrize(
    ('text', 'path'), [('C:\\a b\\mine.py:variant=apnb', 'C:\\a b\\mine.py'), ('c:/m.py', 'c:/m.py')]
)
def test_the_colon_of_a_drive_is_part_of_the_path(text, path, monkeypatch):
    monkeypatch.setattr(Path, 'is_file', lambda self: str(self) == path)
    assert find_config(text) == (Path(path), text[len(path) + 1 :] or None, False)


@pytest.mark.parametrize('text', ['scens', 'configs/scens.py', 'scens.py:runlocal'])
def test_an_unknown_name_tells_the_nearest_and_all(text):
    with pytest.raises(ConfigError, match=f"no such file.*did you mean 'scenes'.*{', '.join(NAMES)}"):
        find_config(text)


@pytest.mark.parametrize('text', ['', ':runlocal', 'other/scenes.py', '/configs/scenes.py', 'configs', '.'])
def test_no_other_folder_is_taken_for_that_of_the_configs(text):
    with pytest.raises(ConfigError, match='no such file'):
        find_config(text)


@pytest.mark.parametrize(
    ('code', 'message'),
    [
        (MINE + '    return 1 + None\n', 'mine.py, line 5: TypeError: unsupported'),
        ('import json\n\njson.loads("x")\n', 'mine.py, line 3: JSONDecodeError'),
        ('x = = 1\n', 'SyntaxError.*line 1'),
        ('x = 1\n', "AttributeError.*'get_config'"),
        (MINE + '    return {}\n', 'returns dict, not a ConfigDict'),
        ('def get_config():\n    pass\n', 'returns NoneType'),
    ],
)
def test_a_config_that_fails_names_file_line_and_error(code, message, elsewhere):
    (elsewhere / 'mine.py').write_text(code)
    with pytest.raises(ConfigError, match=message):
        load_config('mine.py')


def call(module, *arguments):
    return subprocess.run(
        [sys.executable, '-m', module, *arguments],
        env=os.environ | {'PYTHONPATH': str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize('module', ['ann_jax', 'ann_jax.main'])
def test_the_command_says_which_packaged_config_it_uses(module, elsewhere):
    # There is no data: it ends before anything is computed.
    result = call(module, '--config=camvid.py:variant=apnb', '--mode=check')
    assert result.returncode == 1
    *_, before, last = result.stderr.splitlines()
    assert before.endswith(f'config: {REPOSITORY / "configs" / "camvid.py"}, which comes with ann_jax')
    assert last.startswith("error: camvid: no folder ''")
    (elsewhere / 'camvid.py').write_text((REPOSITORY / 'configs' / 'camvid.py').read_text())
    result = call(module, '--config=camvid.py', '--mode=check')
    assert result.returncode == 1 and 'comes with' not in result.stderr


@pytest.mark.parametrize('dashes', ['-', '--'])
def test_of_a_setting_that_is_given_twice_the_last_counts(dashes):
    given = flags.FlagValues()
    twice = [f'{dashes}config.eval.scales=1.0,', f'{dashes}config.eval.scales', '2.0,']
    argv = command.arguments(['--config=scenes', '--config.seed=3', *twice, '--config.seed=4'])
    command.define_config('A config.', given, argv)
    command.parse(argv, '', given)
    assert given.config.eval.scales == (2.0,) and given.config.seed == 4


def test_help_is_about_the_command():
    result = call('ann_jax', '--help')
    assert result.returncode == 0 and not result.stderr
    for text in ('--mode', 'evaluate', '--workdir', '--config.KEY=VALUE', *NAMES):
        assert text in result.stdout


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], '--config is missing'),
        (['--config.seed=1'], '--config is missing'),
        (['--config=scens'], "did you mean 'scenes'"),
        (['--config=scenes', 'more'], "unexpected argument 'more'"),
        (['--config=scenes', '--out=x', '--config.optim.momentun=1'], "did you mean 'optim.momentum'"),
        (['--config', 'scenes', '--config.train.seed=1'], "'train.seed'; did you mean 'seed'"),
        (['--config=scenes', '--config.zzz=1'], "unknown setting 'zzz'; known: augment, "),
        (['--config=scenes', '--config.model.decoder.x=1'], "did you mean 'model.decoder'"),
        (['--config=scenes', '--config.augment.jitter[1]', '0.1'], "did you mean 'augment.jitter'"),
        (['--config=scenes', '--config.init', '3'], 'is not a dict'),
        (['--config=scenes', '--config.eval.flip=yes'], 'eval.flip=yes: must be True or False'),
        (['--config=scenes', '--config.train.steps=1e4'], 'train.steps=1e4: must be a whole number'),
        (['--config=scenes:variant=apn', '--out=x'], "did you mean 'apnb'"),
        (['--config=scenes'], '--out is missing'),
    ],
)
def test_tools_with_a_config_end_with_one_line_too(arguments, message):
    from ann_jax.tools.write_tfds import main

    with pytest.raises(SystemExit, match=f'(?s)^error: [^\\n]*{re.escape(message)}[^\\n]*$'):
        main(arguments)


@pytest.mark.parametrize(
    ('tool', 'arguments', 'message'),
    [
        ('scene_attention', ['--run=runs/absent'], 'runs/absent'),
        ('cost_model', ['--config=scenes', '--config.augment.crop=0,65'], 'augment.crop'),
    ],
)
def test_other_tools_end_with_one_line(tool, arguments, message):
    result = call(f'ann_jax.tools.{tool}', *arguments)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert re.search(f'^error: .*{message}', result.stderr.splitlines()[-1])


@pytest.mark.parametrize(
    'name', sorted(path.stem for path in (REPOSITORY / 'ann_jax' / 'tools').glob('[!_]*.py'))
)
def test_every_tool_has_a_script_that_is_a_shell_of_it(name):
    text = (REPOSITORY / 'scripts' / f'{name}.py').read_text()
    assert f'from ann_jax.tools.{name} import main' in text and text.count('\n') < 20


def test_the_version_is_that_of_the_citation():
    text = (REPOSITORY / 'CITATION.cff').read_text()
    assert re.search('^version: (.*)$', text, re.MULTILINE)[1] == ann_jax.__version__
