"""The command as a user runs it: train, resume, evaluate, check, and what wrong input prints."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from trees import write_tree

from ann_jax.runs.lock import lock

REPOSITORY = Path(__file__).parent.parent
TINY = [
    '--config.train.steps=6',
    '--config.train.eval_every=4',
    '--config.train.checkpoint_every=2',
    '--config.train.log_every=1',
    '--config.dataset.scenes.train_count=5',
    '--config.eval.limit=3',
]


def command(config, *arguments):
    return [sys.executable, '-m', 'ann_jax.main', f'--config=configs/{config}', *arguments]


@pytest.fixture(scope='module')
def run(environment):
    def run(config, *arguments):
        return subprocess.run(
            command(config, *arguments),
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
        )

    return run


@pytest.fixture(scope='module')
def finished(run, tmp_path_factory):
    """A run of six steps, and what it printed."""
    workdir = tmp_path_factory.mktemp('runs') / 'scenes'
    result = run('scenes.py:runlocal', f'--workdir={workdir}', *TINY)
    assert result.returncode == 0, result.stderr
    return workdir, result


def parameters(workdir, step):
    restored = ocp.StandardCheckpointer().restore(workdir / 'checkpoints' / str(step) / 'state')
    return restored['params'], restored['batch_stats'], restored['opt_state']


def test_a_run_leaves_table_scores_pictures_events_and_checkpoints(finished):
    workdir, result = finished
    for word in ('moving car', 'mean', 'pixel accuracy', 'best checkpoint'):
        assert word in result.stdout
    assert '6/6' in result.stderr and 'step/s' in result.stderr
    scores = json.loads((workdir / 'metrics.json').read_text())
    assert scores['step'] == 6 and 0 < scores['miou'] < 1 and len(scores['iou']) == 17
    assert json.loads((workdir / 'config.json').read_text())['train']['steps'] == 6
    assert list((workdir / 'tensorboard').glob('events*'))
    pictures = list((workdir / 'pictures').glob('*.png'))
    assert len(pictures) == 2
    with Image.open(pictures[0]) as picture:
        width, height = picture.size
    assert width == 2 * 192 + 4 and height > 2 * 96  # image and truth, prediction and errors, and a legend
    assert (
        f'report: {workdir}/report.html' in result.stdout or "pip install 'ann_jax[report]'" in result.stdout
    )
    assert len(list((workdir / 'samples/images').iterdir())) == 3  # for the command that is printed
    assert f'--config.predict.truth={workdir}/samples/labels' in result.stdout
    steps = {int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit()}
    assert steps >= {4, 6}


def test_event_files_are_readable(finished):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = accumulator.EventAccumulator(str(finished[0] / 'tensorboard'))
    events.Reload()
    losses = events.Scalars('train/loss')
    assert [event.step for event in losses] == [1, 2, 3, 4, 5, 6]
    assert np.isfinite([event.value for event in losses]).all()
    for name in ('seconds_per_step', 'seconds_waiting'):
        values = [event.value for event in events.Scalars(f'train/{name}')]
        assert values and min(values) >= 0
    assert {'val/miou', 'val/iou/sky', 'val/iou/moving_car'} <= set(events.Tags()['scalars'])
    assert 'illegal' not in finished[1].stderr + finished[1].stdout  # of the name of a curve
    rates = [event.value for event in events.Scalars('train/learning_rate')]
    cosine = [0.001 * (1 + np.cos(np.pi * i / 4)) for i in range(4)]
    np.testing.assert_allclose(rates, [0, 0.001, *cosine], rtol=1e-6)


def test_the_same_command_does_nothing_more_and_evaluate_gives_the_best_score(finished, run):
    workdir, _ = finished
    again = run('scenes.py:runlocal', f'--workdir={workdir}', *TINY)
    assert again.returncode == 0 and 'is at step 6 of 6' in again.stdout
    trained = json.loads((workdir / 'metrics.json').read_text())
    result = run('scenes.py:runlocal', f'--workdir={workdir}', *TINY, '--mode=evaluate')
    assert result.returncode == 0, result.stderr
    evaluated = json.loads((workdir / 'metrics.json').read_text())
    assert evaluated['step'] in (4, 6) and evaluated['miou'] >= trained['miou']
    if evaluated['step'] == 6:
        assert evaluated == trained


def test_kill_and_resume_equals_a_run_without_a_break(finished, run, environment, tmp_path):
    """Parameters, statistics and velocity after kill -9, damage and resume are those of one run, bitwise."""
    workdir = tmp_path / 'killed'
    arguments = ('scenes.py:runlocal', f'--workdir={workdir}', *TINY)
    process = subprocess.Popen(
        command(*arguments),
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 300
    while not (workdir / 'checkpoints' / '2').is_dir() and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (workdir / 'checkpoints' / '6').is_dir(), 'the run ended before it was killed'
    (workdir / 'checkpoints' / '5').mkdir()  # a damaged checkpoint in the way, of a step that is saved again
    result = run(*arguments, '--config.train.checkpoint_every=1')
    assert result.returncode == 0 and 'resuming from step' in result.stderr, result.stderr
    assert 'checkpoints/5 is damaged' in result.stderr and (workdir / 'checkpoints' / 'damaged.5').is_dir()
    for one, other in zip(parameters(finished[0], 6), parameters(workdir, 6), strict=True):
        flat = lambda tree: [x for _, x in sorted(_leaves(tree))]
        for a, b in zip(flat(one), flat(other), strict=True):
            np.testing.assert_array_equal(a, b)


def signalled(environment, arguments, sign, number):
    """Starts a run, sends it and its workers a signal at a sign in its log, and gives what it printed."""
    process = subprocess.Popen(
        command(*arguments),
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    text = ''
    while sign not in text:
        character = process.stdout.read(1)
        assert character, text
        text += character
    os.killpg(process.pid, number)
    return process, text + process.communicate(timeout=200)[0]


def test_sigterm_and_ctrl_c_leave_a_checkpoint_and_the_run_resumes_bit_for_bit(
    finished, run, environment, tmp_path
):
    """Stopped in compilation, then in evaluation; other numbers of workers; the result is that of one run."""
    workdir = tmp_path / 'stopped'
    arguments = ('scenes.py:runlocal', f'--workdir={workdir}', *TINY)
    fresh = environment | {'JAX_COMPILATION_CACHE_DIR': ''}  # so that there is time to hit the compilation
    process, text = signalled(fresh, arguments, 'parameters', signal.SIGTERM)
    assert process.returncode == 0, text
    assert 'SIGTERM' in text and 'the same command resumes' in text
    assert text.index('SIGTERM') < text.index('compiled the step')
    stopped = re.search(r'(?m)^stopped at step (\d) of 6', text)  # on a line of its own, not behind the bar
    assert stopped and int(stopped[1]) < 4, text

    arguments = (*arguments, '--config.loader.workers=2')
    process, text = signalled(environment, arguments, 'evaluate:', signal.SIGINT)
    assert process.returncode == 0 and 'stopped at step 4 of 6' in text, text

    result = run(*arguments)
    assert result.returncode == 0 and 'resuming from step 4' in result.stderr, result.stderr
    assert json.loads((workdir / 'checkpoints' / 'scores.json').read_text()).keys() == {'4', '6'}
    for one, other in zip(parameters(finished[0], 6), parameters(workdir, 6), strict=True):
        for (_, a), (_, b) in zip(sorted(_leaves(one)), sorted(_leaves(other)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_output_may_go_to_any_stream(environment):
    """In a notebook sys.stdout is no file."""
    program = (
        'import contextlib, io, runpy, sys\n'
        'with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n'
        "    runpy.run_module('ann_jax.main', run_name='__main__')\n"
        'print(out.getvalue())'
    )
    arguments = command('scenes.py:runlocal', '--mode=check', '--config.dataset.scenes.train_count=2')[3:]
    result = subprocess.run(
        [sys.executable, '-c', program, *arguments],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert 'usable: no problems' in result.stdout, result.stderr


def test_the_log_tells_what_happened(finished):
    text = (finished[0] / 'log.txt').read_text()
    for word in (
        f'jax {jax.__version__}', 'mesh', 'config {', '5 images to train on, 3 to evaluate',
        'compiled the step in', 'waiting for data', 'saved in', 'step 6: loss', 'mIoU', 'finished',
    ):  # fmt: skip
        assert word in text, word


def test_a_second_run_in_the_same_workdir_is_refused(finished, run):
    with lock(finished[0]):
        result = run('scenes.py:runlocal', f'--workdir={finished[0]}', *TINY)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ') and f'in use by another run (process {os.getpid()} on' in last


def test_a_loss_that_is_not_finite_stops_with_step_samples_and_last_good_checkpoint(run, tmp_path):
    arguments = ('scenes.py:runlocal', f'--workdir={tmp_path / "run"}', *TINY)
    settings = '--config.optim.learning_rate=1e30', '--config.optim.warmup_steps=0'
    result = run(*arguments, *settings, '--config.train.checkpoint_every=1')
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    for text in (
        'error: the loss is',
        'at step 2, of the samples',
        'checkpoint is at step 1',
        'not_finite=skip',
    ):
        assert text in last
    assert 'FloatingPointError' in (tmp_path / 'run' / 'log.txt').read_text()


def _leaves(tree, prefix=''):
    if isinstance(tree, dict):
        tree = tree.items()
    elif isinstance(tree, list | tuple):
        tree = enumerate(tree)
    else:
        return [(prefix, np.asarray(tree))] if tree is not None else []
    return [leaf for key, value in tree for leaf in _leaves(value, f'{prefix}/{key}')]


def test_evaluate_uses_the_network_as_trained_and_resume_refuses_another(finished, run):
    workdir, _ = finished
    before = json.loads((workdir / 'metrics.json').read_text())
    arguments = ('scenes.py:runlocal,variant=apnb', f'--workdir={workdir}', *TINY)
    result = run(*arguments, '--config.model.sizes=1,2', '--mode=evaluate')
    assert result.returncode == 0, result.stderr
    assert 'as trained, not as given: model.variant: apnb -> full' in result.stderr
    after = json.loads((workdir / 'metrics.json').read_text())
    if after['step'] == before['step']:
        assert after == before
    result = run(*arguments, '--config.train.steps=8')
    assert result.returncode == 1 and 'model.variant: full -> apnb' in result.stderr
    assert json.loads((workdir / 'config.json').read_text())['model']['variant'] == 'full'


@pytest.mark.parametrize('name', ['cityscapes', 'ade20k', 'pascal_context', 'camvid'])
def test_training_starts_from_every_config_given_data(name, run, tmp_path):
    write_tree(name, tmp_path / 'data', num_train=3, num_val=2, size=(70, 90))
    result = run(
        f'{name}.py:runlocal,variant=baseline',
        f'--config.dataset.root={tmp_path / "data"}',
        f'--workdir={tmp_path / "run"}',
        '--config.train.steps=2',
        '--config.loader.workers=1',
    )
    assert result.returncode == 0, result.stderr
    scores = json.loads((tmp_path / 'run' / 'metrics.json').read_text())
    assert scores['step'] == 2 and scores['split'] == 'val'


def test_check_lists_every_bad_file(run, tmp_path):
    files = write_tree('camvid', tmp_path, num_train=4, num_val=2)
    root = f'--config.dataset.root={tmp_path}'
    assert run('camvid.py', root, '--mode=check').returncode == 0
    (cut, _, _), (_, lonely, _) = files['train'][0], files['train'][1]
    cut.write_bytes(cut.read_bytes()[:200])
    lonely.unlink()
    small = files['val'][0][1]
    Image.fromarray(np.full((5, 5), 3, np.uint8)).save(small)
    result = run('camvid.py', root, '--mode=check')
    assert result.returncode == 1
    for path in (cut, lonely, small):
        assert str(path) in result.stdout


@pytest.mark.parametrize(
    ('config', 'arguments', 'message'),
    [
        ('cityscapes.py', [], 'set --config.dataset.root'),
        ('cityscapes.py', ['--config.optim.learning_rat=1'], "did you mean 'optim.learning_rate'"),
        ('cityscapes.py', ['--config.optm.momentum=1'], "did you mean 'optim.momentum'"),
        (
            'scenes.py',
            ['--config.train.eval_every=0'],
            'train.eval_every=0: must be a whole number from 1',
        ),
        ('cityscapes.py:variant=apn', [], "did you mean 'apnb'"),
        ('scenes.py', ['--config.model.depth=77'], 'model.depth=77: must be one of 10'),
        ('scenes.py', ['--mode=evaluate', '--workdir=runs/absent'], 'holds no checkpoint'),
        ('absent.py', [], 'configs/absent.py'),
    ],
)
def test_wrong_input_ends_with_one_line(run, config, arguments, message, tmp_path):
    if not any('workdir' in argument for argument in arguments):
        arguments = [*arguments, f'--workdir={tmp_path}']
    result = run(config, *arguments)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ') and message in last
    assert 'Traceback' not in result.stderr


def test_a_bad_label_stops_training_and_names_file_and_cure(run, tmp_path):
    files = write_tree('camvid', tmp_path / 'data', num_train=2, size=(70, 90))
    bad = files['train'][1][1]
    Image.fromarray(np.full((70, 90), 77, np.uint8)).save(bad)
    result = run(
        'camvid.py:runlocal', f'--config.dataset.root={tmp_path / "data"}', f'--workdir={tmp_path / "run"}'
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ') and str(bad) in last and '77' in last
