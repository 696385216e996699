"""Starts a run of several processes: on this machine, under Slurm, or on Cloud TPUs, by ssh or on GKE by xpk.

    python -m ann_jax.tools.launch machine --processes=2 -- --config=configs/scenes.py --workdir=runs/scenes
    python -m ann_jax.tools.launch slurm --nodes=4 --gpus=8 -- --config=configs/voc.py --workdir=/shared/run
    python -m ann_jax.tools.launch tpu --name=SLICE --zone=ZONE --folder=ann_jax -- --config=... --workdir=...
    python -m ann_jax.tools.launch xpk --cluster=C --name=ann --type=v5litepod-32 --image=I -- --config=...

What follows `--` goes to `ann_jax.main`. `--dry-run` only prints the commands. One process uses all devices
of its machine, so `machine` is for trying out several processes.
"""

import argparse
import shlex
import signal
import socket
import subprocess
import sys


def commands(options: argparse.Namespace, rest: list[str]) -> list[list[str]]:
    """The commands that start the run; if there are several, they run at the same time."""
    module = ['-m', 'ann_jax.main', *rest]
    if options.where == 'machine':
        address = f'127.0.0.1:{options.port or free_port()}'
        flags = [f'--coordinator={address}', f'--process_count={options.processes}']
        return [[sys.executable, *module, *flags, f'--process_index={i}'] for i in range(options.processes)]
    if options.where == 'slurm':
        # srun sends SIGTERM to all processes before the time is up; the run saves and ends.
        settings = [f'--nodes={options.nodes}', '--ntasks-per-node=1', '--kill-on-bad-exit=1']
        settings += [f'--gpus-per-node={options.gpus}'] if options.gpus else []
        settings += [f'--time={options.time}'] if options.time else []
        return [['srun', *settings, options.python, *module]]
    if options.where == 'xpk':
        # A JobSet of one pod per host, to which GKE tells the others.
        settings = [
            f'--cluster={options.cluster}',
            f'--workload={options.name}',
            f'--tpu-type={options.type}',
        ]
        settings += [
            f'--docker-image={options.image}',
            '--num-slices=1',
            f'--max-restarts={options.restarts}',
        ]
        settings += [f'--zone={options.zone}'] if options.zone else []
        return [
            ['xpk', 'workload', 'create', *settings, f'--command={shlex.join([options.python, *module])}']
        ]
    # The environment of a slice's hosts does not say that there are several: jax asks the machine.
    run = shlex.join([options.python, *module, '--coordinator=auto'])
    remote = f'cd {shlex.quote(options.folder)} && {run}'
    where = [options.name, f'--zone={options.zone}', '--worker=all']
    return [['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', *where, f'--command={remote}']]


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Splits the command line at `--` into options and what goes to the run."""
    cut = argv.index('--') if '--' in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('--dry-run', action='store_true')
    places = parser.add_subparsers(dest='where', required=True)
    machine = places.add_parser('machine', parents=[common])
    machine.add_argument('--processes', type=count, default=2)
    machine.add_argument('--port', type=_port, default=0, help='0 for a free one')
    slurm = places.add_parser('slurm', parents=[common])
    slurm.add_argument('--nodes', type=count, default=1)
    slurm.add_argument('--gpus', type=int, default=0, help='on each node')
    slurm.add_argument('--time', default='', help="in Slurm's format: '2-00:00:00'")
    slurm.add_argument('--python', default='python')
    tpu = places.add_parser('tpu', parents=[common])
    tpu.add_argument('--name', required=True)
    tpu.add_argument('--zone', required=True)
    tpu.add_argument('--python', default='python', help='seen from the folder: env/bin/python')
    tpu.add_argument('--folder', default='.', help='where the command runs, on each worker')
    xpk = places.add_parser('xpk', parents=[common])
    xpk.add_argument('--cluster', required=True, help='of GKE, made by xpk cluster create')
    xpk.add_argument('--name', required=True, help='of the workload')
    xpk.add_argument('--type', required=True, help='of the slice: v5litepod-32')
    xpk.add_argument('--image', required=True, help='of a container with ann_jax, in a registry')
    xpk.add_argument('--zone', default='', help="'' for that of gcloud")
    xpk.add_argument('--restarts', type=int, default=50, help='after failures and preemptions')
    xpk.add_argument('--python', default='python', help='in the container')
    options = parser.parse_args(argv[:cut])
    if not argv[cut + 1 :]:
        parser.error('give the arguments of ann_jax.main after --, at least --config')
    return options, argv[cut + 1 :]


def count(text: str) -> int:
    """A number on the command line that counts things.

    Raises:
        argparse.ArgumentTypeError: it is less than one.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} must be a whole number of at least 1')
    return int(text)


def _port(text):
    if not text.isdecimal() or int(text) >= 2**16:
        raise argparse.ArgumentTypeError(f'{text} must be a port from 1 to 65535, or 0 for a free one')
    return int(text)


def main(argv: list[str] | None = None) -> int:
    """Starts the processes, forwards signals to them, and waits; returns the worst exit status."""
    options, rest = parse(sys.argv[1:] if argv is None else argv)
    lines = commands(options, rest)
    if options.dry_run:
        print('\n'.join(map(shlex.join, lines)))
        return 0
    try:
        running = [subprocess.Popen(line) for line in lines]
    except FileNotFoundError:
        sys.exit(f'error: this machine has no {lines[0][0]}: --dry-run prints the command')

    def hand_on(number, _frame):
        for process in running:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, hand_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends Ctrl-C to the processes itself
    statuses = [process.wait() for process in running]
    return max(status if status >= 0 else 128 - status for status in statuses)  # as shells count signals


if __name__ == '__main__':
    sys.exit(main())
