"""What all processes of a run must have alike: each compiles its own program, and reads its own samples."""

import os
import zlib

from ml_collections import ConfigDict

from ann_jax.parallel.processes import refuse_differences
from ann_jax.runs.history import flat
from ann_jax.typing import Source

# What may differ from machine to machine.
_OWN = ('dataset.root', 'loader.threads', 'loader.workers', 'compilation_cache', 'init.from')


def refuse_unlike(config: ConfigDict, **sources: Source) -> None:
    """Compares settings and files of all processes, each of which must call this.

    Args:
        config: of the run.
        **sources: of samples, by what they are for.

    Raises:
        ConfigError: processes differ; with other settings they would train on to other weights, and with
            other samples miss some, or wait for each other for ever.
    """
    facts = {name: value for name, value in flat(config.to_dict()).items() if name not in _OWN}
    for purpose, source in sources.items():
        facts[f'number of images to {purpose}'] = len(source)
        names = map(os.path.basename, getattr(source, 'image_files', list)())
        facts[f'checksum of the names of the images to {purpose}'] = zlib.crc32('\n'.join(names).encode())
    refuse_differences(facts)
