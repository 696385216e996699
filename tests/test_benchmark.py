"""Every section of the benchmark runs, counts what it should, and says so in a file."""

import gc
import json

import jax.numpy as jnp
import numpy as np
import pytest

from ann_jax import build
from ann_jax.benchmark import SECTIONS, benchmark
from ann_jax.benchmark.contest import Contestant, compiled, contest
from ann_jax.config import defaults, finish, parse_argument
from ann_jax.data.augment import mixing
from ann_jax.errors import ConfigError
from ann_jax.models import resnet

RATES = [{'GFLOP/s': 10.0}]
pytestmark = pytest.mark.usefixtures('compiled_fast')


@pytest.fixture(scope='module', autouse=True)
def other_objects():
    """Are left alone when garbage is collected before each of some 50 measurements of memory."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def small(**settings):
    config = finish(defaults(), parse_argument('runlocal'))
    settings = {
        'rounds': 2,
        'peak_size': 64,
        'block_sizes': '24x20',
        'image_sizes': '65x97',
        'backward': True,
        **settings,
    }
    config.benchmark.update(settings)
    return config


def run(tmp_path, **settings):
    benchmark(small(**settings), tmp_path)
    return json.loads((tmp_path / 'benchmark.json').read_text())


def test_blocks_count_as_the_paper(tmp_path, capsys):
    record = run(tmp_path, sections='blocks')
    printed = capsys.readouterr().out
    assert 'matrix product 64' in printed and 'APNB 24x20 forward and backward' in printed
    rows = {row['contestant']: row for row in record['blocks']}
    assert len(rows) == 10
    # Two per multiply-accumulate, three times as many with gradients; of softmax and pooling there are few.
    # Those with anchors take fewer: they project values, and apply W_o, on the anchors.
    for name, row in rows.items():
        times = 3 if 'backward' in name else 1
        low, high = (1.2, 1.8) if name.startswith('A') else (1.7, 2.3)
        assert low * times < row['GFLOP'] / row['GMAC as the paper counts'] < high * times, name
        assert row['growth (MB)'] > 0
    assert rows['NB 24x20 forward']['ratio'] == 1
    expected = (3 * 2048 + 2 * 480) * 256 * 480 / 1e9
    assert rows['NB 24x20 forward']['GMAC as the paper counts'] == pytest.approx(expected)


def test_networks(tmp_path):
    rows = run(tmp_path, sections='network', variants='baseline,full')['network']
    baseline, full = rows
    assert full['GFLOP'] > baseline['GFLOP'] and full['parameters (M)'] > baseline['parameters (M)']


def test_a_record_tells_what_was_measured_with(tmp_path):
    record = run(tmp_path, sections='peak')
    assert record['versions'].keys() >= {'ann_jax', 'jax', 'python'} and record['date'][:2] == '20'
    assert record['processor'].endswith(' cores') and record['platform']


def test_a_name_that_is_given_twice_counts_once(tmp_path):
    rows = run(tmp_path, sections='network', variants='baseline, baseline', dtypes='float32,float32')
    assert len(rows['network']) == 1


def test_a_step_of_many_bands_pastes_as_training_does(tmp_path, monkeypatch):
    config = small(sections='step', rounds=1)
    config.dataset.bands, config.augment.mix, config.augment.mix_share = '1,2,3,3', 'copy_paste', 1.0
    source = build.source(config, 'train')
    config.input.bgr, config.input.mean, config.input.std = False, (0.5,) * 4, (0.2,) * 4
    read = type(source).__getitem__

    def four(self, index):
        sample = read(self, index)
        return sample | {'image': sample['image'][..., [0, 1, 2, 2]]}

    pasted, apply = [], mixing.Mix.apply
    monkeypatch.setattr(type(source), '__getitem__', four)
    monkeypatch.setattr(mixing.Mix, 'apply', lambda mix, *args: pasted.append(mix.kind) or apply(mix, *args))
    benchmark(config, tmp_path)
    assert set(pasted) == {'copy_paste'}


def test_step_tells_its_parts(tmp_path):
    (row,) = run(tmp_path, sections='step')['step']
    parts = row['data wait (ms)'] + row['host (ms)'] + row['device (ms)']
    assert parts == pytest.approx(row['median (ms)'], rel=0.5)
    assert row['GFLOP'] > 0 and row['images/s'] > 0


def test_step_counts_where_the_compiler_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr('ann_jax.benchmark.contest.on_cpu', lambda: False)
    (row,) = run(tmp_path, sections='step')['step']
    assert row['GFLOP'] > 0


def test_loss_and_resize(tmp_path):
    names = [row['contestant'] for row in run(tmp_path, sections='loss')['loss']]
    assert len(names) == 6 and any('OHEM' in name for name in names)


def test_reading(tmp_path):
    pytest.importorskip('array_record')
    rows = run(tmp_path, sections='input', rounds=1)['input']
    assert {(row['images'], row['reader']) for row in rows} >= {('png', 'ArrayRecord'), ('decoded', 'ours')}
    assert all(row['images/s per core'] > 0 for row in rows)


def test_dilation(tmp_path):
    config = small(sections='dilation', rounds=1)
    config.augment.crop, config.train.batch_size = (33, 33), 1
    benchmark(config, tmp_path)
    rows = json.loads((tmp_path / 'benchmark.json').read_text())['dilation']
    assert len(rows) == 24 and [row['ratio'] for row in rows[::4]] == [1] * 6


def test_the_reference_computes_the_same(tmp_path, monkeypatch):
    pytest.importorskip('torch')
    from ann_jax.benchmark import torch_ann

    # Few blocks in full width: more channels than anchors, Winograd's convolutions, 114 MB of weights.
    monkeypatch.setitem(resnet.DEPTHS, 50, (True, (1, 1, 1, 2)))
    monkeypatch.setitem(torch_ann.PLANS, 50, (1, 1, 1, 2))
    config = small(sections='reference', rounds=1, reference_sizes='33x41', reference_step_sizes='33x33')
    config.model.update({**defaults().model, 'depth': 50})
    benchmark(config, tmp_path)
    rows = json.loads((tmp_path / 'benchmark.json').read_text())['reference']
    assert len(rows) == 4
    assert all(row['difference'] < 1e-5 and row['memory (MB)'] > 100 for row in rows)


@pytest.mark.parametrize('beside', [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_stream_gives_the_classes_of_the_reference(beside, tmp_path, monkeypatch):
    pytest.importorskip('torch')
    from ann_jax.benchmark import stream, torch_ann

    if beside:
        monkeypatch.setitem(resnet.DEPTHS, 50, (True, (1, 1, 1, 1)))
        monkeypatch.setitem(torch_ann.PLANS, 50, (1, 1, 1, 1))
    else:  # any depth
        monkeypatch.setattr(stream, 'reference', None)
    config = small(sections='stream', rounds=1, stream_images=5, stream_sizes='33x41', stream_batch=2)
    config.model.depth = 50 if beside else 10
    benchmark(config, tmp_path)
    rows = json.loads((tmp_path / 'benchmark.json').read_text())['stream']
    assert len(rows) == (4 if beside else 2) and 'ann_jax 33x41, 2 at a time' in rows[-1]['contestant']
    for row in rows:
        assert row['pixels alike'] > 0.999
        assert row['images/s'] == pytest.approx(5 / row['median (ms)'] * 1e3)


@pytest.mark.parametrize('batch', [1, 2])
def test_the_reference_normalises_and_takes_the_largest(batch):
    pytest.importorskip('torch')
    from ann_jax.benchmark import reference

    images = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)
    normal = (images - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
    ids = reference.segment(lambda x: x, images, batch, small())
    np.testing.assert_array_equal(ids, normal.argmax(-1))


def test_every_second_round_goes_backwards():
    order = []
    runs = {name: Contestant(lambda name=name: order.append(name)) for name in 'ab'}
    rows = contest(runs, 3, RATES)
    assert ''.join(order[:8]) == 'baabbaab' and [row['contestant'] for row in rows] == ['a', 'b']


def test_short_runs_are_queued_on_accelerators(monkeypatch):
    """Two runs to see how long one takes, then a hundred at a time that are waited for together."""
    monkeypatch.setattr('ann_jax.benchmark.contest.on_cpu', lambda: False)
    monkeypatch.setattr('ann_jax.benchmark.contest._device_growth', lambda contestants: {'a': None})
    runs, waits = [], []
    contest({'a': Contestant(lambda: runs.append(0), wait=waits.append)}, 3, RATES)
    assert (len(runs), len(waits)) == (2 + 3 * 100, 2 + 3)


def test_devices_tell_their_memory_and_functions_their_operations(monkeypatch):
    """As on GPUs: the device has a mark that only rises, and the compiler does not count for libraries."""
    monkeypatch.setattr('ann_jax.benchmark.contest.on_cpu', lambda: False)
    device = {'bytes_in_use': 5_000_000, 'peak_bytes_in_use': 7_000_000}
    monkeypatch.setattr('ann_jax.benchmark.contest.device_memory', lambda: dict(device))

    def takes(name, megabytes):
        program = compiled(lambda x: jnp.sort(x @ x), jnp.ones((len(name), len(name))))
        mark = device['bytes_in_use'] + megabytes * 10**6
        rise = lambda: device.update(peak_bytes_in_use=max(mark, device['peak_bytes_in_use']))
        return program._replace(run=rise)

    programs = {'larger': takes('larger', 40), 'small': takes('small', 3), 'low': takes('low', 1)}
    rows = contest(programs, 1, RATES)
    assert [row['growth (MB)'] for row in rows] == [40, 3, None]
    for row in rows:
        assert 2 * len(row['contestant']) ** 3 <= 1e9 * row['GFLOP'] < 4 * len(row['contestant']) ** 3
        assert row['GB'] is None


def test_memory_that_a_run_takes_is_seen():
    big = compiled(lambda x: (jnp.exp(x) @ jnp.ones(4000)).sum(), jnp.ones((5000, 4000)))
    host = Contestant(lambda: np.ones(30_000_000).sum())
    small = Contestant(lambda: np.ones(1000).sum())
    rows = contest({'big': big, 'host': host, 'small': small}, 1, RATES)
    assert rows[0]['growth (MB)'] > 70
    assert 200 < rows[1]['growth (MB)'] < 300
    assert rows[2]['growth (MB)'] < 20


@pytest.mark.parametrize(
    'settings',
    [
        {'sections': 'speed'},
        {'sections': 'network', 'variants': 'ful'},
        {'sections': 'blocks', 'block_sizes': '96'},
        {'sections': 'network', 'image_sizes': '0x3'},
        {'sections': 'network', 'dtypes': 'float23'},
        {'sections': 'network', 'variants': ''},
        {'sections': 'blocks,reference', 'reference_step_sizes': '33'},
    ],
)
def test_bad_settings_are_named_before_anything_is_measured(settings, tmp_path, monkeypatch):
    monkeypatch.setattr('ann_jax.benchmark.peak', lambda config: pytest.fail('measured'))
    with pytest.raises(ConfigError, match='benchmark'):
        benchmark(small(**settings), tmp_path)


def test_what_a_section_would_leave_out_is_refused(tmp_path):
    config = small(sections='step')
    config.train.accumulate = 2
    with pytest.raises(ConfigError, match='train.accumulate=2: .* leave it at 1'):
        benchmark(config, tmp_path)
    config = small(sections='blocks,stream')
    config.dataset.bands = '1,2,3,4'
    with pytest.raises(ConfigError, match='stream of benchmark.sections measure networks for RGB'):
        benchmark(config, tmp_path)


def test_a_stream_without_a_reference_of_its_network_is_measured_alone(tmp_path, caplog):
    pytest.importorskip('torch')
    config = small(sections='stream', rounds=1, stream_images=2, stream_sizes='33x41', stream_batch=1)
    config.model.depth = 10
    benchmark(config, tmp_path)
    (row,) = json.loads((tmp_path / 'benchmark.json').read_text())['stream']
    assert row['contestant'] == 'ann_jax 33x41, one by one' and 'without PyTorch' in caplog.text


def test_sections_are_described():
    assert set(SECTIONS) == {
        'peak',
        'blocks',
        'network',
        'step',
        'input',
        'loss',
        'dilation',
        'reference',
        'stream',
    }
