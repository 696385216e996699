"""The command: python -m ann_jax.main --config=configs/cityscapes.py --workdir=runs/cityscapes."""

import contextlib
import logging
import os
import re
import sys
import traceback
from pathlib import Path

import absl.logging
from absl import app, flags
from ml_collections import config_flags
from tqdm.contrib.logging import logging_redirect_tqdm

from ann_jax.errors import ConfigError, DataError, SaveError

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, with its arguments after a colon: configs/cityscapes.py:variant=apnb.'
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; runs/<name of the config> if not given.')
_MODE = flags.DEFINE_enum(
    'mode',
    'train',
    ['train', 'evaluate', 'predict', 'export', 'check', 'browse', 'benchmark'],
    'train: train, or resume. evaluate: score the best checkpoint. predict: segment images. '
    'export: write programs that run without this package. check: list the bad files of the dataset. '
    'browse: draw augmented samples with their labels. benchmark: measure blocks and networks.',
)
_COORDINATOR = flags.DEFINE_string(
    'coordinator',
    None,
    'host:port of process 0, for a run of several processes; auto on TPU pods; Slurm needs none.',
)
_PROCESS_COUNT = flags.DEFINE_integer('process_count', None, 'Number of processes.')
_PROCESS_INDEX = flags.DEFINE_integer('process_index', None, 'This process, from 0.')


def parse_flags(argv):
    """Parses the command line; what is wrong with it ends the program with one line."""
    # `from` is a word of Python, in whose syntax ml_collections reads the keys, and those from sys.argv.
    sys.argv = argv = [re.sub(r'^--?config\.init\.from(?==|$)', '--config.init["from"]', arg) for arg in argv]
    try:
        rest = flags.FLAGS(argv)
        _CONFIG.value.to_dict()  # a missing file shows only when its config is used
        return rest
    except (flags.Error, AttributeError, KeyError, ValueError, OSError) as error:
        # An error inside a config file arrives quoted, with its traceback: the last line says what is wrong.
        text = str(error).replace('\\n', '\n').strip('\'"\n ')
        sys.exit(f'error: {text.splitlines()[-1].strip().removeprefix("ann_jax.errors.ConfigError: ")}')


def main(argv):
    """Runs the mode; an error of the user's ends it with one line and exit status 1."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected argument {argv[1]!r}: settings are --config.key=value')
    logging.basicConfig(format='%(asctime)s %(message)s', datefmt='%H:%M:%S', force=True)
    logging.getLogger('ann_jax').setLevel(logging.INFO)
    logging.getLogger('jax._src.xla_bridge').setLevel(logging.ERROR)  # tells which backends are absent
    absl.logging.set_verbosity(absl.logging.ERROR)  # libraries that log through absl talk much
    # Imported late: worker processes import this file again, and need neither jax nor the network.
    import jax

    from ann_jax import benchmark
    from ann_jax.config import validate
    from ann_jax.modes import browse, check, evaluate, export, predict, train
    from ann_jax.parallel import processes

    config = _CONFIG.value
    name = Path(config_flags.get_config_filename(flags.FLAGS['config']).split(':')[0]).stem
    workdir = Path(_WORKDIR.value or f'runs/{name}').expanduser()
    if config.compilation_cache:
        jax.config.update('jax_compilation_cache_dir', str(Path(config.compilation_cache).expanduser()))
    try:
        validate(config)
        processes.join(_COORDINATOR.value, _PROCESS_COUNT.value, _PROCESS_INDEX.value)
        main_process = processes.is_main()
        if not main_process:
            logging.getLogger().handlers[0].setLevel(logging.WARNING)  # its log file holds the rest
        with logging_redirect_tqdm() if main_process else contextlib.nullcontext():
            match _MODE.value:
                case 'train':
                    train.train(config, workdir)
                case 'evaluate':
                    evaluate.evaluate(config, workdir)
                case 'predict':
                    sys.exit(predict.predict(config, workdir))
                case 'export':
                    export.export(config, workdir)
                case 'check':
                    sys.exit(check.check(config))
                case 'browse':
                    browse.browse(config, workdir)
                case 'benchmark':
                    benchmark.benchmark(config, workdir)
    except (ConfigError, DataError, SaveError, FloatingPointError) as error:
        _leave_others(f'error: {error}')
        sys.exit(f'error: {error}')
    except Exception:
        _leave_others(traceback.format_exc())
        raise


def _leave_others(text):
    """Ends one of several processes at once: at exit it would wait for the others, which wait for it."""
    import jax

    if jax.process_count() > 1:
        print(text, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)


if __name__ == '__main__':
    flags.mark_flag_as_required('config')
    app.run(main, flags_parser=parse_flags)
