"""What is said about accelerators and their memory, which programs are kept, and traces of steps."""

import json
import logging
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ann_jax import build
from ann_jax.config import defaults, validate
from ann_jax.errors import ConfigError
from ann_jax.modes import memory
from ann_jax.parallel import accelerators, programs
from ann_jax.parallel.mesh import check_batch_size, make_mesh
from ann_jax.parallel.programs import jit
from ann_jax.runs.history import flat
from ann_jax.runs.profile import Trace, parse_steps
from ann_jax.tools import accelerator_check
from configs import cityscapes


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with device files, on which jax was asked for `platforms` and found an accelerator or not."""

    def make(*files, platforms=None, accelerator=False):
        devices = tmp_path / 'dev'
        devices.mkdir()
        for name in files:
            (devices / name).touch()
        monkeypatch.setattr(accelerators, '_DEVICES', devices)
        monkeypatch.setattr(accelerators, 'has_accelerator', lambda: accelerator)
        jax.config.update('jax_platforms', platforms)

    before = jax.config.jax_platforms
    yield make
    jax.config.update('jax_platforms', before)


@pytest.mark.parametrize(
    ('files', 'platforms', 'accelerator', 'said'),
    [
        (
            ['nvidia0', 'nvidiactl'],
            None,
            False,
            "an NVIDIA GPU, .*pip install 'jax\\[cuda12\\]'.*=cuda python",
        ),
        (['kfd'], '', False, 'an AMD GPU, .*rocm'),
        (['accel0'], None, False, "a TPU, .*'jax\\[tpu\\]'"),
        (['nvidia0'], 'cuda,cpu', False, 'an NVIDIA GPU'),
        (['nvidia0'], 'cpu', False, None),
        (['nvidia0'], None, True, None),
        (['nvidiactl', 'null'], None, False, None),
    ],
)
def test_an_accelerator_that_is_not_used_is_told(files, platforms, accelerator, said, machine):
    machine(*files, platforms=platforms, accelerator=accelerator)
    line = accelerators.unused()
    assert re.search(said, line) and '\n' not in line if said else line == ''


@pytest.fixture
def kept(monkeypatch):
    """Folders that jax was told to keep programs in."""
    folders = []
    monkeypatch.setattr(jax.config, 'update', lambda key, value: folders.append(value))
    return folders


@pytest.mark.parametrize(
    ('setting', 'accelerator', 'folder'),
    [
        ('auto', True, '{home}/cache/ann_jax/programs'),
        ('auto', False, None),
        ('', True, None),
        ('~/mine', False, '{home}/mine'),
    ],
)
def test_programs_are_kept_beside_accelerators(setting, accelerator, folder, kept, monkeypatch, tmp_path):
    monkeypatch.setattr(accelerators, 'has_accelerator', lambda: accelerator)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    accelerators.keep_programs(setting)
    assert kept == ([folder.format(home=tmp_path)] if folder else [])


@pytest.mark.parametrize('setting', ['auto', ''])
def test_programs_are_kept_where_the_environment_says(setting, monkeypatch, tmp_path):
    monkeypatch.setattr(accelerators, 'has_accelerator', lambda: True)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update('jax_compilation_cache_dir', str(tmp_path))  # as JAX_COMPILATION_CACHE_DIR does
    try:
        accelerators.keep_programs(setting)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    finally:
        jax.config.update('jax_compilation_cache_dir', before)


def test_programs_used_longest_ago_are_removed(kept, monkeypatch, tmp_path):
    monkeypatch.setattr(accelerators, 'has_accelerator', lambda: True)
    monkeypatch.setattr(accelerators, '_KEPT_BYTES', 250)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    folder = tmp_path / 'ann_jax' / 'programs'
    folder.mkdir(parents=True)
    for age, name in enumerate(('new', 'used', 'old', 'oldest')):
        (folder / name).write_bytes(bytes(100))
        os.utime(folder / name, (1e9 - age, 1e9 - 10 * age))
    accelerators.keep_programs('auto')
    assert sorted(path.name for path in folder.iterdir()) == ['new', 'used']


@pytest.mark.parametrize(
    ('mode', 'flags', 'devices', 'cures'),
    [
        ('train', {}, 1, {'train.accumulate': '2', 'model.remat': '2,3,4,5'}),
        ('train', {'train.accumulate': 4}, 1, {'train.accumulate': '8', 'model.remat': '2,3,4,5'}),
        ('train', {'model.remat': (2, 3, 4, 5)}, 8, {'mesh.space': '2'}),
        ('train', {'mesh.data': 4}, 4, {'mesh.space': '2', 'mesh.data': '-1'}),
        ('train', {'mesh.data': 2, 'mesh.space': -1}, 8, {'mesh.space': '8', 'mesh.data': '-1'}),
        ('evaluate', {}, 1, {'eval.crop': '769,769', 'eval.stride': '513,513', 'model.dtype': 'bfloat16'}),
        ('evaluate', {'eval.batch_size': 8}, 4, {'eval.batch_size': '4'}),
        ('predict', {'predict.batch_size': 4, 'model.dtype': 'bfloat16'}, 1, {'predict.batch_size': '1'}),
    ],
)
def test_too_little_memory_names_settings_that_need_less(mode, flags, devices, cures, monkeypatch):
    monkeypatch.setattr(jax, 'device_count', lambda: devices)
    monkeypatch.setattr(jax, 'local_device_count', lambda: devices)
    config = cityscapes.get_config()
    config.update_from_flattened_dict({'train.batch_size': 8, **flags})
    error = jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory\nallocating 3 bytes.')
    line = memory.exhausted(error, mode, config)
    assert line.startswith('the memory of a device does not suffice (RESOURCE_EXHAUSTED: Out of memory alloc')
    assert '\n' not in line
    flags = re.findall(r'--config\.([\w.]+)=([\w.,-]+)', line)
    named = {key: value.rstrip(',') for key, value in flags}
    assert named.items() >= cures.items()
    for key, value in named.items():  # what is named can be set
        old = flat(config.to_dict())[key]
        new = tuple(map(int, value.split(','))) if isinstance(old, tuple) else type(old)(value)
        config.update_from_flattened_dict({key: new})
    validate(config)
    mesh = build.mesh(config, jax.devices()[:devices])
    check_batch_size(config.train.batch_size, mesh, 'train.batch_size', config.train.accumulate)
    check_batch_size(config.eval.batch_size or mesh.shape['data'], mesh, 'eval.batch_size')
    assert ('769,769' in line and '8 (' in line) or mode != 'train'


@pytest.mark.parametrize(
    ('mode', 'flags', 'devices'),
    [('train', {'mesh.data': 1, 'mesh.space': -1}, 4), ('train', {'mesh.space': 2}, 6), ('explain', {}, 4)],
)
def test_no_cure_is_named_that_does_not_work(mode, flags, devices, monkeypatch):
    monkeypatch.setattr(jax, 'device_count', lambda: devices)
    monkeypatch.setattr(jax, 'local_device_count', lambda: devices)
    config = cityscapes.get_config()
    config.update_from_flattened_dict({'eval.batch_size': 8, **flags})
    line = memory.exhausted(jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED'), mode, config)
    assert line and 'mesh.' not in line and 'batch_size=' not in line


def test_other_errors_are_left_alone():
    config = defaults()
    assert memory.exhausted(jax.errors.JaxRuntimeError('INTERNAL: x'), 'train', config) == ''
    assert memory.exhausted(ValueError('out of memory'), 'train', config) == ''


def test_deterministic_programs_of_a_gpu_are_compiled_so(monkeypatch):
    seen = []
    monkeypatch.setattr(jax, 'jit', lambda function, **options: seen.append(options['compiler_options']))

    monkeypatch.setattr(programs, 'compiler_options', lambda device: {'for': device.platform})

    class Devices:
        flat = [type('Device', (), {'platform': 'gpu', 'process_index': 0})()]

    mesh = type('Mesh', (), {'devices': Devices})()
    for deterministic in (False, True):
        jit(jnp.sum, mesh, deterministic=deterministic)
    assert seen == [{'for': 'gpu'}, {'for': 'gpu', 'xla_gpu_deterministic_ops': True}]
    monkeypatch.undo()
    plain, strict = (jit(jnp.cos, make_mesh(jax.devices()[:1]), deterministic=d) for d in (False, True))
    assert plain(jnp.ones(3)).tolist() == strict(jnp.ones(3)).tolist()


@pytest.mark.parametrize('text', ['10', '0:3', '5:4', 'a:b', '1:2:3', '-1:2', ':4'])
def test_steps_to_trace_are_a_range(text):
    assert list(parse_steps('3:5')) == [3, 4, 5] and not parse_steps('')
    config = defaults()
    config.profile.steps = text
    with pytest.raises(ConfigError, match=f"profile.steps='{text}': must be FIRST:LAST"):
        validate(config)


def test_a_trace_holds_its_steps(tmp_path, caplog):
    trace = Trace(tmp_path / 'profile', parse_steps('2:3'))
    with caplog.at_level(logging.INFO):
        for number in range(1, 5):
            with trace.step(number):
                result = jnp.ones(8) * number
            trace.stepped(number, result)
            assert bool(list(tmp_path.rglob('*.xplane.pb'))) == (number >= 3)
        trace.close()
    assert 'steps 2 to 3 are traced in' in caplog.text


def test_the_check_compares_with_the_cpu_and_reports_what_fails(monkeypatch, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for dtype in ('float32', 'bfloat16'):
        for function, *args in accelerator_check._functions(rng, dtype).values():
            assert max(accelerator_check._beside_cpu(function, args, rng)) == 0  # on the CPU itself
    assert accelerator_check._difference(np.ones(4), np.full(4, 2.0)) == 0.5

    def fails(small, folder):
        raise ValueError('no such kernel')

    rows = {
        'equality': lambda *_: [{'what': 'pooling', 'equal': False}, {'what': 'resizing', 'equal': True}],
        'blocks': fails,
        'camvid': lambda *_: [{'median (ms)': 1.0}],
    }
    monkeypatch.setattr(accelerator_check, 'PARTS', rows)
    assert accelerator_check.main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert 'error: blocks failed' in printed
    assert 'error: not what the CPU computes: pooling\n' in printed
    found = json.loads((tmp_path / 'check.json').read_text())
    assert found['camvid'] == [{'median (ms)': 1.0}]
    assert found['blocks'] == [{'error': 'ValueError: no such kernel'}]
    monkeypatch.setattr(accelerator_check, 'PARTS', {'equality': lambda *_: [{'what': 'x', 'equal': True}]})
    assert accelerator_check.main([str(tmp_path)]) == 0


def test_a_folder_that_cannot_be_made_ends_the_check_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(accelerator_check, 'PARTS', {'equality': lambda *_: pytest.fail('checked')})
    file = tmp_path / 'file'
    file.write_text('')
    with pytest.raises(SystemExit, match='error: cannot write .*file'):
        accelerator_check.main([str(file)])


def test_without_torch_the_check_times_this_package_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(accelerator_check.importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(accelerator_check, 'peak', lambda config: [{'GFLOP/s': 1.0}])
    named = lambda config, *_: [{'contestant': f'{config.benchmark.image_sizes} {config.model.dtype}'}]
    monkeypatch.setattr(accelerator_check.networks, 'network', named)
    monkeypatch.setattr(accelerator_check, '_alone', lambda name, *_: [{'contestant': name}])
    rows = accelerator_check.beside_torch(False, tmp_path)
    names = [row['contestant'] for row in rows]
    assert names[:2] == ['1024x2048 bfloat16', 'step'] and "pip install 'ann_jax[convert]'" in names[2]
