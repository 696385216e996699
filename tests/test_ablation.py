"""The ablation studies: what is trained, and what the tables say."""

import json
import re
import subprocess
import types

import numpy as np
import pytest
from flax import linen as nn

from ann_jax.config import defaults, validate
from ann_jax.data.scene_objects import CLASSES
from ann_jax.models.settings import network
from ann_jax.tools import ablation
from ann_jax.tools.ablation import ROWS, TABLES


def test_every_row_is_a_network_and_a_setting():
    assert [len(rows) for rows in TABLES.values()] == [9, 8, 4] and len(ROWS) == 9 + 7 + 2
    for row in ROWS.values():
        config = defaults()
        config.model.update(variant=row.variant, **row.settings)
        validate(config)
        assert isinstance(network(config.model.to_dict(), 5), nn.Module)
        assert re.fullmatch('[a-z0-9_-]+', row.name)
    anchors = {row.label: sum(n * n for n in row.settings.get('sizes', (1, 3, 6, 8))) for row in TABLES[7]}
    assert list(anchors.values()) == [225, 225, 225, 50, 50, 50, 110, 225]  # the column S


SHOWN = str.maketrans('*![]', '____')


@pytest.fixture
def commands(monkeypatch):
    """Runs, which score as their seed and variant say."""
    seen = []

    def run(command):
        seen.append(command)
        values = dict(word[2:].split('=', 1) for word in command if word.startswith('--'))
        seed, variant = int(values['config.seed']), values['config'].rsplit('=')[-1]
        if variant == 'nb':
            return subprocess.CompletedProcess(command, 3)
        folder = ablation.Path(values['workdir'])
        folder.mkdir(parents=True, exist_ok=True)
        iou = {name: 0.5 + 0.01 * seed for name in CLASSES} | {'worker': None}
        score, split = 0.5 + 0.1 * seed, values.get('config.dataset.eval_split', 'own')
        name = 'metrics.json'
        if values.get('mode') == 'evaluate':
            score /= 2
            name = f'metrics-{split}.json'.translate(SHOWN)
        else:
            (folder / 'config.json').write_text(json.dumps({'dataset': {'eval_split': split}}))
        (folder / name).write_text(json.dumps({'miou': score, 'iou': iou}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(ablation, 'subprocess', types.SimpleNamespace(run=run))
    return seen


def test_tables_hold_mean_and_deviation_of_the_seeds(commands, tmp_path, capsys):
    arguments = ['--workdir', str(tmp_path), '--tables', '6', '9', '--seeds', '0', '1', '3']
    arguments += ['--rows', 'baseline', 'afnb', 'afnb-3,4'.replace(',', '_'), '--', '--config.train.steps=7']
    ablation.main(arguments)
    assert len(commands) == 3 * 3  # what two tables share is trained once
    assert '--config=configs/scenes.py:variant=afnb' in commands[2]
    assert commands[2][-2:] == ['--config.train.steps=7', '--config.model.fuse_stages=3,4']
    printed = capsys.readouterr().out
    mean, deviation = np.mean([50, 60, 80]), np.std([50, 60, 80], ddof=1)
    row = f'| AFNB, 3 & 5, 4 & 5 | {mean:.1f} ± {deviation:.1f} | 51.3 ± 1.5 | nan ± nan | 76.7 |'
    assert row in printed and printed.count('| 75.8 |') == 2
    assert row in (tmp_path / 'ablation.md').read_text(encoding='utf-8')
    record = json.loads((tmp_path / 'ablation.json').read_text())
    assert [run['mIoU'] for run in record['scores']['afnb']] == pytest.approx([50, 60, 80])


def test_a_config_keeps_its_argument(commands, tmp_path):
    ablation.main(['--workdir', str(tmp_path), '--rows', 'full', '--seeds', '4', '--config=camvid.py:small'])
    assert '--config=camvid.py:small,variant=full' in commands[0]


def test_own_rows_on_several_splits(commands, tmp_path, capsys):
    rows = ['plain=', "b.2=--config.loss.terms=dice:1 '--config.note=two words'"]
    arguments = ['--workdir', str(tmp_path), '--seeds', '0', '2', '--splits', 'val', 'train[x]']
    ablation.main([*arguments, '--config=camvid.py:small', '--own', *rows, '--', '--config.train.steps=7'])
    assert len(commands) == 2 * 2 * 3
    train, on_val, _ = commands[3:6]
    assert train[3:] == [
        '--config=camvid.py:small', f'--workdir={tmp_path / "b.2_0"}', '--config.seed=0',
        '--config.train.steps=7', '--config.loss.terms=dice:1', '--config.note=two words',
    ]  # fmt: skip
    assert on_val == [*train, '--mode=evaluate', '--config.dataset.eval_split=val']
    printed = capsys.readouterr().out
    assert '| network | mIoU | val | train[x] | cars | people |\n' in printed and 'Own rows' in printed
    assert '| b.2 | 60.0 ± 14.1 | 30.0 ± 7.1 | 30.0 ± 7.1 | 51.0 ± 1.4 | nan ± nan |\n' in printed
    commands.clear()
    ablation.main([*arguments, '--own', 'plain='])
    assert len(commands) == 2  # to train again is up to the run, to score is not done twice
    commands.clear()
    ablation.main([*arguments, 'own', '--own', 'plain='])
    assert len(commands) == 2  # training has scored its own split
    assert '| own |' in capsys.readouterr().out
    for bad in (
        ['plain'], ['a b=x'], ['full=x'], ['a=', 'a=--x'], ['a=--config.seed=3'], ['a=', '--seeds', '1', '1'],
        ['a=', '--', '--config.seed=7'], ['a=', '--', '--workdir=x'], ['a=config.loss.terms=dice:1'],
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            ablation.main(['--workdir', str(tmp_path), '--own', *bad])
    commands.clear()
    ablation.main(['--workdir', str(tmp_path), '--seeds', '0', '--rows', 'full', '--own', 'plain='])
    assert len(commands) == 2
    capsys.readouterr()
    ablation.main(['--workdir', str(tmp_path), '--seeds', '1', '--own', 'plain='])
    assert '| plain | 60.0 | 51.0 | nan |\n' in capsys.readouterr().out  # of one run there is no deviation


def test_a_run_that_fails_ends_the_comparison(commands, tmp_path):
    with pytest.raises(SystemExit, match='the run of nb with seed 0 ended with status 3'):
        ablation.main(['--workdir', str(tmp_path)])


def test_rows_of_other_tables_are_told(commands, capsys):
    with pytest.raises(SystemExit):
        ablation.main(['--tables', '9', '--rows', 'full'])
    assert 'none of the rows' in capsys.readouterr().err and not commands
    for more in (['--tables', '6', '--rows', 'full', 'full-15'], ['--rows', 'full-15', '--own', 'plain=']):
        with pytest.raises(SystemExit):
            ablation.main(more)
        assert "have none of the rows ['full-15']" in capsys.readouterr().err and not commands
