"""--mode=check: reads every sample; tells what cannot be used, and what would be learned wrong."""

import functools
import os

from ml_collections import ConfigDict
from tqdm import tqdm

from ann_jax import build
from ann_jax.data.own import findings as judge
from ann_jax.data.own.survey import survey
from ann_jax.data.readers import cores


def check(config: ConfigDict) -> int:
    """Prints every bad file of the training and evaluation splits, image sizes, class frequencies, warnings.

    Returns:
        Exit status: 0 if every sample can be used, else 1; with `check.strict`, 1 also if there are warnings.

    Raises:
        DataError: a folder of the dataset is missing, so that there is nothing to check.
    """
    bad, told, surveys = 0, [], []
    c = config.dataset
    for split in dict.fromkeys((c.train_split, c.eval_split)):
        source = build.source(config, split, strict=False)
        threads = max(config.loader.threads, cores())
        # A stream of its own, because stderr itself is captured meanwhile: see `examine_jpeg`.
        with open(os.dup(2), 'w', encoding='locale', errors='replace') as terminal:
            progress = functools.partial(tqdm, desc=f'check {split}', unit='image', file=terminal)
            found = survey(source, progress, num_threads=threads)
        for error in found.errors:
            print(error)
        print('\n'.join(_describe(split, source.dataset, len(source), found)))
        bad += len(found.errors)
        told += judge.findings(split, source.dataset, found, train=split == c.train_split)
        told += judge.repeats(split, judge.same_contents(found))
        surveys.append(found)
    if len(surveys) == 2:
        splits = c.train_split, c.eval_split
        told += judge.shared(splits, judge.contents_in_both(*surveys))
        told += judge.other_palettes(splits, *surveys)
    for finding in told:
        print(f'{"error" if finding.fatal else "warning"}: {finding.text}')
    bad += sum(finding.fatal for finding in told)
    kinds = [finding.kind for finding in told if not finding.fatal]
    warnings = f'{len(kinds)} warnings: {", ".join(dict.fromkeys(kinds))}'
    if bad:
        print(f'{bad} problems: fix them before training' + (f'; {warnings}' if kinds else ''))
    else:
        print(f'usable, with {warnings}' if kinds else 'usable: no problems')
    return 1 if bad or kinds and config.check.strict else 0


def _describe(split, dataset, count, found):
    """Yields the lines about one split."""
    parts = dataset.splits.get(split, ())
    published = sum(dataset.counts.get(part, 0) for part in parts)
    of = f' (published: {published})' if published not in (0, count) else ''
    yield f'{split}: {count} images{of}, {len(found.errors)} problems'
    if found.sizes:
        (height, width), most = found.sizes.most_common(1)[0]
        heights, widths = zip(*found.sizes, strict=True)
        portrait = sum(n for (h, w), n in found.sizes.items() if h > w)
        yield (
            f'  {len(found.sizes)} sizes, {min(widths)} .. {max(widths)} wide, '
            f'{min(heights)} .. {max(heights)} high, '
            f'mostly {width}x{height} ({most} images); {portrait} images are portrait'
        )
    share = 100 * found.pixels / max(found.pixels.sum(), 1)
    for name, percent, images in zip((*dataset.classes, 'unlabelled'), share, found.images, strict=True):
        absent = '   absent' if not images and name != 'unlabelled' else ''
        yield f'  {name:<24} {percent:6.2f} % of the pixels, in {images} images{absent}'
    if found.blank:
        more = ', ...' if len(found.blank) > 5 else ''
        yield f'  {len(found.blank)} images have no pixel with a class: {", ".join(found.blank[:5])}{more}'
