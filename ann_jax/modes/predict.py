"""--mode=predict: segments images and writes the requested outputs, Cityscapes submissions among them."""

import itertools
import logging
import re
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from ann_jax import build
from ann_jax.buckets.copies import fetched
from ann_jax.buckets.paths import place
from ann_jax.data.classes import DATASETS
from ann_jax.data.datasets import read_label
from ann_jax.data.decode.reading import optional
from ann_jax.errors import ConfigError, DataError, SaveError, unknown
from ann_jax.evaluation.metrics import count_pixels, scores
from ann_jax.files import replacing, write_csv
from ann_jax.inference import formats, pictures
from ann_jax.inference.results import AREA_HEADS
from ann_jax.inference.segmenter import PROTOCOL_SETTINGS, READING_SETTINGS, Segmenter
from ann_jax.modes.inputs import input_files
from ann_jax.modes.trained import open_trained
from ann_jax.modes.video import check_outputs, is_video, segment_video
from ann_jax.parallel.processes import is_main, refuse_differences
from ann_jax.typing import IGNORE, Backbone

logger = logging.getLogger(__name__)

OUTPUTS = (
    'ids', 'ids16', 'colors', 'overlays', 'probabilities', 'areas', 'coco', 'polygons', 'panels', 'submission'
)  # fmt: skip
WHOLE = 'areas', 'submission'  # of all images together
CITYSCAPES_SIZE = (1024, 2048)


def predict(config: ConfigDict, workdir: Path, *, backbone: Backbone | None = None) -> int:
    """Segments every image, or every video, that `predict.input` names; processes share them.

    Args:
        config: of the run.
        workdir: its working directory.
        backbone: of the weights, if it is not from this package.

    Returns:
        Exit status: 0, or 1 if an image or a video could not be used.

    Raises:
        ConfigError: there are no images, an output is unknown, or several processes see other images or
            would write one file.
        DataError: no image could be used, a package is missing, or the submission would not be accepted.
        SaveError: a file cannot be written.
    """
    c = config.predict
    c.input, c.truth = fetched(c.input), fetched(c.truth)
    kinds = _kinds(config)
    out = place(c.output or workdir / 'predictions')
    text = c.input
    if not text and 'submission' in kinds:
        text = str(Path(config.dataset.root) / 'leftImg8bit' / 'test')
    files, root = input_files(text, 'predict', out)
    names = '\n'.join(str(file.relative_to(root)) for file in files)
    refuse_differences(
        {'number of files in predict.input': len(files), 'their names': zlib.crc32(names.encode())}
    )
    videos = [file for file in files if is_video(file)]
    if videos:
        if len(videos) < len(files):
            raise ConfigError(f'predict.input={c.input} names videos and images: name one kind at a time')
        check_outputs(kinds)
    weights, source = open_trained(config, workdir, backbone)
    count = DATASETS['cityscapes'].num_classes
    if 'submission' in kinds and len(weights.classes) != count:
        raise ConfigError(
            f'predict.write=submission needs the {count} classes of Cityscapes, not the '
            f'{len(weights.classes)} of {source}'
        )
    segmenter = Segmenter(
        weights,
        dtype=config.model.dtype,
        space=config.mesh.space,
        backbone=backbone,
        **{name: config.eval[name] for name in PROTOCOL_SETTINGS},
        **{name: config.dataset[name] for name in READING_SETTINGS},
    )
    segment = _segment_videos if videos else _segment_images
    return 1 if segment(segmenter, files, root, out, kinds, config) else 0


def _kinds(config):
    """What is to be written; refuses what cannot be, before any image is read."""
    c = config.predict
    kinds = [name.strip() for name in c.write.split(',')]
    for name in kinds:
        if name not in OUTPUTS:
            raise ConfigError(unknown('predict.write', name, OUTPUTS))
    for kind in formats.NEEDS.keys() & {*kinds}:
        optional(formats.NEEDS[kind], f'predict.write={kind}')
    if 'panels' in kinds:
        if not Path(c.truth or 'unset').expanduser().is_dir():
            raise ConfigError(
                f'predict.write=panels needs a folder of labels in --config.predict.truth, not {c.truth!r}'
            )
        build.dataset(config)  # defines what labels mean
    elif c.truth:
        logger.warning('predict.truth=%s has no effect: it needs panels in predict.write', c.truth)
    if jax.process_count() > 1 and (whole := [name for name in kinds if name in WHOLE]):
        raise ConfigError(
            f'predict.write={",".join(whole)}: one process writes it for all images: start the command once, '
            'without --coordinator'
        )
    return sorted(kinds, key='panels'.__eq__)  # last, because a label may be missing


def _segment_videos(segmenter, files, root, out, kinds, config):
    """Returns what kept videos from being segmented."""
    targets = _targets([path.relative_to(root) for path in files])
    files = _share(files)
    errors: list[str] = []
    done = 0
    for file in files:
        try:
            problem = segment_video(
                segmenter, file, out, targets[file.relative_to(root)], kinds, config.predict.batch_size
            )
            done += 1
            errors += [problem] if problem else []
        except DataError as error:
            errors.append(str(error))
    if files and not done:
        raise DataError('\n'.join(errors))
    for problem in errors:
        print(problem)
    if errors:
        print(f'{done} of {len(files)} videos segmented; {len(errors)} problems, see above')
    return errors


def _segment_images(segmenter, files, root, out, kinds, config):
    """Returns what kept images from being segmented."""
    targets = _targets([path.relative_to(root) for path in files])
    files = _share(files)
    errors: list[str] = []
    areas: list[list[str | int]] = []  # a row per image
    done = 0
    results = segmenter.stream(files, errors, batch_size=config.predict.batch_size)
    with tqdm(total=len(files), desc='predict', unit='image', disable=not is_main()) as bar:
        for result in results:
            assert result.path is not None
            done += 1
            if 'areas' in kinds:
                areas.append(result.area_row(str(result.path.relative_to(root))))
            try:
                _write(result, out, kinds, targets[result.path.relative_to(root)], root, config)
            except DataError as error:  # of its label
                errors.append(str(error))
            except SaveError as error:
                raise SaveError(f'{error}; or choose a folder with --config.predict.output') from error
            bar.update(min(done + len(errors), len(files)) - bar.n)
    for problem in errors:
        print(problem)
    if files and not done:
        raise DataError(f'none of the {len(files)} images could be used')
    if areas:
        write_csv(out / 'areas.csv', AREA_HEADS + segmenter.classes, areas)
    if 'submission' in kinds:
        print(f'submission written to {_zip(out / "submission", len(files))}')
    problems = f'; {len(errors)} problems, see above' if errors else ''
    print(f'{done} of {len(files)} images segmented; {", ".join(kinds)} written to {out}{problems}')
    return errors


def _share(files):
    """Those that this process segments."""
    return files[jax.process_index() :: jax.process_count()]


def _targets(names):
    """Image -> what is written for it, without an ending: a, or a_jpg and a_png if both have that name."""
    stems = Counter(name.with_suffix('') for name in names)
    targets = {name: name.with_suffix('') for name in names if stems[name.with_suffix('')] == 1}
    taken = set(targets.values())
    for name in names:
        if name not in targets:
            longer = name.with_name(name.name.replace('.', '_'))
            candidates = (longer.with_name(f'{longer.name}_{n}') for n in itertools.count(2))
            targets[name] = next(each for each in itertools.chain([longer], candidates) if each not in taken)
            taken.add(targets[name])
    return targets


def _write(result, out, kinds, target, root, config):
    name = result.path.relative_to(root)

    def path(kind, ending):
        return out / kind / target.with_name(target.name + ending)

    def picture(array, file):
        with replacing(file) as draft:
            Image.fromarray(array).save(draft)

    for kind in kinds:
        match kind:
            case 'colors':
                result.colored(path(kind, '.png'))
            case 'overlays':
                result.overlay(path(kind, '.png'), legend=True)
            case 'ids' | 'ids16' | 'probabilities' | 'coco' | 'polygons':
                result.write(kind, path(kind, ''))
            case 'panels':
                picture(_panel(name, result, config), path(kind, '.png'))
            case 'submission':
                raw = DATASETS['cityscapes'].class_to_raw[result.ids]
                picture(raw, out / kind / f'{name.stem}.png')


def _panel(name, result, config):
    label = read_label(Path(config.predict.truth).expanduser(), name, build.dataset(config))
    if label.shape != result.ids.shape:
        (height, width), (rows, columns) = result.ids.shape, label.shape
        raise DataError(
            f'{name} is {width}x{height} but its label in predict.truth is {columns}x{rows}: make them the '
            'same size'
        )
    # Its classes may be others than the network's.
    miou = scores(count_pixels(label, result.ids, IGNORE)).miou
    title = pictures.scored(str(name), miou)
    return pictures.panel(result.image, label, result.ids, result.colors, result.classes, title)


def _zip(folder, count):
    """Makes the checks of the Cityscapes server, then zips."""
    files = sorted(folder.glob('*.png'))
    known = set(DATASETS['cityscapes'].class_to_raw.tolist())
    for file in files:
        with file.open('rb') as stream, Image.open(stream) as image:
            ids = np.asarray(image)
        if ids.shape != CITYSCAPES_SIZE or image.mode != 'L':
            (height, width), (rows, columns) = ids.shape[:2], CITYSCAPES_SIZE
            raise DataError(
                f'{file} is {width}x{height} ({image.mode}), but the server takes {columns}x{rows} (L): '
                'segment images of that size, and remove other files from the folder'
            )
        if wrong := set(np.unique(ids).tolist()) - known:
            raise DataError(f'{file} holds label ids {sorted(wrong)}, which are not scored: remove it')
        if not re.match(r'[a-zA-Z-]+_\d{6}_\d{6}', file.stem):
            raise DataError(
                f'{file}: the server takes names that begin with city_sequence_frame, such as '
                'berlin_000000_000019: rename the image'
            )
    if len(files) != count:
        raise DataError(
            f'{folder} holds {len(files)} pictures for {count} images: fix those that cannot be read, and '
            'remove other files from the folder'
        )
    archive = folder.with_suffix('.zip')
    with replacing(archive) as draft, zipfile.ZipFile(draft, 'w', zipfile.ZIP_STORED) as target:
        for file in files:
            target.writestr(file.name, file.read_bytes())
    return archive
