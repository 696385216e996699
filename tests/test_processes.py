"""Two real processes with two devices each: they train, stop together, and one process goes on."""

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from PIL import Image
from reference import QUICK
from trees import write_tree

from ann_jax.config import defaults
from ann_jax.errors import ConfigError, SaveError
from ann_jax.modes.alike import refuse_unlike
from ann_jax.parallel import processes

REPOSITORY = Path(__file__).parent.parent
SMALL = [
    '--config=configs/scenes.py:runlocal,variant=baseline',
    '--config.train.steps=30',
    '--config.train.eval_every=15',
    '--config.train.checkpoint_every=30',
    '--config.train.log_every=1',
    '--config.train.batch_size=4',
    '--config.dataset.scenes.train_count=9',
    '--config.augment.crop=33,49',
    # SGD, which does not blow up rounding: how many steps two processes take depends on the machine.
    '--config.optim.name=sgd',
    '--config.optim.learning_rate=0.01',
    '--config.optim.ema_decay=0.9',  # of which the scores are
    '--config.eval.limit=3',  # unequal shares
    '--config.eval.batch_size=4',
]


def start(environment, workdir, devices, *arguments, settings=SMALL):
    return subprocess.Popen(
        [sys.executable, '-m', 'ann_jax.main', *settings, f'--workdir={workdir}', *arguments],
        cwd=REPOSITORY,
        env=environment | {'XLA_FLAGS': f'{QUICK} --xla_force_host_platform_device_count={devices}'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 0, text
    return text


def losses(workdir):
    """Loss by step, from the log; of a step taken twice the later one."""
    text = (workdir / 'log.txt').read_text()
    return {int(step): float(loss) for step, loss in re.findall(r'step (\d+): loss ([\d.]+)', text)}


def scores(workdir):
    return dict(re.findall(r'step (\d+): mIoU ([\d.]+)', (workdir / 'log.txt').read_text()))


def files_of(folder):
    """Path -> content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def pair_flags():
    return [f'--coordinator=127.0.0.1:{free_port()}', '--process_count=2']


def test_two_processes_train_as_one_stop_together_and_one_resumes(environment, tmp_path):
    many, one = tmp_path / 'many', tmp_path / 'one'
    flags = pair_flags()
    pair = [start(environment, many, 2, *flags, f'--process_index={index}') for index in (0, 1)]
    try:
        deadline = time.time() + 300
        while not (many / 'log.txt').exists() or len(losses(many)) < 4:
            assert time.time() < deadline
            assert all(process.poll() is None for process in pair), [p.communicate()[0] for p in pair]
            time.sleep(0.05)
        pair[1].send_signal(signal.SIGTERM)  # to one of them only
        first, second = map(finish, pair)
    finally:
        for process in pair:
            process.kill()
    assert '2 of the devices' in (many / 'log-1.txt').read_text()
    stopped = int(re.search(r'stopped at step (\d+) of 30', first)[1])
    assert stopped < 30 and (many / 'checkpoints' / str(stopped)).is_dir()
    assert 'stopped at' not in second and 'step/s' not in second  # process 0 speaks for both

    assert f'resuming from step {stopped}' in finish(start(environment, many, 1))
    finish(start(environment, one, 1))
    assert losses(many).keys() == losses(one).keys() == set(range(1, 31))
    np.testing.assert_allclose([*losses(many).values()], [*losses(one).values()], rtol=1e-4)
    assert scores(many).keys() == scores(one).keys() == {'15', '30'}
    np.testing.assert_allclose(
        [*map(float, scores(many).values())], [*map(float, scores(one).values())], atol=0.05
    )


def test_processes_with_other_settings_are_refused_before_the_first_step(environment, tmp_path):
    flags = pair_flags()
    other = {1: ['--config.optim.learning_rate=0.5', '--config.loader.threads=3']}  # the second may differ
    pair = [
        start(environment, tmp_path / 'run', 1, *flags, f'--process_index={i}', *other.get(i, ()))
        for i in (0, 1)
    ]
    for text in [process.communicate(timeout=300)[0] for process in pair]:
        (error,) = re.findall('error: (.*)', text)
        assert error.startswith(
            'optim.learning_rate: 0.01 in process 0, but 0.5 in process 1: start the same'
        )
    assert not (tmp_path / 'run' / 'checkpoints').exists()


class Files(list):
    """A source of image files."""

    def image_files(self):
        return self


@pytest.mark.parametrize(
    ('here', 'there', 'what'),
    [
        (['/a/1.png', '/a/2.png'], ['/b/1.png', '/b/2.png'], None),
        (['/a/1.png', '/a/2.png'], ['/a/1.png'], 'number of images to evaluate: 2 in process 0, but 1 in'),
        (['/a/1.png', '/a/2.png'], ['/a/2.png', '/a/1.png'], 'checksum of the names of the images to eval'),
    ],
)
def test_processes_with_other_images_are_refused(here, there, what, monkeypatch):
    sent = []

    def alone(x):
        sent.append(x)
        return x[None]

    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(multihost_utils, 'process_allgather', alone)
    refuse_unlike(defaults(), evaluate=Files(there))
    other = sent[1].tobytes()

    def gather(x):
        if x.ndim == 0:
            return np.array([x, len(other)])
        return np.stack([x, np.frombuffer(other.ljust(len(x)), np.uint8)])

    monkeypatch.setattr(multihost_utils, 'process_allgather', gather)
    with pytest.raises(ConfigError, match=what) if what else contextlib.nullcontext():
        refuse_unlike(defaults(), evaluate=Files(here))


@pytest.mark.slow
def test_rows_over_the_devices_of_each_process_and_another_mesh_goes_on(environment, tmp_path):
    """Two processes of two devices, which share the rows of an image; then one process of four."""
    many, one = tmp_path / 'many', tmp_path / 'one'
    short = [
        *SMALL,
        '--config.train.steps=6',
        '--config.train.eval_every=3',
        '--config.train.checkpoint_every=3',
    ]
    flags = [*pair_flags(), '--config.mesh.space=2']
    pair = [start(environment, many, 2, *flags, f'--process_index={i}', settings=short) for i in (0, 1)]
    for process in pair:
        finish(process)
    assert "mesh {'data': 2, 'space': 2}" in (many / 'log-1.txt').read_text()
    finish(start(environment, one, 1, settings=short))
    np.testing.assert_allclose([*losses(many).values()], [*losses(one).values()], rtol=1e-4)
    np.testing.assert_allclose(
        [*map(float, scores(many).values())], [*map(float, scores(one).values())], atol=0.05
    )

    shutil.rmtree(many / 'checkpoints' / '6')
    text = finish(start(environment, many, 4, '--config.mesh.space=4', settings=short))
    assert 'resuming from step 3' in text
    np.testing.assert_allclose([*losses(many).values()], [*losses(one).values()], rtol=1e-4)


@pytest.mark.slow
def test_evaluation_by_two_processes_equals_one_to_the_last_bit(environment, tmp_path):
    """Images of several sizes, in windows and at two scales; the last batch is not full."""
    files = write_tree('camvid', tmp_path / 'data', num_train=4, num_val=5, size=(70, 90))
    sizes = [(70, 90), (90, 130), (64, 64), (150, 80), (70, 200)]
    for (image, label, *_), size in zip(files['val'], sizes, strict=True):
        rng = np.random.default_rng(size)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(image)
        Image.fromarray(rng.integers(0, 11, size, np.uint8)).save(label)
    settings = [
        '--config=configs/camvid.py:runlocal,variant=apnb',
        f'--config.dataset.root={tmp_path / "data"}',
        '--config.train.steps=1',
        '--config.eval.limit=0',
        '--config.eval.batch_size=4',
    ]
    evaluate = [
        *('--mode=evaluate', '--config.eval.crop=65,65', '--config.eval.stride=43,43'),
        '--config.eval.scales=0.75,1.0',
    ]
    run = tmp_path / 'run'
    finish(start(environment, run, 1, settings=settings))
    finish(start(environment, run, 1, *evaluate, settings=settings))
    (metrics,) = run.glob('metrics-*.json')
    expected = json.loads(metrics.read_text())
    metrics.unlink()
    flags = [*evaluate, *pair_flags()]
    pair = [start(environment, run, 2, *flags, f'--process_index={i}', settings=settings) for i in (0, 1)]
    for process in pair:
        finish(process)
    assert json.loads(metrics.read_text()) == expected

    images = tmp_path / 'data' / 'images' / 'val'
    segment = ['--mode=predict', f'--config.predict.input={images}', '--config.predict.write=ids']
    finish(start(environment, run, 1, *segment, f'--config.predict.output={tmp_path}/one', settings=settings))
    flags = [*segment, f'--config.predict.output={tmp_path}/many', *pair_flags()]
    pair = [start(environment, run, 2, *flags, f'--process_index={i}', settings=settings) for i in (0, 1)]
    for process, count in zip(pair, (3, 2), strict=True):
        assert f'{count} of {count} images segmented' in finish(process)
    assert len(files_of(tmp_path / 'one')) == 5 and files_of(tmp_path / 'one') == files_of(tmp_path / 'many')

    flags = ['--mode=export', *pair_flags()]
    pair = [start(environment, run, 2, *flags, f'--process_index={i}', settings=settings) for i in (0, 1)]
    for process in pair:
        assert 'error: --mode=export is for one process' in process.communicate(timeout=300)[0]
        assert process.returncode == 1


def test_half_a_description_of_the_processes_is_refused(monkeypatch):
    monkeypatch.delenv('JAX_COORDINATOR_ADDRESS', raising=False)
    monkeypatch.setenv('JAX_NUM_PROCESSES', '2')
    with pytest.raises(ConfigError, match='need --coordinator and --process_index too'):
        processes.join()
    monkeypatch.delenv('JAX_NUM_PROCESSES')
    assert not processes.join()


@pytest.mark.parametrize('address', ['head', 'head:', ':8476', '10.0.0.2:99999', '10.0.0.2:0', 'head:http'])
def test_an_address_without_a_possible_port_is_refused(monkeypatch, address):
    monkeypatch.setattr(jax.distributed, 'initialize', lambda *args, **more: pytest.fail('would wait'))
    with pytest.raises(ConfigError, match=f'--coordinator={address}: must be HOST:PORT'):
        processes.join(address, 2, 0)


def test_auto_asks_the_machine(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, 'initialize', lambda *args: asked.append(args))
    assert not processes.join('auto')
    assert asked == [(None,)]


GLOO = (
    'UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]:'
)
BARRIER = (
    'DEADLINE_EXCEEDED: Barrier timed out. Id: step_2. This usually happens because a task triggered the '
    'barrier too early or too slowly. # of tasks that reached the barrier: 2/4. The first task at the '
    'barrier: /job:jax_worker/replica:0/task:0. Some timed out task names:\n'
    '/job:jax_worker/replica:0/task:2\n'
)


@pytest.mark.parametrize(
    ('text', 'index', 'count', 'who'),
    [
        (f'{GLOO}13491: Connection reset by peer', 0, 2, 'process 1 of 2'),
        (f'{GLOO}13491: Connection reset by peer', 2, 3, 'one of the 3 processes'),
        ('UNKNOWN: Gloo AllGather failed: Connection closed by peer', 1, 2, 'process 0 of 2'),
        (BARRIER, 1, 4, 'process 2 of 4'),
        ('UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n'
         '/job:jax_worker/replica:0/task:3', 1, 4, 'process 3 of 4'),
        ('UNAVAILABLE: Failed to send RPC to coordination service.', 1, 2, 'process 0 of 2'),
    ],
)  # fmt: skip
def test_the_end_of_another_process_is_recognised(text, index, count, who):
    error = jax.errors.JaxRuntimeError(text)
    # From the first call of a program, jax raises a ValueError.
    for raised in (error, ValueError(text), caused(SaveError('cannot save a checkpoint. Free space'), error)):
        said = processes.lost(raised, index, count)
        assert said.startswith(f'{who} is gone') and 'the same command again in all processes' in said
        assert '\n' not in said
    assert not processes.lost(error, 0, 1)


@pytest.mark.parametrize(
    'error',
    [
        jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 5368709120 bytes.'),
        ConfigError('hf://a/b: connection refused'),
        OSError('Connection reset by peer'),
        SaveError('cannot write x: No space left on device'),
    ],
)
def test_other_errors_are_not_taken_for_it(error):
    assert not processes.lost(caused(ValueError('x'), error), 0, 2)


def caused(error, cause):
    error.__cause__ = cause
    return error
