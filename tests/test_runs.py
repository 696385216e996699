"""One run per folder, a log that stays, and file system errors that say what to do."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ann_jax.errors import ConfigError, SaveError
from ann_jax.files import writing
from ann_jax.runs.lock import lock
from ann_jax.runs.log import log_file, note

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
    for enter in (lock, log_file):
        with pytest.raises(SaveError, match=r'cannot write .*make .* writable'):
            with enter(tmp_path / 'file' / 'run'):
                pass


def test_a_full_disk_is_a_clear_error(tmp_path):
    if not os.path.exists('/dev/full'):
        pytest.skip('no /dev/full')
    with pytest.raises(SaveError, match='No space left on device.*Free space'), writing(tmp_path):
        with open('/dev/full', 'w') as file:
            file.write('x')


def test_the_log_holds_what_was_said_and_what_ended_the_run(tmp_path):
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
