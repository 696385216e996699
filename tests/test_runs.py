"""One run per folder, a log that stays, and file system errors that say what to do."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ann_jax.errors import ConfigError, SaveError
from ann_jax.files import make_folder, writing
from ann_jax.runs.lock import lock
from ann_jax.runs.log import log_file, note
from ann_jax.runs.signals import Stop

HOLDER = """
import sys, time
from pathlib import Path
from ann_jax.runs.lock import lock

with lock(Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path):
    process = subprocess.Popen(
        [sys.executable, '-c', HOLDER, str(tmp_path)],
        env=os.environ | {'PYTHONPATH': str(Path(__file__).parent.parent)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'held\n'
    with pytest.raises(ConfigError, match=f'in use by another run .process {process.pid} on'):
        with lock(tmp_path):
            pass
    process.kill()
    process.wait()
    process.stdout.close()
    with lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / 'file').write_text('')
    needed = r'cannot write .*: a file lies where a folder is needed; name another folder'
    for enter in (lock, log_file):
        with pytest.raises(SaveError, match=needed):
            with enter(tmp_path / 'file' / 'run'):
                pass
    with pytest.raises(SaveError, match=needed):
        make_folder(tmp_path / 'file')


def test_a_full_disk_is_a_clear_error(tmp_path):
    if not os.path.exists('/dev/full'):
        pytest.skip('no /dev/full')
    with pytest.raises(SaveError, match='No space left on device.*Free space'), writing(tmp_path):
        with open('/dev/full', 'w') as file:
            file.write('x')


def test_the_log_holds_what_was_said_and_what_ended_the_run(tmp_path, caplog):
    for number in (1, 2):
        with pytest.raises(ValueError), log_file(tmp_path):
            logging.getLogger('ann_jax.modes.train').info('run %d', number)
            note('config %s', 'long')
            raise ValueError('too bad')
    logging.getLogger('ann_jax.modes.train').info('after the run')
    lines = (tmp_path / 'log.txt').read_text().splitlines()
    assert [line.split('INFO ')[-1].split('ERROR ')[-1] for line in lines] == [
        'run 1', 'config long', 'ended by ValueError: too bad',
        'run 2', 'config long', 'ended by ValueError: too bad',
    ]  # fmt: skip
    # The command prints the error itself: told here too, it would be on the terminal twice.
    shown = [record.getMessage() for record in caplog.records if record.name.startswith('ann_jax.')]
    assert shown == ['run 1', 'run 2']


BUSY = """
import hashlib
from ann_jax.runs.signals import Stop

with Stop():
    print('busy', flush=True)
    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)  # minutes in C, where Python runs no handlers
"""
CTRL_C = """
import os, signal
from ann_jax import main

main.app.run = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)
main.run()
"""


def python(code):
    """As in the foreground of a terminal: what a script starts in the background ignores Ctrl-C."""
    heard = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n'
    return subprocess.Popen(
        [sys.executable, '-c', heard + code],
        env=os.environ | {'PYTHONPATH': str(Path(__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_step_at_once(number):
    process = python(BUSY)
    assert process.stdout.readline() == 'busy\n'
    process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)  # the first lets the step go on
    process.send_signal(number)
    said = process.communicate(timeout=5)[1]
    assert process.returncode == 128 + number
    assert said == f'\nended by a second signal, {number.name}: the same command resumes\n'


LOST = """
import hashlib, os, signal
from ann_jax.runs import signals

class Caught:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100):  # the exception is raised in here, and lost
            pass

signals.GRACE = 0.1
with signals.end_by_ctrl_c():
    Caught()
    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)
"""


TOOL = """
import os, signal, sys

sys.orig_argv = ['python', '-m', 'ann_jax.tools.launch']
import ann_jax.tools
os.kill(os.getpid(), signal.SIGINT)
"""
IMPORTING = """
import os, signal, sys
from ann_jax.runs.signals import end_by_ctrl_c

class Finder:
    def find_spec(self, *_):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(100):
                pass
        finally:
            print('an exception ends the import, which modules of C++ need not survive')

with end_by_ctrl_c():
    sys.meta_path.insert(0, Finder())
    import another
"""


@pytest.mark.parametrize('code', [CTRL_C, LOST, TOOL, IMPORTING])
def test_ctrl_c_is_one_line(code):
    process = python(code)
    assert process.communicate(timeout=60) == ('', '\nstopped by Ctrl-C\n')
    assert process.returncode == 130


def test_signals_are_as_before_after_a_run():
    before = [signal.getsignal(number) for number in Stop.SIGNALS]
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    assert [signal.getsignal(number) for number in Stop.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
