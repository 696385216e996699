"""Runs and weights in a bucket: what a folder promises holds there, and a failing one is told in a line."""

import contextlib
import errno
import functools
import gc
import importlib.util
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bucket_server import Refusal
from small import small_folder

from ann_jax.buckets import conditional, copies, paths
from ann_jax.buckets.services import SERVICES, remote
from ann_jax.config import defaults, validate
from ann_jax.errors import ConfigError, DataError, SaveError
from ann_jax.files import replacing, write_json
from ann_jax.modes.setup import setup
from ann_jax.parallel import processes
from ann_jax.runs import lock as locks
from ann_jax.runs.checkpoints import Checkpoints
from ann_jax.runs.events import TensorBoard, read_scalars
from ann_jax.runs.lock import lock
from ann_jax.runs.log import log_file
from ann_jax.tools import export_checkpoint
from ann_jax.weights.converter import convert
from ann_jax.weights.opening import open_weights

# Not imported yet: `buckets` sets up what gcsfs reads when it is.
MISSING = {
    'gs': [name for name in ('gcsfs', 'google.cloud') if importlib.util.find_spec(name) is None],
    's3': [name for name in ('s3fs', 'botocore') if importlib.util.find_spec(name) is None],
}

# orbax leaves coroutines unawaited where reading or writing fails.
pytestmark = [
    pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
    pytest.mark.filterwarnings('ignore::ResourceWarning'),
]
REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope='module', params=['gs', 's3'])
def scheme(request):
    """What a path in a bucket begins with."""
    if missing := MISSING[request.param]:
        pytest.skip(f'{", ".join(missing)} is not installed')
    return request.param


@pytest.fixture(scope='module')
def address(scheme):
    """Variables that name the storage of this machine, in the place of Google's and Amazon's own."""
    if scheme == 'gs':
        return {'STORAGE_EMULATOR_HOST': ''}
    return {'AWS_ENDPOINT_URL': '', 'AWS_ACCESS_KEY_ID': 'me', 'AWS_SECRET_ACCESS_KEY': 'mine'}


@pytest.fixture(scope='module')
def server(scheme, address):
    """A bucket on this machine, for as long as the module runs."""
    if scheme == 'gs':
        from bucket_server import BucketServer as Server
    else:
        from amazon_server import AmazonServer as Server
    with Server() as running, pytest.MonkeyPatch.context() as patch:
        address[next(iter(address))] = running.url
        for name, value in address.items():
            patch.setenv(name, value)
        patch.delenv('EPATH_USE_TF', raising=False)
        yield running
        gc.collect()


@pytest.fixture
def run(server, scheme, request):
    """A new folder in the bucket."""
    server.before = lambda method, name: None
    return paths.place(f'{scheme}://bucket/{request.node.originalname}')


def refusing(status, text=''):
    def refuse(method, name):
        raise Refusal(status, text)

    return refuse


# --- Paths and files


@pytest.mark.parametrize(
    ('path', 'said'),
    [
        ('{0}://bucket', r'^{0}://bucket: name a folder in the bucket, as in {0}://bucket/run$'),
        (
            '{0}://absent/run',
            r'^{0}://absent cannot be used: there is no such bucket.* \(404.*: create the bucket',
        ),
    ],
)
def test_what_cannot_hold_a_run_is_refused(path, said, server, scheme):
    with pytest.raises(ConfigError, match=said.format(scheme)) as raised:
        paths.place(path.format(scheme))
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize('path', ['az://bucket/run', 'GS://bucket/run'])
def test_other_storage_is_mounted(path):
    said = rf'^{path}: only gs://BUCKET/NAME .*Google.* and s3://.*Amazon S3.* can be used: mount other '
    with pytest.raises(ConfigError, match=said):
        paths.place(path)


def test_a_path_of_this_machine_stays_one():
    assert paths.place('~/a') == Path.home() / 'a' and paths.place(Path('b/c')) == Path('b/c')
    assert not remote(paths.place('gs')) and copies.fetched('a/*.png') == 'a/*.png'


@pytest.mark.parametrize(
    ('status', 'said'),
    [
        (403, r'refuses this account \(403; .*(grant it roles/|allow it s3:ListBucket)'),
        (401, r'no credentials that work .*: run (gcloud auth|aws configure)'),
    ],
)
def test_a_bucket_that_refuses_is_told_in_one_line(status, said, server, run):
    paths._open.cache_clear()
    server.before = refusing(status, 'trainer@x does not have storage.objects.list access')
    with pytest.raises(ConfigError, match=said) as raised:
        paths.place(run)
    assert '\n' not in str(raised.value)


def test_a_bucket_that_is_slow_or_silent_is_told(server, run, scheme, monkeypatch, caplog):
    paths._open.cache_clear()
    monkeypatch.setattr(paths, '_SLOW', 0.1)
    server.before = lambda method, name: time.sleep(0.2)
    with caplog.at_level(logging.WARNING):
        paths.place(run)
    assert re.search(r'took 0\.[2-9] s to answer.*: use a bucket in the region', caplog.text)
    paths._open.cache_clear()
    service = SERVICES[scheme][0]
    monkeypatch.setattr(service, 'TIMEOUT', 0.1)
    service.client.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r'does not answer .*: check the network'):
            paths.place(run)
    finally:
        service.client.cache_clear()


def test_files_are_whole_or_absent(server, run):
    big = os.urandom(6_000_000)  # more than one request
    with replacing(run / 'a b' / 'ü.bin') as draft:
        draft.write_bytes(big)
        assert not server.names('test_files')
    assert (run / 'a b' / 'ü.bin').read_bytes() == big
    with pytest.raises(KeyError), replacing(run / 'a b' / 'ü.bin') as draft:
        draft.write_text('half')
        raise KeyError
    assert (run / 'a b' / 'ü.bin').read_bytes() == big and len(server.names('test_files')) == 1
    assert Path(copies.fetched(f'{run}/a b'), 'ü.bin').read_bytes() == big
    with pytest.raises(DataError, match=r'/a b/\*\.bin: there is no such .*; in a bucket, name a folder'):
        copies.fetched(f'{run}/a b/*.bin')
    server.before = refusing(403)
    with pytest.raises(
        SaveError, match=r'cannot write (gs|s3)://.*c\.json: it refuses this account.*is intact$'
    ):
        write_json(run / 'c.json', {})


def test_no_object_leads_out_of_the_copy_of_its_folder(server, run):
    server.objects[f'{run.name}/photos/../../a.png'] = b'', 7
    with pytest.raises(
        DataError, match=r'cannot read .*/photos: \.\./\.\./a\.png in it leads out of its folder'
    ):
        copies.fetched(f'{run}/photos')


def test_what_needs_a_file_system_says_so(run):
    config = defaults()
    config.dataset.root = 'gs://bucket/records'
    with pytest.raises(ConfigError, match=r'dataset\.root=gs://bucket/records: .*mount the bucket'):
        validate(config)
    with pytest.raises(ConfigError, match='name a folder of this machine'):
        setup(defaults(), run)


# --- What a run keeps there


def test_a_second_run_is_refused_and_a_lost_lock_ends_the_first(server, run, monkeypatch, caplog):
    monkeypatch.setattr(locks, 'RENEWED', 0.05)
    monkeypatch.setattr(locks, 'GONE', 2)
    name = f'{run.name}/lock'
    with lock(run) as check:
        with pytest.raises(ConfigError, match=f'in use by another run .process {os.getpid()} on'), lock(run):
            pass
        check()
        assert 'cannot be locked' not in caplog.text
        server.objects[name] = b'process 7 on elsewhere\n', 7
        time.sleep(0.3)
        with pytest.raises(SaveError, match=r'taken over by another run .process 7 on elsewhere.'):
            check()
    assert server.objects[name][0].startswith(b'process 7')  # it is not ours to remove
    monkeypatch.setattr(locks, 'GONE', 0.3)
    with lock(run):  # the other one does not write it any more
        assert server.objects[name][0].startswith(b'process %d' % os.getpid())
    assert name not in server.objects


def test_storage_that_knows_no_conditions_is_told(server, scheme, run, monkeypatch, caplog):
    if scheme == 's3':
        monkeypatch.setattr(server, 'knows_conditions', False)
    else:
        write = SERVICES[scheme][0].write_if
        now = lambda bucket, name: SERVICES[scheme][0].read(bucket, name)[1]
        ignore = lambda bucket, name, text, _: write(bucket, name, text, now(bucket, name))
        monkeypatch.setattr(SERVICES[scheme][0], 'write_if', ignore)
    monkeypatch.setattr(locks, 'RENEWED', 0.05)
    monkeypatch.setattr(locks, 'GONE', 2)
    with lock(run) as check:
        assert f'{run} cannot be locked (its storage ignores conditions' in caplog.text
        with pytest.raises(ConfigError, match='in use by another run'), lock(run):
            pass  # a run that goes on is seen even so, but not one that starts at the same time
        check()
    assert not server.names(f'{run.name}/')


def test_the_lock_of_a_process_that_was_killed_here_is_taken_at_once(run, monkeypatch):
    ended = subprocess.Popen([sys.executable, '-c', ''])
    ended.wait()
    conditional.write_if(run / 'lock', f'process {ended.pid} on here\n{locks._machine()}\n', 0)
    monkeypatch.setattr(time, 'sleep', lambda _: pytest.fail('it waits'))
    with lock(run):
        pass


def test_of_two_writers_on_the_same_condition_one_fails(run):
    first = conditional.write_if(run / 'lock', 'a', 0)
    assert conditional.write_if(run / 'lock', 'a', 0) == first  # asked again: the first answer was lost
    for version in (0, first + 1 if isinstance(first, int) else first.upper()):
        with pytest.raises(conditional.Changed):
            conditional.write_if(run / 'lock', 'b', version)
    assert conditional.read(run / 'lock') == ('a', first)


def test_a_lock_that_is_released_meanwhile_is_taken(server, run, monkeypatch):
    monkeypatch.setattr(locks, 'GONE', 1)
    asked = []

    def release(method, name):
        asked.append(name)
        if len(asked) == 4:
            server.objects.pop(f'{run.name}/lock')

    conditional.write_if(run / 'lock', 'process 7 on elsewhere\n', 0)
    server.before = release
    with lock(run):
        assert server.objects[f'{run.name}/lock'][0].startswith(b'process %d' % os.getpid())


def test_the_log_goes_on_and_the_curves_come_back(server, run, monkeypatch):
    monkeypatch.setattr(copies, '_EVERY', 0.05)
    logger = logging.getLogger('ann_jax.modes.train')
    for number in (1, 2):
        with log_file(run), contextlib.closing(TensorBoard(run / 'tensorboard', number)) as events:
            logger.info('run %d', number)
            events.scalars(number, {'loss': 1 / number})
            time.sleep(1.1)  # files of one second would have one name
            assert f'run {number}' in (run / 'log.txt').read_bytes().decode()  # before it ends
    assert re.findall(r'run \d', (run / 'log.txt').read_text()) == ['run 1', 'run 2']
    assert read_scalars(run / 'tensorboard') == {'loss': {1: 1.0, 2: 0.5}}


def test_what_ctrl_c_cuts_short_is_as_it_was(server, run, tmp_path):
    write_json(run / 'weights', {})
    (tmp_path / 'weights').write_bytes(bytes(40_000_000))

    def interrupt(method, name):
        server.before = lambda method, name: None
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)

    server.before = interrupt
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background, it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            copies.upload(tmp_path / 'weights', run / 'weights')
    finally:
        signal.signal(signal.SIGINT, before)
    assert json.loads((run / 'weights').read_text()) == {}


def state(seed):
    rng = np.random.default_rng(seed)
    return {'params': {'w': jnp.asarray(rng.random(3000, np.float32)), 'b': jnp.zeros(3, jnp.bfloat16)}}


def saved(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, state(step), {'config': {}})
        checkpoints.score(step, step / 10)


def whole(checkpoints):
    return checkpoints.first_whole(checkpoints.steps, lambda step, _: checkpoints.restore(step, state(0)))


def test_a_bucket_that_fails_at_some_objects_damages_nothing(server, run):
    with contextlib.closing(Checkpoints(run)) as checkpoints:
        saved(checkpoints, 1, 2)

    def refuse(part, method, name):
        if method == 'GET' and part in name:
            raise Refusal(403, 'no')

    for part in ('2/state/d/', '2/state/manifest'):
        server.before = functools.partial(refuse, part)
        with contextlib.closing(Checkpoints(run)) as checkpoints:
            with pytest.raises(DataError, match=r'cannot read (gs|s3)://.*/2: it refuses this account \(403'):
                whole(checkpoints)
    server.before = functools.partial(refuse, 'scores.json')  # without which the best one would be removed
    with pytest.raises(
        DataError, match=r'cannot read (gs|s3)://.*/scores\.json: it refuses this account \(403'
    ):
        Checkpoints(run)


@pytest.fixture
def at_once(scheme, monkeypatch):
    """Lets what failed be asked again without a pause."""
    monkeypatch.setattr(time, 'sleep', lambda _: None)
    if scheme == 's3':
        monkeypatch.setattr('botocore.retries.standard.ExponentialBackoff.delay_amount', lambda *_: 0)


def test_what_was_left_of_a_removed_checkpoint_is_removed(server, run, at_once):
    with contextlib.closing(Checkpoints(run)) as checkpoints:
        saved(checkpoints, 1, 2)
    del server.objects[f'{run.name}/1/commit_success.txt']  # which a run does first, and was killed then
    half = set()

    def lose(method, name):
        if method == 'DELETE' and name not in half:
            half.add(name)
            server.objects.pop(name)
            raise Refusal(503, 'the answer is lost')

    with contextlib.closing(Checkpoints(run)) as checkpoints:
        assert checkpoints.steps == [2]
        server.before = lose
        saved(checkpoints, 3)
    assert half and not server.names(f'{run.name}/1/') and server.names(f'{run.name}/2/')


def test_a_process_that_saves_nothing_asks_nothing(server, run, monkeypatch):
    with contextlib.closing(Checkpoints(run)) as checkpoints:
        server.before = refusing(403)
        monkeypatch.setattr(processes, 'is_main', lambda: False)
        saved(checkpoints, 1, 2, 3)
        assert checkpoints.steps == [3, 2]


def test_a_bucket_that_is_overloaded_for_a_while_ends_no_run(server, run, at_once):
    refused = []

    def overloaded(method, name):
        if name.endswith('/commit_success.txt') and len(refused) < 5:
            refused.append(name)
            raise Refusal(503, 'later')

    with contextlib.closing(Checkpoints(run)) as checkpoints:
        server.before = overloaded
        saved(checkpoints, 1)
    assert len(refused) == 5 and f'{run.name}/1/commit_success.txt' in server.objects


def test_a_full_temporary_folder_is_told(server, run, monkeypatch, tmp_path):
    with contextlib.closing(Checkpoints(run)) as checkpoints:
        saved(checkpoints, 1)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = rf': No space left on device: {tmp_path}; free space there, or name another .* in TMPDIR'

    def fail(*_, **__):
        raise full

    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    with contextlib.closing(Checkpoints(run)) as checkpoints:
        monkeypatch.setattr(shutil, 'copyfileobj', fail)
        monkeypatch.setattr('google.cloud.storage.blob.Blob.download_to_filename', fail)
        with pytest.raises(DataError, match='cannot read .*/1' + said):
            whole(checkpoints)
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, 'mkdtemp', fail)
            with pytest.raises(DataError, match='cannot read .*/1' + said):
                whole(checkpoints)
            with pytest.raises(SaveError, match='cannot save a checkpoint .*No space left.* in TMPDIR, then'):
                saved(checkpoints, 2)
    with pytest.raises(SaveError, match='cannot write .*/a' + said), replacing(run / 'a'):
        raise full


@pytest.mark.parametrize('name', ['run#1', 'run?', 'run [1]', 'run*', 'a/../run'])
def test_names_that_the_libraries_misunderstand_hold_no_run(name, server, scheme):
    server.before = lambda method, name: None
    with pytest.raises(
        ConfigError, match=r'^(gs|s3)://bucket/.*mix up the checkpoints: name the run without$'
    ):
        Checkpoints(paths.place(f'{scheme}://bucket/{name}/checkpoints'))


def test_checkpoints_come_back_and_neither_damage_nor_half_of_one_nor_a_refusal_is_taken_for_one(
    server, run, caplog, monkeypatch
):
    with contextlib.closing(Checkpoints(run)) as checkpoints:
        saved(checkpoints, 1, 2, 3)
    names = server.names(f'{run.name}/3/')
    largest = max(names, key=lambda name: len(server.objects[name][0]))
    content, generation = server.objects[largest]
    server.objects[largest] = bytes(len(content)), generation
    for name in names:  # of a run that was killed just before the end of saving
        if not name.endswith('/3/commit_success.txt'):
            server.objects[name.replace('/3/', '/5/', 1)] = server.objects[name]
    with contextlib.closing(Checkpoints(run)) as checkpoints:
        assert checkpoints.steps == [3, 2] and checkpoints.best == 3
        with pytest.raises(DataError, match=r'/5 is not complete: it was being saved'):
            checkpoints.facts(5)
        server.before = refusing(403)
        with pytest.raises(DataError, match=r'cannot read (gs|s3)://.*/2: it refuses this account \(403'):
            checkpoints.restore(2, state(0))
        with pytest.raises(
            SaveError, match=r'cannot save a checkpoint to (gs|s3)://.*: it refuses .*are intact$'
        ):
            checkpoints.save(5, state(5), {'config': {}})
            for _ in range(100):  # it may fail in the background
                time.sleep(0.05)
                checkpoints.check()
        server.before = lambda method, name: None
        step, facts, content = whole(checkpoints)
        assert step == 2 and facts['config'] == {} and '/3 is damaged' in caplog.text
        np.testing.assert_array_equal(content['params']['w'], state(2)['params']['w'])
        checkpoints.set_aside([3])
        assert checkpoints.steps == [2] and server.names(f'{run.name}/damaged.3/')
        assert not server.names(f'{run.name}/3/')
    with contextlib.closing(Checkpoints(run)) as checkpoints:
        monkeypatch.setattr(paths, '_LONG', 0.2)
        server.before = lambda method, name: time.sleep(0.4 if name.endswith('/5/commit_success.txt') else 0)
        saved(checkpoints, 5)
    assert re.search(r'checkpoints.*: saving takes over .* s, and the run waits', caplog.text)
    with contextlib.closing(Checkpoints(run)) as checkpoints:
        server.before = lambda method, name: time.sleep(0.4 if '/5/state/d/' in name else 0)
        read = checkpoints.read(5, ['params'])['params']['w']
        assert 'reading takes over' in caplog.text
        server.before = lambda method, name: None
        np.testing.assert_array_equal(read, state(5)['params']['w'])
    del server.objects[max(server.names(f'{run.name}/5/'), key=lambda name: len(server.objects[name][0]))]
    with contextlib.closing(Checkpoints(run)) as checkpoints:
        assert whole(checkpoints)[0] == 2 and '/5 is damaged' in caplog.text


def test_weights_are_written_and_opened_there(server, run):
    written = []
    server.before = lambda method, name: method in ('POST', 'PUT') and written.append(name.rpartition('/')[2])
    saved = small_folder(run / 'weights')
    assert list(dict.fromkeys(written))[-3:] == [
        'README.md',
        'weights.safetensors',
        'model.json',
    ]  # which says that it is complete
    server.before = lambda method, name: None
    opened = open_weights(f'{run}/weights')
    assert opened.classes == saved.classes
    kernel = lambda weights: weights.variables['params']['backbone']['stem']['conv1']['kernel']
    np.testing.assert_array_equal(kernel(opened), kernel(saved))
    with pytest.raises(ConfigError, match=r'(gs|s3)://.*/weights exists: name a new folder'):
        small_folder(run / 'weights')
    assert opened.path == run / 'weights'
    export = [f'{run}/weights', '--layout=authors', '--out', f'{run}/ann.safetensors']
    export_checkpoint.main(export)
    with pytest.raises(SystemExit, match=r'^error: (gs|s3)://.*/ann\.safetensors exists: name another file'):
        export_checkpoint.main(export)
    assert not convert(f'{run}/ann.safetensors').notes
    with pytest.raises(DataError, match=r'^(gs|s3)://.*/weights/weights\.safetensors: not a known network'):
        convert(f'{run}/weights/weights.safetensors')
    # What lies beside a file is said of it there too.
    (run / 'ann.safetensors.sha256').write_text('0' * 64)
    with pytest.raises(DataError, match=r'but ann\.safetensors\.sha256 says 00000000: get it again'):
        convert(f'{run}/ann.safetensors')
    (run / 'ann.json').write_text(json.dumps({'ann_jax': {}, 'sha256': ''}))
    with pytest.raises(DataError, match=r'^(gs|s3)://.*/ann\.json describes another file than'):
        convert(f'{run}/ann.safetensors')
    server.before = refusing(400, 'no')
    with pytest.raises(DataError, match=r'^cannot read (gs|s3)://bucket/.*/weights: .*(no|Bad Request)'):
        open_weights(f'{run}/weights')
    server.before = lambda method, name: None
    name = f'{run.name}/weights/model.json'
    server.objects[name] = server.objects[name][0][:99], server.objects[name][1]
    with pytest.raises(DataError, match=r'^(gs|s3)://bucket/.*/weights is a damaged weights folder'):
        open_weights(f'{run}/weights')
    with pytest.raises(ConfigError, match=r'(gs|s3)://.*/absent holds no checkpoint and no model.json'):
        open_weights(f'{run}/absent')


# --- A whole run, slow


SMALL = [
    '--config=configs/scenes.py:runlocal,variant=baseline',
    '--config.train.steps=6',
    '--config.train.eval_every=6',
    '--config.train.checkpoint_every=2',
    '--config.train.log_every=1',
    '--config.train.batch_size=2',
    '--config.dataset.scenes.train_count=5',
    '--config.augment.crop=33,49',
    '--config.eval.limit=2',
]


@pytest.fixture
def start(server, address, environment):
    """Starts the processes of a run in the bucket."""
    started = []

    def start(workdir, *arguments, count=2):
        command = [sys.executable, '-m', 'ann_jax.main', f'--workdir={workdir}', *SMALL, *arguments]
        with socket.socket() as listener:
            listener.bind(('127.0.0.1', 0))
            flags = [f'--coordinator=127.0.0.1:{listener.getsockname()[1]}', f'--process_count={count}']
        for index in range(count):
            process = subprocess.Popen(
                command + ([*flags, f'--process_index={index}'] if count > 1 else []),
                cwd=REPOSITORY,
                env=environment | address,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            started.append(process)
        return started[-count:]

    yield start
    for process in started:
        process.kill()


def finished(processes):
    texts = [process.communicate(timeout=500)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), texts
    return texts[0]


def parameters(workdir):
    with contextlib.closing(Checkpoints(paths.place(workdir) / 'checkpoints')) as checkpoints:
        return jax.tree.leaves(checkpoints.read(6, ['params', 'batch_stats', 'opt_state']))


@pytest.mark.slow
def test_two_processes_are_killed_while_saving_and_resume_bit_for_bit(server, scheme, start):
    server.before = lambda method, name: None
    whole, killed = f'{scheme}://bucket/whole', f'{scheme}://bucket/killed'
    text = finished(start(whole))
    assert f'written to {whole}' in text and f'report: {whole}/report.html' in text
    for name in ('config.json', 'metrics.json', 'log.txt', 'log-1.txt', 'report.html'):
        assert server.objects[f'whole/{name}'][0], name
    assert 'whole/lock' not in server.objects and server.names('whole/pictures/')
    curves = read_scalars(paths.place(whole) / 'tensorboard')
    assert curves['train/loss'].keys() == set(range(1, 7)) and 'val/miou' in curves

    saving, gone = threading.Event(), threading.Event()

    def hold(method, name):
        if method in ('POST', 'PUT') and name == 'killed/checkpoints/4/state/manifest.ocdbt':
            saving.set()
            gone.wait(60)  # the server may answer nobody meanwhile
            raise Refusal(503, 'too late')

    server.before = hold
    both = start(killed)
    assert saving.wait(500)
    for process in both:
        process.kill()
        process.communicate()
    gone.set()
    server.before = lambda method, name: None
    half = server.names('killed/checkpoints/4/')
    assert half and 'killed/checkpoints/4/commit_success.txt' not in half
    assert 'resuming from step 2' in finished(start(killed))
    for one, other in zip(parameters(whole), parameters(killed), strict=True):
        np.testing.assert_array_equal(one, other)

    for name in server.names('killed/checkpoints/6/state/ocdbt.process_'):
        if '/d/' in name:
            server.objects[name] = bytes(len(server.objects[name][0])), server.objects[name][1]
    text = finished(start(killed, '--mode=evaluate', count=1))
    assert '/6 is damaged' in text and f'{killed} at step 4' in text
    assert json.loads(server.objects['killed/metrics.json'][0])['step'] == 4

    for mode, made in (('export', 'export/model.json'), ('predict', 'predictions/overlays/')):
        arguments = [
            f'--mode={mode}',
            '--config.export.formats=',
            f'--config.predict.input={whole}/samples/images',
        ]
        finished(start(whole, *arguments, '--config.predict.write=overlays', count=1))
        assert server.names(f'whole/{made}')
    text = finished(start(f'{scheme}://bucket/next', f'--config.init.from={whole}', count=1))
    assert f'starting from {whole}' in text
