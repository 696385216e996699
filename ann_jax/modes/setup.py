"""--mode=setup: looks at a folder, reports what it holds, and writes a config file for it."""

import csv
import importlib.machinery
import io
import keyword
import os
import re
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ann_jax.buckets.services import remote
from ann_jax.data import label_map as maps
from ann_jax.data.decode.images import IMAGE_ENDINGS, match
from ann_jax.data.decode.reading import read_file
from ann_jax.data.disk import walk
from ann_jax.data.files import draw, pair_files
from ann_jax.data.label_files import decode_raw
from ann_jax.data.own.annotation_kinds import advise
from ann_jax.data.own.class_files import parse_classes
from ann_jax.data.own.discovery import Plan, discover
from ann_jax.data.own.image_values import choose_reading
from ann_jax.data.own.label_values import ClassPlan, choose_classes, class_files, survey_labels
from ann_jax.data.own.naming import bare_key
from ann_jax.data.own.settings import own_dataset
from ann_jax.errors import ConfigError, DataError, SaveError
from ann_jax.files import replacing

_CROP = 512
_IMAGES_READ = 8

_TEMPLATE = '''r"""{title}

Written by --mode=setup. Edit what you like; docs/own_data.md explains the settings of `dataset`.

    {check}
    {train}
"""

from ann_jax.config import IMAGENET_RGB, defaults, finish, parse_argument


def get_config(argument=None):
    """Settings for a start."""
    argument = parse_argument(argument)
    config = defaults()
    config.dataset.update(
        name='folder',
        root={root!r},
{settings}    )
    config.input = IMAGENET_RGB
    config.augment.crop = {crop}
    config.model.depth = 50
    config.optim.update(learning_rate=0.01, weight_decay=5e-4)
    config.train.update(steps=20_000, batch_size=8, eval_every=1000)
    return finish(config, argument)
'''


def setup(config: ConfigDict, folder: Path = Path()) -> Path:
    """Prints what `dataset.root` holds, and writes a config for it.

    Args:
        config: of `configs/folder.py`; only `dataset.root` is used.
        folder: where to write.

    Returns:
        The config file.

    Raises:
        ConfigError: there is no root, or `folder` is in a bucket.
        DataError: there are no labels, or they cannot be used; the message says what to do.
        SaveError: a file exists already, or cannot be written.
    """
    if remote(folder):
        raise ConfigError(
            f'--workdir={folder}: a config is written to be edited: name a folder of this machine'
        )
    if not config.dataset.root:
        raise ConfigError('--config.dataset.root is missing: name the folder to look at')
    root = os.path.abspath(os.path.expanduser(config.dataset.root))
    if not os.path.isdir(root):
        raise DataError(f'--config.dataset.root={root}: there is no such folder')
    plan = discover(root)
    if plan is None:
        raise DataError(f'{root}: {advise(root)}')
    file = folder.expanduser() / f'{_name(root)}.py'
    notes: list[str] = []
    written: dict[Path, str] = {}
    samples = _samples(plan, root, notes)
    if plan.pairs:
        plan.images = plan.labels = '.'
        plan.lists = os.path.abspath(file.with_name(f'{file.stem}_{{split}}.txt'))
        for split, pairs in plan.pairs.items():
            lines = ''.join(f'{image}\t{label}\n' for image, label in pairs)
            written[file.with_name(f'{file.stem}_{split}.txt')] = lines
    values = survey_labels([os.path.join(root, label) for pairs in samples.values() for _, _, label in pairs])
    if not values.files:
        raise DataError(values.errors[0])
    names = [
        os.path.normpath(os.path.relpath(os.path.join(where, n), root))
        for where, found in walk(root)
        for n in found
    ]
    used = {os.path.normpath(path) for pairs in samples.values() for _, *two in pairs for path in two}
    rest = [name for name in names if name.lower().endswith(IMAGE_ENDINGS) and name not in used]
    if rest:
        notes.append(f'{len(rest)} pictures are not used, such as {rest[0]}')
    classes = choose_classes(values, class_files(names), root)
    some = _some([sample[1:] for split in samples.values() for sample in split])
    image_settings, reading, image_notes = choose_reading([os.path.join(root, image) for image, _ in some])
    settings = plan.settings() | _class_settings(classes, file, root, written) | image_settings
    notes += classes.notes + image_notes
    if odd := list(_odd_images(root, some, reading)):
        others = f'; {len(odd) - 1} more of the images looked at cannot be used either' if odd[1:] else ''
        notes.append(odd[0] + others)
    print('\n'.join(_report(root, plan, samples, values, classes, notes)))
    commands = _commands(file, os.path.join(root, next(iter(samples[plan.eval_split]))[1]))
    written[file] = _TEMPLATE.format(
        title=f'ANN-ResNet-50 on {root}.',
        check=commands[0],
        train=commands[1],
        root=root,
        settings=''.join(f'        {key}={value!r},\n' for key, value in settings.items()),
        crop=tuple(min(_CROP, -(-side // 32) * 32) for side in values.sizes.most_common(1)[0][0]),
    )
    _write(written)
    print('\n'.join(['', f'wrote {", ".join(map(str, written))}; next:', *commands]))
    return file


def _name(root):
    """A name for the config, made of the folder's; not one by which Python imports something else."""
    name = re.sub(r'\W+', '_', os.path.basename(root)).strip('_').lower()
    installed = [path for path in sys.path if path not in ('', os.getcwd())]
    taken = name in sys.stdlib_module_names or importlib.machinery.PathFinder.find_spec(name, installed)
    return (
        name if name.isidentifier() and not keyword.iskeyword(name) and not taken else f'my_{name or "data"}'
    )


# --- What there is


def _samples(plan: Plan, root: str, notes: list[str]) -> dict[str, list[tuple[str, str, str]]]:
    """{split: [(name, image, label)]} of training and evaluation; changes the plan so that it works."""
    splits = [plan.train_split] if plan.val_share else [plan.train_split, plan.eval_split]
    name = lambda image: bare_key(os.path.splitext(image)[0])
    if plan.pairs:
        notes.append('no settings describe what belongs together: lists of images and labels are written')
        found = {
            split: [(name(image), image, label) for image, label in plan.pairs[split]] for split in splits
        }
    else:
        found = {split: _find(plan, root, split, notes) for split in splits}
        if plan.pairs:  # some have no partner, and lists leave them out
            plan.pairs |= {split: [sample[1:] for sample in found[split]] for split in splits}
            # Samples of a list have the names of its lines, which say who is held out.
            found = {
                split: [(name(image), image, label) for _, image, label in found[split]] for split in splits
            }
    notes += [
        f'{folder} may hold labels too: edit `labels` if it should count' for folder in plan.alternatives
    ]
    notes += [f'{s} has labels too: --config.dataset.eval_split={s} scores on it' for s in plan.others]
    if not plan.val_share:
        return found
    whole = found[plan.train_split]
    for share in (percent / 100 for percent in range(10, 55, 5)):
        held = [sample for sample in whole if draw(sample[0]) < share]
        if 0 < len(held) < len(whole):
            plan.val_share = share
            rest = [sample for sample in whole if draw(sample[0]) >= share]
            return {plan.train_split: rest, plan.eval_split: held}
    notes.append('too few images to hold some out: scores are those of training images')
    plan.val_share, plan.eval_split = 0.0, plan.train_split
    return found


def _find(plan, root, split, notes):
    """The samples of a split; notes those without a partner, and makes the plan one of lists if there are."""
    settings = plan.settings() | {'val_share': 0.0, 'train_split': split, 'eval_split': split}
    splits = settings.pop('train_split'), settings.pop('eval_split')
    dataset = own_dataset(name='folder', classes='2', root=root, splits=splits, **settings)
    samples, problems = pair_files(dataset, root, split)
    if not samples:
        raise DataError(problems[0])
    if problems:
        notes.append(
            f'{split}: {len(problems)} files are left out by a list of the others; first: {problems[0]}'
        )
        plan.pairs.setdefault(split, [])
    return [sample[:3] for sample in samples]


def _some(pairs):
    return pairs[:: max(1, len(pairs) // _IMAGES_READ)][:_IMAGES_READ]


def _odd_images(root, pairs, reading):
    """What is wrong with some images: they cannot be read, or have other sizes than their labels."""
    for image, label in pairs:
        image, label = os.path.join(root, image), os.path.join(root, label)
        try:
            values = decode_raw(read_file(label, 'label'), label).values
            plane = values if values.ndim == 2 else values[..., 0]
            match(read_file(image, 'image'), plane, image, label, reading)
        except DataError as error:
            yield str(error)


def _report(root, plan, samples, values, classes, notes):
    """Yields the lines about a folder."""
    held = f', held out of {plan.train_split}' if plan.val_share else ''
    counts = [f'{len(pairs)} in {split}' for split, pairs in samples.items()]
    endings = lambda ending: f', named *{ending}' if ending not in ('', '.png') else ''
    yield root
    yield f'  images    {plan.images}{endings(plan.image_ending)}: {", ".join(counts)}{held}'
    yield f'  labels    {plan.labels}{endings(plan.label_ending)}'
    if plan.lists:
        yield f'  lists     {plan.lists}'
    heights, widths = zip(*values.sizes, strict=True)
    yield f'  sizes     {min(widths)} .. {max(widths)} wide, {min(heights)} .. {max(heights)} high'
    kinds: Counter[Any] = values.colors or values.values
    total = sum(kinds.values())
    show = lambda kind: ' '.join(map(str, kind)) if isinstance(kind, tuple) else str(kind)
    shares = [f'{show(kind)} ({100 * count / total:.1f} %)' for kind, count in sorted(kinds.items())]
    more = f' and {len(shares) - 12} more' if len(shares) > 12 else ''
    of = f', in {values.files} of the labels' if values.files < sum(map(len, samples.values())) else ''
    yield f'  {"colours " if values.colors else "values  "}  {", ".join(shares[:12])}{more}{of}'
    names = [name for name in classes.names if name != 'ignore']  # lines of a class file that are no classes
    yield f'  classes   {len(names)}: {", ".join(names)}'
    for note in notes + values.errors[:3]:
        yield f'  note: {note}'


# --- What is written


def _class_settings(classes: ClassPlan, file: Path, root: str, written: dict[Path, str]) -> dict[str, str]:
    """The settings of the classes; adds the file that they need, if any, to what is written."""
    text = ','.join(classes.names)
    if classes.file:
        text = os.path.join(root, classes.file)
    elif classes.colors or not _means(text, classes.names):
        path = file.with_name(f'{file.stem}_classes.csv')
        colors = classes.colors or [()] * len(classes.names)
        table = io.StringIO()
        rows = csv.writer(table, lineterminator='\n')
        rows.writerow(['name', 'red', 'green', 'blue'][: 4 if classes.colors else 1])
        rows.writerows((name, *color) for name, color in zip(classes.names, colors, strict=True))
        written[path], text = table.getvalue(), os.path.abspath(path)
    return {'classes': text, 'label_map': maps.write(classes.label_map) if classes.label_map else ''}


def _means(text, names):
    try:
        return parse_classes(text, '').names == names
    except ConfigError:
        return False


def _commands(file, image):
    start = f'python -m ann_jax.main --config={shlex.quote(str(file))}'
    workdir = f'--workdir={shlex.quote(f"runs/{file.stem}")}'
    return [
        f'{start} --mode=check',
        f'{start} {workdir}',
        f'{start} {workdir} --mode=predict --config.predict.input={shlex.quote(image)}',
    ]


def _write(files):
    for path in files:
        if path.exists():
            raise SaveError(
                f'{path} exists already, and nothing was written: edit it, move it away, or write elsewhere '
                'with --workdir'
            )
    done: list[Path] = []
    try:
        for path, text in files.items():
            with replacing(path) as draft:
                draft.write_text(text, encoding='utf-8')
            done.append(path)
    except SaveError:
        for path in done:  # or else they would be in the way of the next try
            path.unlink(missing_ok=True)
        raise
