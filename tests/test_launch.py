"""The commands that the launcher would run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / 'scripts' / 'launch.py'
RUN = ['--', '--config=configs/scenes.py:runlocal', '--workdir=a b']


def launch(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize('count', ['0', '-1', 'two'])
def test_a_machine_runs_at_least_one_process(count):
    result = launch('machine', f'--processes={count}', '--dry-run', *RUN)
    assert result.returncode == 2 and f'{count} must be a whole number of at least 1' in result.stderr


def test_slurm_has_at_least_one_node():
    result = launch('slurm', '--nodes=0', '--dry-run', *RUN)
    assert result.returncode == 2 and '0 must be a whole number of at least 1' in result.stderr


@pytest.mark.parametrize('port', ['65536', '-1', 'http'])
def test_a_port_is_one(port):
    result = launch('machine', f'--port={port}', '--dry-run', *RUN)
    assert result.returncode == 2 and f'{port} must be a port from 1 to 65535' in result.stderr


def test_a_machine_runs_one_process_per_index():
    lines = launch('machine', '--processes=3', '--port=999', '--dry-run', *RUN).stdout.splitlines()
    assert len(lines) == 3
    for index, line in enumerate(lines):
        assert "-m ann_jax.main --config=configs/scenes.py:runlocal '--workdir=a b'" in line
        end = f'--coordinator=127.0.0.1:999 --process_count=3 --process_index={index}'
        assert line.endswith(end)


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (
            ['slurm', '--nodes=4', '--gpus=8'],
            'srun --nodes=4 --ntasks-per-node=1 --kill-on-bad-exit=1 --gpus-per-node=8 python -m',
        ),
        (['tpu', '--name=slice', '--zone=z', '--folder=f'], 'ssh slice --zone=z --worker=all'),
        (
            ['xpk', '--cluster=c', '--name=n', '--type=v5litepod-16', '--image=i'],
            'xpk workload create --cluster=c --workload=n --tpu-type=v5litepod-16 --docker-image=i',
        ),
    ],
)
def test_other_places_take_one_command(arguments, expected):
    (line,) = launch(*arguments, '--dry-run', *RUN).stdout.splitlines()
    assert expected in line and '--config=configs/scenes.py:runlocal' in line


@pytest.mark.parametrize('where', ['tpu', 'xpk'])
def test_the_docs_show_what_the_launcher_prints(where):
    text = (SCRIPT.parent.parent / 'docs/tpu_pods.md').read_text()
    command, printed = re.search(
        rf'```bash\n(python scripts/launch.py {where} (?:.|\n)*?)```\n\n.*prints.*\n\n'
        r'```bash\n((?:.|\n)*?)```',
        text,
    ).groups()
    command = shlex.split(command.replace('\\\n', ' '))[2:]
    command.insert(command.index('--'), '--dry-run')
    assert launch(*command).stdout.split() == printed.replace('\\\n', ' ').split()


def test_without_a_config_it_says_what_is_missing():
    result = launch('machine', '--dry-run')
    assert result.returncode == 2 and 'at least --config' in result.stderr
