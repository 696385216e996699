"""--mode=check: reads every sample of a dataset and lists what cannot be used."""

import functools

from ml_collections import ConfigDict
from tqdm import tqdm

from ann_jax import build
from ann_jax.data import datasets


def check(config: ConfigDict) -> int:
    """Prints every bad file of the training and evaluation splits, and how often each class occurs.

    Returns:
        Exit status: 0 if every sample can be used, else 1.

    Raises:
        DataError: a folder of the dataset is missing, so that there is nothing to check.
    """
    bad = 0
    for split in dict.fromkeys((config.dataset.train_split, config.dataset.eval_split)):
        source = build.source(config, split, strict=False)
        progress = functools.partial(tqdm, desc=f'check {split}', unit='image')
        errors, pixels = datasets.check_source(source, progress, num_threads=config.loader.threads)
        for error in errors:
            print(error)
        print(f'{split}: {len(source)} images, {len(errors)} problems')
        share = 100 * pixels / max(pixels.sum(), 1)
        for name, percent in zip((*source.dataset.classes, 'unlabelled'), share, strict=True):
            print(f'  {name:<24} {percent:6.2f} % of the pixels')
        bad += len(errors)
    return 1 if bad else 0
