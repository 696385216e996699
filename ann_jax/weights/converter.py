"""Converts files of torch and Paddle to `Weights`, with everything that is known about them."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ann_jax.buckets.copies import fetched, naming
from ann_jax.buckets.paths import place
from ann_jax.buckets.services import remote
from ann_jax.data.classes import DATASETS
from ann_jax.data.decode.levels import channels_of
from ann_jax.data.palette import distinct_colors
from ann_jax.errors import ConfigError, DataError, unknown
from ann_jax.models.ann import ANN
from ann_jax.models.initializers import shape_variables
from ann_jax.models.resnet import PLANS, ResNet
from ann_jax.models.settings import BACKBONE_FACTS, network
from ann_jax.weights import sums
from ann_jax.weights.contents import read_file
from ann_jax.weights.descriptions import HUB_NAMES, UNSEEN, read_meta, refuse_lookalikes
from ann_jax.weights.folder import Weights, save
from ann_jax.weights.hub import foreign, located, origin
from ann_jax.weights.layouts import State
from ann_jax.weights.recognize import recognize
from ann_jax.weights.state_dicts import PREFERENCES
from ann_jax.weights.torch_files import ENDINGS
from ann_jax.weights.torch_state import Conversion, from_torch


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
    output_stride: int | None = None,
    prefer: str | None = None,
) -> Converted:
    """Converts a checkpoint of torch or Paddle. Neither is needed, and no code in the file is run.

        print(ann_jax.convert('ann.pth', 'weights/ann'))
        seg = ann_jax.load('weights/ann')

    Args:
        path: .pth, .pt, .safetensors or .pdparams, or hf://OWNER/NAME[@REVISION], a ResNet of timm or
            transformers on their hub: a state dict, or dicts around one. The network is found by
            the names of its tensors, whatever they begin with: ResNets of torchvision, timm, transformers,
            mmsegmentation, PaddleSeg and the authors, and whole ANNs of mmsegmentation, the authors,
            PaddleSeg and sssegmentation.
        out: folder to write, which must not exist; None to write nothing.
        part: 'all', or 'backbone' to leave the heads out.
        classes: dataset with the class names of the classifier, such as 'cityscapes'; None to use the file's.
        align_corners: how the logits are resized; None to follow the file.
        output_stride: of a whole ANN: 4, 8, 16 or 32; None to follow the file.
        prefer: 'ema' for the moving average of the weights, if the file holds one beside them.

    Raises:
        DataError: the file cannot be read or is damaged, or its tensors fit no known network.
        ConfigError: an argument cannot be used, or the folder exists.
        SaveError: the folder cannot be written.
    """
    out = None if out is None else place(out)
    if out is not None and out.exists():
        raise ConfigError(f'{out} exists: name a new folder, or remove it first')
    for name, value, known in (
        ('part', part, ('all', 'backbone')),
        ('align_corners', align_corners, (None, True, False)),
        ('output_stride', output_stride, (None, *PLANS)),
        ('prefer', prefer, PREFERENCES),
    ):
        if value not in known:
            raise ConfigError(f'{name}={value!r}: must be one of {", ".join(map(repr, known))}')
    found = located(path)
    path = _near(found) if remote(found) else found
    with naming(found, path):
        path = foreign(path) or path
        if path.is_dir():
            raise ConfigError(f'{path} is a folder: name a file in it, or open it with ann_jax.load')
        file = read_file(path, prefer)
        source = {'file': path.name, 'sha256': sums.check(path), **origin(path)}
        try:
            converted = convert_state(
                file.state,
                file.meta,
                name=path.name,
                part=part,
                classes=classes,
                align_corners=align_corners,
                output_stride=output_stride,
                source=source,
            )
        except DataError as error:
            raise DataError(f'{path}: {error}') from error
        # As when they are opened: no folder shall be written that is refused later.
        dataclasses.replace(converted.weights, path=path).check()
        converted.notes[:0] = [*file.notes, *filter(None, [sums.doubt(path)])]
        converted.conversion.ignored.update(dict.fromkeys(file.outside, 'not part of the network'))
    if out is not None:
        save(out, converted.weights)
    return converted


def _near(path):
    """A copy on this machine of weights in a bucket, with what lies beside a file and is said of it."""
    copy = Path(fetched(str(path)))
    if copy.is_file():
        names = [path.with_suffix('.json').name, f'{path.name}.sha256', path.with_suffix('.sha256').name]
        others = [each for each in path.parent.iterdir() if each.suffix in ENDINGS and each.name != path.name]
        if path.stem in HUB_NAMES or not others:
            names += ['config.json', 'preprocessor_config.json']
        for beside in (path.with_name(name) for name in dict.fromkeys(names)):
            if beside.is_file():
                Path(fetched(str(beside))).replace(copy.with_name(beside.name))
    return copy


def convert_state(
    state: State,
    meta: Mapping[str, Any],
    *,
    name: str,
    part: str = 'all',
    classes: str | None = None,
    align_corners: bool | None = None,
    output_stride: int | None = None,
    source: Mapping[str, Any] | None = None,
) -> Converted:
    """Converts a state dict, whose layout is recognised by its keys.

    Args:
        state: torch keys, without wrappers, and NumPy tensors in torch's layout (OIHW).
        meta: what is said of them, see `read_meta`.
        name: of the file, which may state the size of the training crops.
        part: 'all', or 'backbone' to leave the heads out.
        classes: dataset with the class names of the classifier.
        align_corners: how the logits are resized; None to follow the file.
        output_stride: of a whole ANN; None to follow the file.
        source: where the weights come from.

    Raises:
        DataError: the network is not known, or a tensor has no place in it.
        ConfigError: the classes are unknown, or their number is not that of the classifier.
    """
    refuse_lookalikes(f'{name} {(source or {}).get("hub", "")}', meta)
    try:
        facts = read_meta(meta)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise DataError(f'what is said of it cannot be used ({error}): save only its state dict') from error
    images = facts.get('images', {})
    channels = channels_of(images.get('bands', ''))
    found = recognize(state)
    whole = bool(found.layout.heads) and part == 'all'
    if whole:
        for path in (('params', 'bottleneck', 'conv', 'kernel'), ('params', 'classifier', 'kernel')):
            if (key := found.layout.key(path)) not in state:
                raise DataError(
                    f'its head is not that of an ANN, which has a tensor {key}: --part=backbone takes its '
                    'backbone alone'
                )
    if whole and found.num_classes is not None:
        model = network(found.model, found.num_classes, in_channels=channels)
    else:
        backbone = ResNet(**{key: found.model[key] for key in BACKBONE_FACTS})
        model = ANN(1, backbone, 'baseline', in_channels=channels)
    target = shape_variables(model)
    if not whole:
        target = {group: {'backbone': tree['backbone']} for group, tree in target.items()}
    conversion = from_torch(state, target, found.layout, part)

    settings = found.model | {key: facts[key] for key in UNSEEN if key in facts}
    notes: list[str] = []
    named: dict[str, Any] = {}
    if whole:
        mmsegmentation = found.layout.heads == 'mmsegmentation'
        settings['align_corners'] = _align_corners(
            align_corners, name, facts, settings, notes, mmsegmentation
        )
        if output_stride is not None:
            settings['output_stride'] = output_stride
        elif 'output_stride' not in facts:
            notes.append('output_stride is 8, because the file does not say; if not, give --output-stride')
        if 'test' in facts:
            windows = [
                f'--config.eval.{key}={",".join(map(str, size))}'
                for key, size in facts['test'].items()
                if isinstance(size, tuple)
            ]
            notes.append(f'it was tested by sliding windows: {" ".join(windows)}')
        if not settings['aux_channels']:
            notes.append('it has no auxiliary head: training from it goes without the auxiliary loss')
        named = _classes(classes, facts, found.num_classes, notes)
    else:
        settings = {key: settings[key] for key in BACKBONE_FACTS}
        given = {'classes': classes, 'align_corners': align_corners, 'output_stride': output_stride}
        if unused := [key for key, value in given.items() if value is not None]:
            notes.append(f'{", ".join(unused)}: not used, because a backbone alone is converted')
    told = {'layout': found.layout.describe(), **({'crop': facts['crop']} if 'crop' in facts else {})}
    weights = Weights(
        variables=conversion.variables,
        model=settings,
        input={key: facts.get(key, value) for key, value in found.input.items()},
        **named,
        images=images,
        source={**(source or {}), **told},
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
        if not isinstance(given, str) or given not in DATASETS:
            raise ConfigError(unknown('dataset', str(given), DATASETS))
        names, colors = DATASETS[given].classes, DATASETS[given].colors
    else:
        names, colors = facts.get('classes'), facts.get('colors')
        if not names:
            names = [f'class {i}' for i in range(count)]
            notes.append('the file does not name its classes: give --classes=DATASET')
        elif len(names) != count:
            raise DataError(
                f'names {len(names)} classes, but its classifier has {count} outputs: give --classes=DATASET'
            )
    if len(names) != count:
        raise ConfigError(f'--classes={given} names {len(names)}, but the classifier has {count} outputs')
    if not colors or len(colors) != count:
        colors = distinct_colors(count)
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        names = [f'{name} {i}' if name in twice else name for i, name in enumerate(names)]
        notes.append(f'several classes are called {", ".join(twice)}: their index follows their name')
    return {'classes': tuple(names), 'colors': tuple(map(tuple, colors))}
