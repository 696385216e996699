"""--mode=export: a trained network as files that run without this package.

folder/model.json, weights.safetensors   what training, evaluation and `ann_jax.load` open
folder/model.stablehlo            one program for cpu, cuda and tpu: `jax.export.deserialize` runs it
folder/model.onnx                 for onnxruntime, at a fixed size
folder/config.json                the config of the run, if there is one
folder/README.md                  the model card
"""

import datetime
import json
import logging
import os
import shlex
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from ml_collections import ConfigDict

from ann_jax import __version__, build
from ann_jax.errors import ConfigError, DataError, unknown
from ann_jax.files import writing
from ann_jax.kernels.forms import with_forms_of
from ann_jax.kernels.masking import pair
from ann_jax.kernels.resizing import linear_matrix, resize_images
from ann_jax.models.feature_map import FeatureMap
from ann_jax.models.fold import fold
from ann_jax.modes.trained import open_trained
from ann_jax.typing import Backbone
from ann_jax.weights import folder
from ann_jax.weights.card import front_matter
from ann_jax.weights.folder import Weights
from ann_jax.weights.inputs import for_channels

logger = logging.getLogger(__name__)

PLATFORMS = ('cpu', 'cuda', 'tpu')
FORMATS = ('stablehlo', 'onnx')
TOLERANCE = 1e-4  # of logits, relative to the largest


def export(config: ConfigDict, workdir: Path, *, backbone: Backbone | None = None) -> None:
    """Writes the folder `export.output`, after comparing every program with the network.

    Args:
        config: of the run.
        workdir: its working directory.
        backbone: of the weights, if it is not from this package.

    Raises:
        ConfigError: a format is unknown, a package is missing, or the folder exists.
        DataError: an exported program gives other logits.
    """
    c = config.export
    formats = [name.strip() for name in c.formats.split(',') if name.strip()]
    if wrong := set(formats) - set(FORMATS):
        raise ConfigError(unknown('export.formats', sorted(wrong)[0], FORMATS))
    opened, source = open_trained(config, workdir, backbone)
    model = opened.network(backbone, dtype=config.model.dtype).clone(folded=True)
    logits = _logits(model, build.normalize(config), fold(model, opened.variables))

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

    out = Path(c.output or workdir / 'export').expanduser()
    if out.exists():
        raise ConfigError(f'{out} exists: name a new folder with --config.export.output, or remove it first')
    draft = out.with_name(f'.{out.name}.{os.getpid()}')  # the folder appears complete or not at all
    try:
        with writing(out):
            folder.save(draft, opened)
            size = tuple(c.size)
            notes = []
            if 'stablehlo' in formats:
                notes.append(_write_stablehlo(draft / 'model.stablehlo', model, logits, size))
            if 'onnx' in formats:
                notes.append(_write_onnx(draft / 'model.onnx', model, logits, size))
            text = front_matter(opened.source) + _card(opened, config, source, notes)
            if (source / 'config.json').is_file():
                shutil.copy(source / 'config.json', draft)
            (draft / 'README.md').write_text(text, encoding='utf-8')
            draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    print('\n'.join([*notes, f'written to {out}']))


def _logits(model, normalize, variables):
    """(B, H, W, N), uint8 or float32 of 0 to 255 -> (B, H, W, classes) float32; weights are constants."""

    def logits(image):
        batch, height, width, _ = image.shape
        image = normalize(image)
        if isinstance(height, int) and isinstance(width, int):
            low = model.apply(variables, image).main
            rows, columns = (
                linear_matrix(low.shape[i], n, model.align_corners) for i, n in ((1, height), (2, width))
            )
            return jnp.einsum('oh,pw,bhwc->bopc', rows, columns, low, precision='highest')
        # The sizes are symbolic, known only when the program runs; symbolic arithmetic can compare the halves
        # of multiples of 16.
        size = jnp.stack([jnp.full((batch,), n, jnp.int32) for n in (height, width)], 1)
        canvas = jnp.zeros((batch, (height + 15) // 16 * 16, (width + 15) // 16 * 16, image.shape[3]))
        image = jax.lax.dynamic_update_slice(canvas, image, (0, 0, 0, 0))
        low = model.apply(variables, FeatureMap.of(image, size)).main
        return resize_images(low.array, low.size, (height, width), pair(size), model.align_corners)

    return logits


def _write_stablehlo(file, model, logits, size):
    if model.takes_canvas:
        shape, free = jax_export.symbolic_shape('b, h, w'), 'any batch, height and width'
    else:
        shape, free = (*jax_export.symbolic_shape('b'), *size), f'any batch, {size[0]} x {size[1]}'
    argument = jax.ShapeDtypeStruct((*shape, model.in_channels), jnp.uint8)
    program = jax_export.export(jax.jit(logits), platforms=PLATFORMS)(argument)
    try:
        file.write_bytes(program.serialize())
    except ImportError as error:
        raise ConfigError('writing StableHLO needs flatbuffers: pip install flatbuffers') from error
    loaded = jax_export.deserialize(bytearray(file.read_bytes()))
    sizes = [size, (size[0] // 2 + 1, size[1] // 3 * 2)] if model.takes_canvas else [size]
    worst = max(_difference(loaded.call, logits, each, model.in_channels) for each in sizes)
    what = f'{free}; {", ".join(PLATFORMS)}; uint8 {_channels(model)} to float32 logits'
    return _checked(file, what, worst)


def _write_onnx(file, model, logits, size):
    try:
        import jax2onnx
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            'writing ONNX needs jax2onnx and onnxruntime: pip install jax2onnx onnxruntime'
        ) from error
    shape = jax.ShapeDtypeStruct((1, *size, model.in_channels), jnp.float32)
    plain = with_forms_of('any', logits)  # the exporter does not support the choice by platform
    jax2onnx.to_onnx(plain, [shape], return_mode='file', output_path=str(file))
    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    run = lambda image: session.run(None, {name: np.asarray(image, np.float32)})[0]
    what = f'1 x {size[0]} x {size[1]}, float32 {_channels(model)} of 0 to 255'
    return _checked(file, what, _difference(run, logits, size, model.in_channels))


def _channels(model):
    return 'RGB' if model.in_channels == 3 else f'{model.in_channels} channels'


def _difference(program, logits, size, channels):
    image = np.random.default_rng(0).integers(0, 256, (1, *size, channels), np.uint8)
    ours, theirs = np.asarray(logits(image)), np.asarray(program(image))
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


def _checked(file, what, worst):
    if not worst < TOLERANCE:
        raise DataError(f'{file} gives other logits than the network (relative difference {worst:.1e})')
    size = f'{file.stat().st_size / 1e6:.1f} MB'
    return f'{file.name}: {what}; {size}; differs by {worst:.1e} of the largest logit'


def _score(file):
    """A line about one evaluation."""
    record = json.loads(file.read_text(encoding='utf-8'))
    protocol = record.get('protocol', {})  # runs of earlier versions do not tell
    made = ', '.join(f'{key} {value}' for key, value in protocol.items() if value not in ([], 0)) or 'unknown'
    return (
        f'- `{record["split"]}` at step {record["step"]}: mIoU {100 * record["miou"]:.2f}, pixel accuracy '
        f'{100 * record["pixel_accuracy"]:.2f}; protocol: {made}'
    )


def _card(opened: Weights, config: ConfigDict, source: Path, notes: list[str]) -> str:
    order = 'blue, green, red' if opened.input['bgr'] else 'red, green, blue'
    order = f'{opened.in_channels} bands' if opened.in_channels != 3 else order
    normalization = for_channels(opened.input, opened.in_channels)
    mean, deviation = normalization['mean'], normalization['std']
    settings, data = source / 'config.json', config.dataset.name
    if settings.is_file():
        data = json.loads(settings.read_text(encoding='utf-8'))['dataset']['name']
        data += '; all settings of the run are in config.json'
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
    if scores := sorted(source.glob('metrics*.json')):
        lines += ['Scores of the run, by split and protocol:', '', *map(_score, scores), '']
    lines += [
        'Normalisation, which the programs apply themselves (they take levels of 0 to 255, red first):',
        '',
        f'- channels {order}; mean {mean}, standard deviation {deviation}, for levels 0 to 255',
        *(f'- {name.replace("_", " ")} of the images: {value}' for name, value in opened.images.items()),
        '',
        'Programs:',
        '',
        *(f'- {note}' for note in notes or ['none']),
        '',
        'Classes:',
        '',
    ]
    pairs = enumerate(zip(opened.classes, opened.colors, strict=True))
    return '\n'.join([*lines, *(f'{i}. {name} {color}' for i, (name, color) in pairs), ''])
