"""README and docs: their Python runs, their commands parse, and what they name exists."""

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple
from unittest.mock import MagicMock

import jax
import numpy as np
import pytest
from absl import flags
from flax import traverse_util
from ml_collections import config_flags
from PIL import Image
from reference import oihw
from small import small_folder

import ann_jax
from ann_jax import build
from ann_jax.config import defaults, validate
from ann_jax.parallel.mesh import make_mesh
from ann_jax.weights.layouts import Layout

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}
FENCED = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)

# Packages that the pages use; none is needed here, and some would use the network.
FAKES = 'wandb', 'mlflow', 'tensorflow_datasets'


class Block(NamedTuple):
    language: str
    text: str
    line: int


def blocks(name, language=None):
    """The fenced blocks of a page."""
    for match in FENCED.finditer(TEXTS[name]):
        line = TEXTS[name][: match.start()].count('\n') + 2
        if language in (None, match[1]):
            yield Block(match[1], match[2], line)


def prose(name):
    """A page without its blocks."""
    return FENCED.sub('', TEXTS[name])


each_page = pytest.mark.parametrize('name', TEXTS)


# Form


def test_the_readme_is_short():
    assert len(TEXTS['README.md'].splitlines()) <= 150


@each_page
def test_blocks_are_fenced_and_say_their_language(name):
    assert {block.language for block in blocks(name)} <= {'python', 'bash', 'text', 'bibtex'}
    assert '```' not in prose(name)
    assert not re.search(r'^(?: {4}|\t)\S', prose(name), re.MULTILINE), (
        'an indented block would not be tested'
    )


def anchors(file):
    """Anchors of the headings of a page, the same on GitHub and on the site."""
    for heading in re.findall(r'^#+ (.*)$', FENCED.sub('', file.read_text()), re.MULTILINE):
        yield re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-')


@each_page
def test_links_lead_somewhere(name):
    for target in re.findall(r'\]\(([^)\s]+)\)', prose(name)):
        path, _, anchor = target.partition('#')
        if not path.startswith('https://'):
            file = ROOT / name if not path else ((ROOT / name).parent / path).resolve()
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


@each_page
def test_files_exist(name):
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    wings = {path.name for path in (ROOT / 'ann_jax').iterdir() if path.is_dir()}
    for path in re.findall(r'(?<![\w/.}-])(?:\w+/)+\w+\.(?:py|md|txt|png)\b', TEXTS[name]):
        first = path.split('/')[0]
        if first in folders:
            assert (ROOT / path).exists(), path
        elif first in wings:
            assert (ROOT / 'ann_jax' / path).exists(), path


# Commands


def commands(name):
    """The words of each command in the shell blocks of a page."""
    for block in blocks(name, 'bash'):
        rest = ''
        for line in block.text.replace('\\\n', ' ').splitlines(keepends=True):
            try:
                words = shlex.split(rest + line, comments=True)
            except ValueError:  # a quotation goes on in the next line
                rest += line
                continue
            rest = ''
            while words:
                end = words.index('&&') if '&&' in words else len(words)
                yield words[:end]
                words = words[end + 1 :]
        assert not rest, rest


def arguments(words):
    """What a command gives to a run: after `ann_jax.main`, or after the `--` of the launcher."""
    for start, mark in (('-m', 'ann_jax.main'), ('scripts/launch.py', '--'), ('ann-jax', 'ann-jax')):
        if start in words and mark in words:
            return words[words.index(mark) + 1 :]
    return [word for word in words if word.startswith('--config') and 'scripts/' in words[1]]


def sources(*patterns):
    return '\n'.join(path.read_text() for pattern in patterns for path in ROOT.glob(pattern))


@each_page
def test_commands_parse(name, monkeypatch):
    """Every setting of every run has a key, and its value the type and range of that key."""
    monkeypatch.chdir(ROOT)
    command = sources('ann_jax/*.py')
    known = set(re.findall(r"DEFINE_\w+\(\s*'(\w+)'", command))
    modes = set(
        re.search(r"'mode',\s*'train',\s*\[(.*?)\]", command, re.DOTALL)[1].replace("'", '').split(', ')
    )
    for words in filter(None, map(arguments, commands(name))):
        words = [word.replace('config.init.from', 'config.init["from"]') for word in words]
        settings = [word for word in words if word.startswith('--config')]
        for flag, _, value in (word[2:].partition('=') for word in words if word not in settings):
            assert flag in known and (flag != 'mode' or value in modes), words
        if {'--mode=setup', '--mode=report'} & {*words}:
            settings.insert(0, '--config=configs/folder.py')
        values = flags.FlagValues()
        config_flags.DEFINE_config_file('config', flag_values=values)
        monkeypatch.setattr(sys, 'argv', ['ann_jax', *settings])
        values(sys.argv)
        validate(values.config)
        c, mode = values.config.dataset, [word for word in words if word.startswith('--mode=')]
        if c.name == 'folder' and mode in ([], ['--mode=evaluate'], ['--mode=check'], ['--mode=browse']):
            assert c.classes or c.stand_in or c.format == 'tfds', words  # or else the command is refused


@each_page
def test_options_of_scripts_exist(name):
    for words in commands(name):
        if words[:1] == ['python'] and len(words) > 1 and words[1].startswith('scripts/'):
            stem = Path(words[1]).stem
            text = sources(f'scripts/{stem}.py', f'ann_jax/tools/{stem}.py')
            own = words[: words.index('--')] if '--' in words else words
            for option in (word[2:].partition('=')[0] for word in own if word.startswith('--')):
                if not option.startswith('config'):
                    assert f"'--{option}'" in text or f"'{option}'" in text, (words[1], option)


@each_page
def test_settings_exist(name):
    config = defaults().to_dict()
    known = {f'{section}.{key}' for section, keys in config.items() if isinstance(keys, dict) for key in keys}
    known |= {f'dataset.scenes.{key}' for key in config['dataset']['scenes']} | set(config)
    flagged = re.findall(r'--config\.([\w.]*\w)', TEXTS[name])
    spans = re.findall(r'`([a-z]+\.[a-z_]+)(?:=[^`]*)?`', prose(name))
    endings = {
        'py',
        'md',
        'txt',
        'json',
        'html',
        'png',
        'npz',
        'onnx',
        'stablehlo',
        'tflite',
        'pth',
        'safetensors',
    }
    settings = [span for span in spans if span.split('.')[0] in config and span.split('.')[1] not in endings]
    for key in flagged + settings:
        assert key in known, key


# Python


def taken(tree):
    """What a block takes from `ann_jax`."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id='ann_jax'), attr=name):
                yield name
            case ast.ImportFrom(module='ann_jax'):
                yield from (alias.name for alias in node.names)


@each_page
def test_python_takes_public_names(name):
    for block in blocks(name, 'python'):
        for attribute in taken(ast.parse(block.text)):
            assert attribute in ann_jax.__all__, f'line {block.line}: {attribute}'


@pytest.fixture
def stage(tmp_path, monkeypatch, compiled_fast):
    """A folder that holds what the pages use, small networks, and fakes of other packages."""
    monkeypatch.chdir(tmp_path)
    one_device = make_mesh(jax.devices()[:1])
    monkeypatch.setattr(build, 'mesh', lambda config, devices=None: one_device)
    rng = np.random.default_rng(0)
    (tmp_path / 'photos').mkdir()
    for name in ('street.jpg', 'photos/a.jpg', 'photos/b.jpg'):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(name)

    def shrunk(run):
        def run_small(config, workdir, **parts):
            config.model.update(depth=10, width=4, stem_widths=(4,), head_channels=8, aux_channels=4)
            config.model.variant = 'baseline'
            config.dataset.scenes.update(train_count=4, eval_count=2, height=64, width=128)
            config.augment.crop = (33, 33)
            config.loss.min_kept = 100
            config.train.update(steps=1, batch_size=2)
            return run(config, workdir, **parts)

        return run_small

    for name in ('train', 'evaluate'):
        monkeypatch.setattr(ann_jax, name, shrunk(getattr(ann_jax, name)), raising=False)
    fakes = {name: MagicMock(name=name) for name in FAKES}
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    return fakes


def prepare(name):
    """What one page alone takes."""
    run = {'docs/index.md': 'scenes', 'README.md': 'camvid', 'docs/inference.md': 'camvid'}.get(name)
    if run:
        small_folder(Path('runs', run))
    if name == 'docs/inference.md':
        # In place of --mode=export, which takes longer than all pages; test_predict.py runs what that writes.
        image = jax.ShapeDtypeStruct((*jax.export.symbolic_shape('b, h, w'), 3), np.uint8)
        program = jax.export.export(jax.jit(lambda image: image[..., :1] / 2))(image)
        Path('runs/camvid/export').mkdir()
        Path('runs/camvid/export/model.stablehlo').write_bytes(program.serialize())
    if name == 'docs/weights.md':
        torch = pytest.importorskip('torch', reason='writes the file that is converted')
        flat = traverse_util.flatten_dict(small_folder(Path('runs/small')).variables)
        names = Layout('', 'plain', '')
        backbone = {names.key(path): x for path, x in flat.items() if path[1] == 'backbone'}
        state = {key: torch.tensor(oihw(x) if x.ndim == 4 else x) for key, x in backbone.items()}
        torch.save(state, 'resnet101.pth')


@pytest.mark.parametrize('name', [name for name in TEXTS if any(blocks(name, 'python'))])
def test_python_runs(name, stage):
    scope = {'__name__': '__main__'}
    prepare(name)
    for block in blocks(name, 'python'):
        source = '\n' * (block.line - 1) + block.text  # an error names the line of the page
        exec(compile(source, name, 'exec'), scope)
    for package, fake in stage.items():
        if f'import {package}' in TEXTS[name]:
            assert fake.mock_calls, f'{package} was not called'


# The public names


def test_the_page_of_the_api_lists_the_public_names():
    rows = re.search(r'^\| for \| names \|\n(.*?)\n\n', TEXTS['docs/api.md'], re.MULTILINE | re.DOTALL)[1]
    listed = re.findall(r'`(\w+)`', rows)
    assert sorted(listed) == sorted(ann_jax.__all__)


def test_the_reference_holds_the_public_names():
    paths = re.findall(r'^::: ann_jax\.(\S+)$', TEXTS['docs/reference.md'], re.MULTILINE)
    found = {}
    for path in paths:
        module, _, name = path.rpartition('.')
        found[name] = getattr(importlib.import_module(f'ann_jax.{module}'), name)
    assert found == {name: getattr(ann_jax, name) for name in ann_jax.__all__}
