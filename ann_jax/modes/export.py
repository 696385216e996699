"""--mode=export: a trained network as files that run without this package.

folder/model.json, weights.safetensors   what training, evaluation and `ann_jax.load` open
folder/model.stablehlo            one program for cpu, cuda and tpu: `jax.export.deserialize` runs it
folder/model.onnx                 for ONNX Runtime, OpenVINO and TensorRT
folder/model.tflite               for LiteRT, at a fixed size
folder/config.json                the config of the run, if there is one
folder/README.md                  the model card
"""

import datetime
import json
import logging
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ann_jax import __version__
from ann_jax.buckets.paths import place
from ann_jax.errors import ConfigError, DataError, unknown
from ann_jax.files import making
from ann_jax.kernels.forms import with_forms_of
from ann_jax.models.fold import fold
from ann_jax.modes.exporters import Job, write_litert, write_onnx, write_stablehlo
from ann_jax.modes.trained import open_trained
from ann_jax.parallel.mesh import has_accelerator
from ann_jax.typing import Backbone
from ann_jax.weights import folder
from ann_jax.weights.card import front_matter
from ann_jax.weights.folder import Weights
from ann_jax.weights.inputs import for_channels, normalizer

logger = logging.getLogger(__name__)

FORMATS = {
    'stablehlo': ('model.stablehlo', write_stablehlo),
    'onnx': ('model.onnx', write_onnx),
    'litert': ('model.tflite', write_litert),
}
# Of logits, relative to the largest: rounding that a dtype may cost in a deep network.
TOLERANCES = {'float32': 1e-4, 'float16': 2e-2, 'bfloat16': 1e-1}


def export(config: ConfigDict, workdir: Path, *, backbone: Backbone | None = None) -> None:
    """Writes the folder `export.output`, after comparing every program with the network.

    Args:
        config: of the run.
        workdir: its working directory.
        backbone: of the weights, if it is not from this package.

    Raises:
        ConfigError: a format is unknown or cannot hold the dtype or the network, a package is missing, or the
            folder exists.
        DataError: an exported program gives other logits.
        SaveError: a file cannot be written.
    """
    c = config.export
    formats = [name.strip() for name in c.formats.split(',') if name.strip()]
    if wrong := set(formats) - set(FORMATS):
        raise ConfigError(unknown('export.formats', sorted(wrong)[0], FORMATS))
    if c.dtype != 'float32' and 'litert' in formats:
        raise ConfigError(f'export.dtype={c.dtype}: LiteRT is written in float32 only')
    if c.dtype == 'bfloat16' and 'onnx' in formats:
        raise ConfigError(
            'export.dtype=bfloat16: ONNX Runtime cannot convolve in it; take float16 or float32, or leave '
            'onnx out of export.formats'
        )
    opened, source = open_trained(config, workdir, backbone)
    reference = _job(opened, config, backbone, 'float32')
    job = reference if c.dtype == 'float32' else _job(opened, config, backbone, c.dtype)

    asked = [
        f'eval.{name}={value}'
        for name, value in (
            ('scales', config.eval.scales),
            ('flip', config.eval.flip),
            ('crop', config.eval.crop),
        )
        if value not in ((1.0,), [1.0], False, (), [])
    ]
    if asked and formats:
        logger.warning('programs segment whole images at their own size, without %s', ' and '.join(asked))

    out = place(c.output or workdir / 'export')
    if out.exists():
        raise ConfigError(f'{out} exists: name a new folder with --config.export.output, or remove it first')
    with making(out, 'model.json') as draft:
        folder.write(draft, opened)
        notes, snippets = [], {}
        network = _Network(reference)
        for name, write in (each for key, each in FORMATS.items() if key in formats):
            file = draft / name
            written = write(file, job)
            worst = network.difference(written, c.size)
            if not worst < TOLERANCES[c.dtype]:
                raise DataError(
                    f'{file.name} gives other {c.gives} than the network: they differ by {worst:.1e} of '
                    'the largest logit'
                )
            size = f'{file.stat().st_size / 1e6:.1f} MB'
            notes.append(
                f'{file.name}: {written.what}; computes in {c.dtype}; {size}; differs by {worst:.1e} of '
                'the largest logit'
            )
            snippets[file.name] = written.snippet
        data, settings = config.dataset.name, source / 'config.json'
        if settings.is_file() and (name := _read(settings, lambda run: run['dataset']['name'])):
            data = f'{name}; all settings of the run are in config.json'
            (draft / 'config.json').write_bytes(settings.read_bytes())
        text = front_matter(opened.source) + _card(opened, data, source, notes, snippets)
        (draft / 'README.md').write_text(text, encoding='utf-8')
    print('\n'.join([*notes, f'written to {out}']))


def _job(opened, config, backbone, dtype):
    c = config.export
    model = opened.network(backbone, dtype=dtype).clone(folded=True)
    return Job(
        model,
        fold(model, opened.variables),
        for_channels(config.input, opened.in_channels),
        tuple(c.size),
        takes=c.takes,
        gives=c.gives,
        read=opened.images,
    )


class _Network:
    """What programs are compared with: the network in float32, on images that fill their array."""

    def __init__(self, job):
        self._job = replace(job, gives='logits')
        # Compiled once more for each size, and run once; on CPUs, compiling fast is what counts.
        options = {} if has_accelerator() else {'xla_backend_optimization_level': 0}
        apply = lambda variables, image: replace(self._job, variables=variables).program(image)
        # The forms that programs have too: those for CPUs round otherwise.
        self._apply = jax.jit(with_forms_of('any', apply), compiler_options=options)
        self._known = {}

    def difference(self, written, size):
        """The largest difference of logits, relative to the largest.

        Of ids: how far the logit of the class that was chosen lies below that of the best.
        """
        job = self._job
        height, width = written.size or (size[0] // 2 + 1, size[1] // 3 * 2)
        rng = np.random.default_rng(0)
        image: Any = rng.integers(0, 256, (2, height, width, job.model.in_channels), np.uint8)
        if job.takes == 'normalized':
            image = np.asarray(normalizer(**job.normalization)(image))
        if (height, width) not in self._known:
            self._known[height, width] = np.asarray(self._apply(job.variables, image))
        ours, theirs = self._known[height, width], written.run(image)
        if theirs.shape == ours.shape:
            worst = np.abs(ours - theirs).max()
        else:
            chosen = np.take_along_axis(ours, theirs.astype(np.int64)[..., None], -1)
            worst = (ours.max(-1) - chosen[..., 0]).max()
        return float(worst / np.abs(ours).max())


def _read(file, about):
    """What a JSON file says; '' if it is damaged, which is no reason to export nothing."""
    try:
        return about(json.loads(file.read_text(encoding='utf-8')))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        logger.warning('%s is damaged (%s): the export goes without it', file, error)
        return ''


def _score(record):
    """A line about one evaluation."""
    protocol = record.get('protocol', {})  # runs of earlier versions do not tell
    made = ', '.join(f'{key} {value}' for key, value in protocol.items() if value not in ([], 0)) or 'unknown'
    return (
        f'- `{record["split"]}` at step {record["step"]}: mIoU {100 * record["miou"]:.2f}, pixel accuracy '
        f'{100 * record["pixel_accuracy"]:.2f}; protocol: {made}'
    )


def _snippet(name, code):
    return [f'To run {name}, without this package:', '', '```python', code, '```', '']


def _reading(images):
    """Lines about how images become levels, where they are not 8-bit RGB."""
    if not images:
        return []
    lines = ['How images become those levels, which programs leave to you and `ann_jax.load` does:', '']
    if bands := images.get('bands'):
        lines += [f'- their bands {bands}, counted from 1, are the channels, in this order']
    if limits := images.get('image_range'):
        lines += [
            f'- {limits} are the values that become 0 and 255; 8 bits stay as they are, unless the range is '
            'one of 8 bits'
        ]
    return [*lines, '']


def _card(opened: Weights, data: str, source: Path, notes: list[str], snippets: dict[str, str]) -> str:
    order = 'blue, green, red' if opened.input['bgr'] else 'red, green, blue'
    if bands := opened.images.get('bands'):
        order = f'from bands {bands}' + ', the last first' * opened.input['bgr']
    normalization = for_channels(opened.input, opened.in_channels)
    mean, deviation = normalization['mean'], normalization['std']
    more = f', backbone={opened.backbone}(...)' if opened.backbone else ''
    backbone = opened.backbone or f'ResNet-{opened.model["depth"]}'
    lines = [
        '# Asymmetric Non-local Neural Network',
        '',
        f'Variant `{opened.model["variant"]}` on {backbone}.',
        '',
        *(f'- {name}: {value}' for name, value in opened.source.items()),
        f'- data: {data}',
        f'- written: {datetime.date.today()} by ann_jax {__version__}',
        f'- command: `python -m ann_jax.main {shlex.join(sys.argv[1:])}`',
        '',
        'Use, with this folder as FOLDER:',
        '',
        f"    ann_jax.load('FOLDER'{more})('street.jpg').overlay('out.png')",
        '    python -m ann_jax.main --config=... --config.init.from=FOLDER --mode=predict \\',
        '        --config.predict.input=IMAGES',
        '',
    ]
    if scores := [line for file in sorted(source.glob('metrics*.json')) if (line := _read(file, _score))]:
        lines += ['Scores of the run, by split and protocol:', '', *scores, '']
    lines += [
        'Normalisation, which programs that take uint8 apply themselves:',
        '',
        f'- channels {order}; mean {mean}, standard deviation {deviation}, for levels 0 to 255',
        '',
        *_reading(opened.images),
        'Programs:',
        '',
        *(f'- {note}' for note in notes or ['none']),
        '',
        *(line for name, code in snippets.items() for line in _snippet(name, code)),
        'Classes:',
        '',
    ]
    pairs = enumerate(zip(opened.classes, opened.colors, strict=True))
    return '\n'.join([*lines, *(f'{i}. {name} {color}' for i, (name, color) in pairs), ''])
