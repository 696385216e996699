"""The command: python -m ann_jax.main --config=configs/cityscapes.py --workdir=runs/cityscapes.

`ann-jax` and `python -m ann_jax` are the same.
"""

import contextlib
import io
import logging
import re
import sys
import traceback

import absl.logging
from absl import app, flags
from ml_collections import config_flags
from tqdm.contrib.logging import logging_redirect_tqdm

from ann_jax import command
from ann_jax.buckets import paths, reasons
from ann_jax.errors import ConfigError, DataError, SaveError
from ann_jax.runs.signals import end_by_ctrl_c

logger = logging.getLogger('ann_jax.main')  # not __main__, the name under `python -m`

_CONFIG = command.define_config(
    'Config file, with its arguments after a colon: configs/cityscapes.py:variant=apnb. A file takes '
    'precedence over a config of that name that comes with ann_jax.'
)
_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Working directory, a folder, gs://BUCKET/NAME or s3://BUCKET/NAME; runs/<name of the config> if not '
    'given.',
)
_MODE = flags.DEFINE_enum(
    'mode',
    'train',
    ['train', 'evaluate', 'predict', 'explain', 'export', 'report', 'setup', 'check', 'browse', 'benchmark'],
    'train: train, or resume. evaluate: score the best checkpoint. predict: segment images. '
    'explain: write a page that shows what pixels attend to, and figures that compare runs. '
    'export: write programs that run without this package. '
    'report: write a page about the run, or about several. '
    'setup: look at a folder of images and labels, and write a config for it. '
    'check: list the bad files of the dataset. '
    'browse: draw augmented samples with their labels. benchmark: measure blocks and networks.',
)
SHARED = 'train', 'evaluate', 'predict'  # modes whose work several processes share
_COORDINATOR = flags.DEFINE_string(
    'coordinator',
    None,
    'host:port of process 0, for a run of several processes; auto on TPU pods; not needed under Slurm.',
)
_PROCESS_COUNT = flags.DEFINE_integer('process_count', None, 'Number of processes.')
_PROCESS_INDEX = flags.DEFINE_integer('process_index', None, 'Index of this process, from 0.')
_SHOWN = [flag.name for flag in (_CONFIG, _WORKDIR, _MODE, _COORDINATOR, _PROCESS_COUNT, _PROCESS_INDEX)]


def run():
    """The command, as `ann-jax` starts it."""
    with end_by_ctrl_c():
        app.run(main, flags_parser=parse_flags)


def parse_flags(argv):
    """Parses the command line; errors end the program with one line."""
    argv = command.arguments(argv[1:])
    mode = re.search(r'\n--?mode[=\n](setup|report)\n', '\n'.join([*argv, '']))
    if mode and not any(re.match('--?config(=|$)', word) for word in argv):
        argv.insert(1, '--config=folder')  # in whose place setup writes one; a report takes none
    sys.argv = argv  # ml_collections reads the settings from it
    return command.parse(argv, __doc__, names=_SHOWN)


def main(_argv):
    """Runs the mode; user errors end it with one line and exit status 1."""
    # Class names may be in any script, even if the output goes to a file or an old terminal.
    if isinstance(sys.stdout, io.TextIOWrapper):  # not in a notebook
        sys.stdout.reconfigure(errors='backslashreplace')
    logging.basicConfig(format='%(asctime)s %(message)s', datefmt='%H:%M:%S', force=True)
    logging.getLogger('ann_jax').setLevel(logging.INFO)
    logging.getLogger('jax._src.xla_bridge').setLevel(logging.ERROR)  # lists the missing backends
    # Orbax and grain log through absl, with tracebacks of what they raise afterwards.
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger('asyncio').setLevel(logging.CRITICAL)  # likewise, of what orbax never asks for
    # Imported late: worker processes import this file again, and need neither jax nor the network.
    import jax

    from ann_jax import benchmark
    from ann_jax.config import validate
    from ann_jax.modes import browse, check, evaluate, explain, export, memory, predict, report, setup, train
    from ann_jax.parallel import accelerators, processes

    config = _CONFIG.value
    file = command.find_config(config_flags.get_config_filename(flags.FLAGS['config']))
    try:
        validate(config)
        workdir = paths.place(_WORKDIR.value or f'runs/{file.path.stem}')
        processes.join(_COORDINATOR.value, _PROCESS_COUNT.value, _PROCESS_INDEX.value)
        main_process = processes.is_main()
        if jax.process_count() > 1 and _MODE.value not in SHARED:
            raise ConfigError(
                f'--mode={_MODE.value} is for one process: start it once, without --coordinator, and on a '
                'worker of a pod with JAX_PLATFORMS=cpu'
            )
        if not main_process:
            logging.getLogger().handlers[0].setLevel(logging.WARNING)  # the rest is in its log file
        if file.packaged and _MODE.value not in ('setup', 'report'):  # which take none
            logger.info('config: %s, which comes with ann_jax', file.path)
        if warning := accelerators.unused():
            logger.warning('%s', warning)
        accelerators.keep_programs(config.compilation_cache)
        with logging_redirect_tqdm() if main_process else contextlib.nullcontext():
            match _MODE.value:
                case 'train':
                    train.train(config, workdir)
                case 'evaluate':
                    evaluate.evaluate(config, workdir)
                case 'predict':
                    sys.exit(predict.predict(config, workdir))
                case 'explain':
                    explain.explain(config, workdir)
                case 'export':
                    export.export(config, workdir)
                case 'report':
                    report.report(_WORKDIR.value or '')
                case 'setup':
                    setup.setup(config, paths.place(_WORKDIR.value or '.'))
                case 'check':
                    sys.exit(check.check(config))
                case 'browse':
                    browse.browse(config, workdir)
                case 'benchmark':
                    benchmark.benchmark(config, workdir)
    except Exception as error:
        count = jax.process_count()
        text = processes.lost(error, jax.process_index(), count)
        text = text or memory.exhausted(error, _MODE.value, config)
        if not text and isinstance(error, (ConfigError, DataError, SaveError, FloatingPointError)):
            text = str(error)
        if not text and (why := reasons.reason(error)):
            text = f'{_WORKDIR.value}: {why}'
        if count > 1:
            processes.leave(f'error: {text}' if text else traceback.format_exc())
        if not text:
            raise
        sys.exit(f'error: {text}')


if __name__ == '__main__':
    run()
