"""The benchmark runs, counts what it should, and says so in a file."""

import json

import pytest

from ann_jax.benchmark import BLOCKS, benchmark
from ann_jax.config import defaults, finish, parse_argument
from ann_jax.errors import ConfigError


def small(**settings):
    config = finish(defaults(), parse_argument('runlocal'))
    config.benchmark.update(rounds=2, peak_size=64, block_size=(24, 20), image_size=(65, 97), **settings)
    return config


def test_tables_and_file(tmp_path, capsys):
    benchmark(small(variants='baseline,full'), tmp_path)
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / 'benchmark.json').read_text())
    assert set(record) >= {'device', 'jax', 'peak', 'blocks', 'network'}
    for words in (
        'matrix product 64',
        'APNB 24x20',
        'full 65x97',
        'times as fast',
        'GMAC as the paper counts',
    ):
        assert words in printed
    rows = dict(zip(BLOCKS, record['blocks'], strict=True))
    assert rows['NB']['times as fast'] == 1 == rows['FNB']['times as fast']
    # Two per multiply-accumulate; of the softmax, normalisation and pooling there are few.
    for name, row in rows.items():
        assert 1.9 < row['GFLOP'] / row['GMAC as the paper counts'] < 2.3, name
    assert rows['NB']['GMAC as the paper counts'] == pytest.approx((3 * 2048 + 2 * 480) * 256 * 480 / 1e9)
    baseline, full = record['network']
    assert full['GFLOP'] > baseline['GFLOP'] and full['parameters (M)'] > baseline['parameters (M)']


@pytest.mark.parametrize('settings', [{'sections': 'speed'}, {'sections': 'network', 'variants': 'ful'}])
def test_unknown_names(settings, tmp_path):
    with pytest.raises(ConfigError, match='unknown benchmark'):
        benchmark(small(**settings), tmp_path)
