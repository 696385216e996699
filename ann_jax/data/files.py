"""Finds and pairs the images and labels of a dataset, in whichever of its layouts they are stored."""

import bisect
import functools
import hashlib
import logging
import os

from ann_jax.data import archives
from ann_jax.data.decode.images import unseen
from ann_jax.data.disk import hidden, walk
from ann_jax.data.folders import Found, by_key, from_folders, names_below
from ann_jax.data.layout import LISTS, Dataset, Layout
from ann_jax.data.own.listed import from_list, from_two_lists
from ann_jax.data.own.lists import read_list
from ann_jax.data.own.naming import LABEL_ENDINGS, Naming, bare_key
from ann_jax.errors import DataError, unknown

logger = logging.getLogger(__name__)


def pair_files(dataset: Dataset, root: str, part: str) -> tuple[list[tuple], list[str]]:
    """Pairs the files of a part.

    Returns:
        [(name, image, label, number of the layout)], sorted by name or in the order of the list, and a
        message for each file without a partner. Images and labels are paths below the root, absolute paths,
        or records of an archive.

    Raises:
        DataError: a folder or list is missing, there are no images, or two files share a name.
    """
    held = dataset.held_out
    if not (held and held.share and part in (held.train, held.eval)):
        samples, problems = _pair(dataset, root, part)
        return samples, [message for _, message in problems]
    layout = dataset.layouts[0]
    if part == held.eval and '{part}' in (layout.lists or layout.images):
        there = _find(layout, root, part)
        if there.images and not there.missing:
            raise DataError(
                f'dataset.val_share={held.share:g} holds out a share of {held.train}, but there are '
                f'{len(there.keys or there.images)} images of {held.eval}: set val_share=0 to use them'
            )
    samples, problems = _pair(dataset, root, held.train)
    mine = lambda key: (draw(key) < held.share) == (part == held.eval)
    kept = [sample for sample in samples if mine(sample[0])]
    if samples and not kept:
        draws = [draw(sample[0]) for sample in samples]
        rule = f'above {min(draws):.3f}' if part == held.eval else f'at most {max(draws):.3f}'
        raise DataError(
            f'dataset.val_share={held.share:g} leaves none of the {len(samples)} images for {part}: {rule} '
            'leaves some'
        )
    return kept, [message for key, message in problems if mine(key)]


def draw(key: str) -> float:
    """A number from 0 to below 1 that depends on the name of a sample alone; a held out share is below it."""
    return int.from_bytes(hashlib.sha256(key.encode('utf-8', 'surrogateescape')).digest()[:6], 'big') / 2**48


def _pair(dataset, root, part):
    """As `pair_files`, but each message comes with the key of its sample."""
    number, found = _choose(dataset, root, part)
    layout = dataset.layouts[number]
    images, labels, keys = found.images, found.labels, found.keys
    if found.missing:
        raise DataError(_missing(dataset, root, part, found.missing))
    if found.clash:
        raise DataError(found.clash)
    image_dir, label_dir = (
        os.path.join(root, text.replace('{part}', part)) for text in (layout.images, layout.labels)
    )
    endings, label_ending = found.naming or Naming(layout.image_endings, layout.label_ending)
    if label_ending != layout.label_ending or endings[0] != layout.image_endings[0]:
        _note(endings[0] if endings[0] not in layout.image_endings else '', label_ending)
    others = ''
    if keys is None and layout.own:
        others = unseen(name for name in found.names[0] if not name.lower().endswith(tuple(endings)))
        if others and images:
            logger.warning('%s: %s', image_dir, others)
    strays = sorted(labels.keys() - images.keys()) if keys is None else []
    keys = sorted(images) if keys is None else keys
    problems = list(found.problems)
    if not keys and not problems:
        found_there = f'; {others}' if others else ''
        where = os.path.join(root, layout.lists.replace('{part}', part)) if layout.lists else image_dir
        raise DataError(f'{dataset.name}: no samples in {where}: expected {dataset.layout}{found_there}')
    near = _Near(layout.own is not None, *found.names)
    samples = []
    strange = layout.own and images and labels and not images.keys() & labels.keys()
    advice = ', or let --mode=setup find out how images and labels are named' if strange else ''
    for key in keys:
        absent = os.path.join(image_dir, key + endings[0])
        if key in images and key in labels:
            samples.append((key, images[key], labels[key], number))
        elif key in images:
            absent = os.path.join(label_dir, key + label_ending)
            cure = near.labels(label_dir, key) or f'add {absent}{advice}'
            problems.append((key, f'image {os.path.join(root, images[key])} has no label {absent}: {cure}'))
        else:
            cure = near.images(image_dir, key) or f'add it, or remove {key} from the list or the labels'
            problems.append((key, f'no image {absent}: {cure}'))
    for key in strays:
        absent = os.path.join(image_dir, key + endings[0])
        cure = near.images(image_dir, key) or f'add {absent}{advice}'
        problems.append((key, f'label {os.path.join(root, labels[key])} has no image: {cure}'))
    return samples, problems


class _Near:
    """Looks for the file that was meant by a name that does not exist."""

    def __init__(self, own, images, labels):
        self._own = own
        self._sorted = functools.cache(
            lambda names: sorted((bare_key(name).casefold(), name) for name in names)
        )
        self._images, self._labels = tuple(images), tuple(labels)

    def labels(self, folder, key):
        """What to do about a missing label: '' if no file has a name like it."""
        return self._cure(self._labels, folder, key, 'label_ending')

    def images(self, folder, key):
        """What to do about a missing image."""
        return self._cure(self._images, folder, key, 'image_ending')

    def _cure(self, names, folder, key, setting):
        pairs, folded = self._sorted(names), key.casefold()
        place = bisect.bisect_left(pairs, (folded,))
        near = [name for name_key, name in pairs[place : place + 20] if name_key.startswith(folded)]
        # Another number, as in a1 and a10, is another sample.
        near = [name for name in near if not bare_key(name)[len(key) :][:1].isalnum()]
        if not near:
            return ''
        name = next((name for name in near if bare_key(name).startswith(key)), near[0])
        there, rest = f'there is {os.path.join(folder, name)}', bare_key(name)[len(key) :]
        if not bare_key(name).startswith(key):
            return f'{there}, whose name differs in upper and lower case: rename one of them'
        if not rest.lower().endswith(LABEL_ENDINGS) and setting == 'label_ending':
            return f'{there}, which is no picture: --mode=setup tells what to do with it'
        if self._own:
            return f'{there}: set --config.dataset.{setting}={rest} if all are named so, or rename it'
        return f'{there}: rename it'


def _missing(dataset, root, part, missing):
    """The message about a missing folder or list."""
    there = ', '.join(sorted(os.listdir(root))[:8]) or 'nothing'
    kind = 'folder' if '.' not in os.path.basename(missing) else 'file'
    text = (
        f'{dataset.name}: no {kind} {missing}; --config.dataset.root should hold {dataset.layout}; '
        f'it holds {there}'
    )
    held = dataset.held_out
    splits = [s for s in _splits(dataset.layouts[0], root) if s not in held[:2]] if held else []
    flat = _without_splits(dataset.layouts[0], root) if held else []
    if flat:
        text += (
            f'. There are images without a folder per split: set {" ".join(flat)} and '
            '--config.dataset.val_share=0.1, which holds out a tenth; or let --mode=setup look at the folder'
        )
    elif splits:
        setting = 'eval_split' if part == held.eval else 'train_split'
        text += (
            f'. For {part} there is {" or ".join(splits[:5])}: set --config.dataset.{setting} to one of them'
        )
    if held and part == held.eval != held.train and not _find(dataset.layouts[0], root, held.train).missing:
        text += (
            '. Without images for validation, --config.dataset.val_share=0.1 holds out a tenth of '
            f'{held.train}, and --config.dataset.eval_split={held.train} scores on what is trained on'
        )
    return text


def _splits(layout, root):
    """What there is in place of the name of a split."""
    before, split, after = (layout.lists or layout.images).partition('{part}')
    folder, start = os.path.split(os.path.join(root, before))
    if not split or not os.path.isdir(folder):
        return []
    end = after.partition('/')[0]
    names = [name for name in sorted(os.listdir(folder)) if name.startswith(start) and name.endswith(end)]
    middle = [name[len(start) : len(name) - len(end)] for name in names if not hidden(name)]
    exists = os.path.isfile if layout.lists else os.path.isdir
    return [name for name in middle if name and exists(os.path.join(root, before + name + after))]


def _without_splits(layout, root):
    """Settings for images that lie where the folders of splits should, and labels alike; [] if none do."""
    tops = [text.removesuffix('/{part}') for text in (layout.images, layout.labels)]
    if layout.lists or tops == [layout.images, layout.labels]:
        return []
    some = [next(walk(os.path.join(root, top)), ('', []))[1] for top in tops]
    if not all(any(name.lower().endswith(LABEL_ENDINGS) for name in names) for names in some):
        return []
    return [f'--config.dataset.{key}={top}' for key, top in zip(('images', 'labels'), tops, strict=True)]


def _choose(dataset, root, part):
    """Returns the number of the layout that fits the files best, the first if several do, and its files."""
    best = None
    best_rank: tuple[bool, ...] = ()
    for number, layout in enumerate(dataset.layouts):
        if layout.parts and part not in layout.parts:
            continue
        found = _find(layout, root, part)
        rank = not found.missing, bool(found.labels), bool(found.images)
        if rank > best_rank:
            best, best_rank = (number, found), rank
        if all(rank):
            break
    if best is None:
        known = [part for layout in dataset.layouts for part in layout.parts]
        raise DataError(unknown(f'part of {dataset.name}', part, dict.fromkeys(known)))
    return best


def _find(layout: Layout, root: str, part: str) -> Found:
    images, labels = layout.images.replace('{part}', part), layout.labels.replace('{part}', part)
    if layout.archive:
        return _from_archive(layout, root, part)
    if images.endswith(LISTS):
        return from_two_lists(root, images, labels)
    found = from_folders(layout, root, images, labels)
    if layout.select:
        ranges = layout.select.get(part, ())
        image_files, label_files = (
            {key: path for key, path in files.items() if any(first <= key <= last for first, last in ranges)}
            for files in (found.images, found.labels)
        )
        found = found._replace(images=image_files, labels=label_files)
    for name in layout.without:
        path = os.path.join(root, name)
        if not os.path.isfile(path):
            return Found({}, {}, None, missing=path)
        for row in read_list(path, found.images.__contains__, columns=1):
            found.images.pop(row.cells[0], None)
            found.labels.pop(row.cells[0], None)
    if layout.lists:
        path = os.path.join(root, layout.lists.replace('{part}', part))
        if not os.path.isfile(path):
            return found._replace(missing=found.missing or path)
        found = from_list(found, layout, root, path, (images, labels))
    if layout.fallback and not found.labels.keys() >= set(found.images if found.keys is None else found.keys):
        folder = layout.fallback.replace('{part}', part)
        more, _ = by_key(names_below(os.path.join(root, folder)), (layout.label_ending,), folder, root)
        found = found._replace(labels=found.labels | more)
    return found


@functools.cache  # once, although training and evaluation both find the files
def _note(image_ending, label_ending):
    settings = [f'dataset.image_ending={image_ending}'] if image_ending else []
    settings.append(f'dataset.label_ending={label_ending}')
    logger.info('images and labels are paired as most are named: %s', ', '.join(settings))


def _from_archive(layout, root, part):
    path = os.path.join(root, layout.archive)
    if not os.path.isfile(path):
        return Found({}, {}, None, missing=path)
    if path.endswith('.mat'):
        return Found(*archives.nyud_slices(path, part), None)
    top = os.path.join(root, layout.images)
    images, clash = by_key(names_below(top), layout.image_endings, layout.images, root)
    masks = archives.context_masks(path, part)
    return Found(images, masks, sorted(masks), '' if os.path.isdir(top) else top, clash)
