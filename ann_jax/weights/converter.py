"""Converts files of torch and Paddle to `Weights`, with everything that is known about them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ann_jax.data.classes import DATASETS
from ann_jax.data.names import voc_colors
from ann_jax.errors import ConfigError, DataError, unknown
from ann_jax.models.ann import ANN
from ann_jax.models.initializers import shape_variables
from ann_jax.models.resnet import ResNet
from ann_jax.models.settings import network
from ann_jax.weights.folder import BACKBONE_FACTS, Weights, save, sha256
from ann_jax.weights.layouts import Conversion, State, from_torch
from ann_jax.weights.pickles import Unread
from ann_jax.weights.recognize import read_meta, recognize, strip
from ann_jax.weights.torch_files import read

OUTPUT_STRIDES = (8, 16, 32)


class Converted(NamedTuple):
    """The result of a conversion; printed, it shows what became of every tensor.

    Attributes:
        weights: the variables of the network, and what is known about them.
        conversion: torch keys that were used, and those that were left out.
        notes: assumptions, where the file does not say.
    """

    weights: Weights
    conversion: Conversion
    notes: list[str]

    def __str__(self):
        weights, used, ignored = self.weights, self.conversion.used, self.conversion.ignored
        lines = [f'{key} -> {"/".join(path)}' for key, path in used.items()]
        lines += [f'{"/".join(path)} is zero: the network has no such bias' for path in self.conversion.zeros]
        lines += [f'{key} left out: {reason}' for key, reason in sorted(ignored.items())]
        lines += ['', weights.source['layout']]
        lines += [f'  {name}: {value}' for name, value in {**weights.model, **weights.input}.items()]
        if weights.classes:
            lines.append(f'  classes: {len(weights.classes)} ({", ".join(weights.classes[:4])}, ...)')
        lines += [f'note: {note}' for note in self.notes]
        reasons = ', '.join(sorted({reason.split(' of ')[0] for reason in ignored.values()}))
        count = sum(np.prod(value.shape, dtype=int) for value in jax.tree.leaves(weights.variables))
        lines.append(
            f'{len(used)} tensors converted ({count:,} numbers), {len(ignored)} left out'
            f'{f" ({reasons})" if reasons else ""}'
        )
        return '\n'.join(lines)


def convert(
    path: str | Path,
    out: str | Path | None = None,
    *,
    part: str = 'all',
    classes: str | None = None,
    align_corners: bool | None = None,
    output_stride: int = 8,
) -> Converted:
    """Converts a checkpoint of torch or Paddle. Neither is needed, and no code in the file is run.

        print(ann_jax.convert('ann.pth', 'weights/ann'))
        seg = ann_jax.load('weights/ann')

    Args:
        path: .pth, .pt, .safetensors or .pdparams: a state dict, or a dict with one under 'state_dict',
            'model_state_dict' or 'model'. Its layout is recognised by the keys: ResNets of torchvision, timm,
            mmsegmentation and the authors, and whole ANNs of mmsegmentation, the authors, PaddleSeg and
            sssegmentation.
        out: folder to write, which must not exist; None to write nothing.
        part: 'all', or 'backbone' to leave the heads out.
        classes: dataset with the class names of the classifier, such as 'cityscapes'; None to use the file's.
        align_corners: how the logits are resized; None to follow the file.
        output_stride: of a whole ANN: 8, 16 or 32.

    Raises:
        DataError: the file cannot be read or is damaged, or its tensors fit no known network.
        ConfigError: an argument cannot be used, or the folder exists.
    """
    path, out = Path(path).expanduser(), None if out is None else Path(out).expanduser()
    if out is not None and out.exists():
        raise ConfigError(f'{out} exists: name a new folder, or remove it first')
    for name, value, known in (
        ('part', part, ('all', 'backbone')),
        ('align_corners', align_corners, (None, True, False)),
        ('output_stride', output_stride, OUTPUT_STRIDES),
    ):
        if value not in known:
            raise ConfigError(f'{name}={value!r}: must be one of {", ".join(map(repr, known))}')
    state, meta = read_state(path)
    source = {'file': path.name, 'sha256': _check_name(path)}
    try:
        converted = convert_state(
            state,
            meta,
            name=path.name,
            part=part,
            classes=classes,
            align_corners=align_corners,
            output_stride=output_stride,
            source=source,
        )
    except DataError as error:
        raise DataError(f'{path}: {error}') from error
    if out is not None:
        save(out, converted.weights)
    return converted


def read_state(path: Path) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    """Reads the state dict of a checkpoint.

    Returns:
        {key: array}, floats as float32, without wrappers and `module.`; and the `meta` of the file, or {}.

    Raises:
        DataError: no weights can be read from it.
    """
    if not path.is_file():
        raise DataError(f'{path}: no such file')
    content = read(path)
    meta: Any = None
    if isinstance(content, dict):
        meta = content.get('meta')
        for wrapper in ('state_dict', 'model_state_dict', 'model'):
            if isinstance(content.get(wrapper), dict | Unread):
                content = content[wrapper]
                break
    if isinstance(content, Unread):
        raise DataError(
            f'{path}: holds an object of {content.name}, not a state dict of names and tensors: load it '
            'where it was created, and save only its state_dict()'
        )
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DataError(f'{path}: holds a {type(content).__name__}, not a state dict of names and tensors')
    state = {}
    for key, value in strip(content).items():
        unusual = value.name if isinstance(value, Unread) and '._rebuild' in value.name else None
        if isinstance(value, np.ndarray) and value.dtype.kind == 'c':
            unusual = value.dtype
        if unusual:
            raise DataError(
                f'{path}: {key} is quantized, sparse or of an unusual type ({unusual}), which is not '
                'supported: save it as an ordinary tensor of float32'
            )
        if isinstance(value, np.ndarray):
            with np.errstate(over='ignore'):  # overflows are reported as infinite later, by name
                state[key] = value.astype(np.float32, copy=False) if value.dtype.kind == 'f' else value
    if not state:
        raise DataError(f'{path}: holds no tensors, only {", ".join(list(content)[:4]) or "nothing"}')
    return state, meta if isinstance(meta, dict) else {}


def _check_name(path):
    """Returns the checksum of a file, and compares it with the digits that end the names of many files."""
    digest = sha256(path)
    if (name := re.search(r'-([0-9a-f]{8,64})$', path.stem)) and not digest.startswith(name[1]):
        raise DataError(
            f'{path}: its name promises a checksum that begins with {name[1]}, but it is {digest[:8]}: get '
            'it again, or rename it if you have changed it'
        )
    return digest


def convert_state(
    state: State,
    meta: Mapping[str, Any],
    *,
    name: str,
    part: str = 'all',
    classes: str | None = None,
    align_corners: bool | None = None,
    output_stride: int = 8,
    source: Mapping[str, Any] | None = None,
) -> Converted:
    """Converts a state dict, whose layout is recognised by its keys.

    Args:
        state: torch keys, without `module.`, and NumPy tensors in torch's layout (OIHW).
        meta: the `meta` that mmsegmentation saves with them, or {}.
        name: of the file, which may state the size of the training crops.
        part: 'all', or 'backbone' to leave the heads out.
        classes: dataset with the class names of the classifier.
        align_corners: how the logits are resized; None to follow the file.
        output_stride: of a whole ANN.
        source: where the weights come from.

    Raises:
        DataError: the network is not known, or a tensor has no place in it.
        ConfigError: the classes are unknown, or their number is not that of the classifier.
    """
    found = recognize(state)
    whole = bool(found.layout.heads) and part == 'all'
    if whole:
        for path in (('params', 'bottleneck', 'conv', 'kernel'), ('params', 'classifier', 'kernel')):
            if (key := found.layout.key(path)) not in state:
                raise DataError(f'its head is not that of an ANN, which has a tensor {key}')
    if whole and found.num_classes is not None:
        model = network(found.model, found.num_classes)
    else:
        model = ANN(1, ResNet(**{key: found.model[key] for key in BACKBONE_FACTS}), 'baseline')
    target = shape_variables(model)
    if not whole:
        target = {group: {'backbone': tree['backbone']} for group, tree in target.items()}
    conversion = from_torch(state, target, found.layout, part)

    try:
        facts = read_meta(meta)
    except (TypeError, ValueError) as error:
        raise DataError(f'its meta cannot be used ({error}): save only its state dict') from error
    settings = found.model if whole else {key: found.model[key] for key in BACKBONE_FACTS}
    notes: list[str] = []
    named: dict[str, Any] = {}
    if whole:
        settings = {**settings, 'output_stride': output_stride}
        settings['sizes'] = facts.get('sizes', settings['sizes'])
        settings['align_corners'] = _align_corners(
            align_corners, name, facts, settings, notes, found.layout.heads == 'mmsegmentation'
        )
        if not settings['aux_channels']:
            notes.append('it has no auxiliary head: training from it goes without the auxiliary loss')
        named = _classes(classes, facts, found.num_classes, notes)
    weights = Weights(
        variables=conversion.variables,
        model=settings,
        input={key: facts.get(key, value) for key, value in found.input.items()},
        **named,
        source={**(source or {}), 'layout': found.layout.describe()},
    )
    return Converted(weights, conversion, notes)


def _align_corners(given, name, facts, settings, notes, mmsegmentation):
    if given is not None:
        return given
    if 'align_corners' in facts:
        return facts['align_corners']
    if mmsegmentation and re.search(r'(769|713)x\1', name):
        notes.append('align_corners is true: the file name says 769x769')
        return True
    if mmsegmentation:
        notes.append(
            "align_corners is false, mmsegmentation's default, because the file does not say; if the network "
            'was trained on crops of 769x769, convert it again with --align-corners=true'
        )
    return settings['align_corners']


def _classes(given, facts, count, notes):
    names: Sequence[str] | None
    if given:
        if given not in DATASETS:
            raise ConfigError(unknown('dataset', given, DATASETS))
        names, colors = DATASETS[given].classes, DATASETS[given].colors
    else:
        names, colors = facts.get('classes'), facts.get('colors')
        if not names:
            names = [f'class {i}' for i in range(count)]
            notes.append('the file does not name its classes: give --classes=DATASET')
    if len(names) != count:
        raise ConfigError(f'the classifier has {count} classes, but {len(names)} names are given')
    if not colors or len(colors) != count:
        colors = voc_colors(count)
    return {'classes': tuple(names), 'colors': tuple(map(tuple, colors))}
