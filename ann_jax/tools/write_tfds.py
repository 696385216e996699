r"""Writes the dataset of a config to ArrayRecord files, through TFDS and without TensorFlow.

    python -m ann_jax.tools.write_tfds --config=configs/cityscapes.py --config.dataset.root=/data/cityscapes \
        --out=/data/records
    python -m ann_jax.main --config=configs/cityscapes.py --config.dataset.root=/data/records \
        --config.dataset.format=tfds

Records hold the image files as published and the labels as class indices. Training reads them by random
access, also in worker processes, and sees the same batches as from the folders. Needs
`pip install tensorflow-datasets array_record importlib_resources`.
"""

import sys
from dataclasses import replace
from pathlib import Path

from absl import flags

from ann_jax import build, command
from ann_jax.data import records
from ann_jax.data.datasets import FolderSource
from ann_jax.errors import ConfigError, DataError, SaveError


def sources(config, splits):
    """Returns {part: samples} of all parts of the splits."""
    splits = [build.split_and_pattern(split)[0] for split in splits]  # records hold whole parts
    if config.dataset.name == 'scenes':
        return {split: build.source(config, split) for split in splits}
    dataset = build.dataset(config)
    parts = {part: None for split in splits for part in dataset.parts_of(split) or (split,)}
    alone = replace(dataset, splits={part: (part,) for part in parts})
    reading = build.reading(config)
    return {part: FolderSource(alone, config.dataset.root, part, reading=reading) for part in parts}


def _name(dataset, given):
    if dataset.name != records.OWN:
        if given:
            raise ConfigError(f'--name={given}: records of {dataset.name} have its name; leave the flag out')
        return dataset.name
    return records.own_name(given or Path(dataset.root).expanduser().resolve().name)


def main(argv=None):
    """Writes the records; user errors end it with one line and exit status 1."""
    argv, given = command.arguments(argv), flags.FlagValues()
    command.define_config('Config file of the dataset.', given, argv)
    text = 'Folder to write to, below <name of the dataset>/<version>/ in it.'
    flags.DEFINE_string('out', None, text, given)
    text = 'Splits to write; those of training and evaluation if not given.'
    flags.DEFINE_list('splits', [], text, given)
    text = 'Name of the records of your own dataset; that of its folder if not given.'
    flags.DEFINE_string('name', None, text, given)
    command.parse(argv, __doc__, given)
    config, out = given.config, given.out
    if not out:
        sys.exit('error: --out is missing: name the folder to write to')
    splits = given.splits or (config.dataset.train_split, config.dataset.eval_split)
    try:
        found = sources(config, splits)
        folder = records.write(_name(config.dataset, given.name), found, out)
    except (ConfigError, DataError, SaveError) as error:
        sys.exit(f'error: {error}')
    counts = ', '.join(f'{len(source)} of {part}' for part, source in found.items())
    root = folder if config.dataset.name == records.OWN else out
    flags_to_read = f'--config.dataset.format=tfds --config.dataset.root={root}'
    print(f'wrote {counts} to {folder}: read them with {flags_to_read}')


if __name__ == '__main__':
    main()
