"""What is said of weights, beside their tensors: in the same file, in one beside it, or in its name.

mmsegmentation saves class names and the text of its config; timm and transformers write a config.json. Files
that this package exports hold a description of their own under `OWN`; where the format has no place for it,
it lies beside the file, under the same name with the ending .json.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ann_jax.buckets.copies import fetched
from ann_jax.errors import DataError
from ann_jax.files import replacing
from ann_jax.weights import mmseg_config
from ann_jax.weights.folder import IMAGES, Weights, as_tuples, sha256
from ann_jax.weights.torch_files import ENDINGS

OWN = 'ann_jax'
# Settings of `config.model` that tensors do not show.
UNSEEN = (
    'output_stride', 'multi_grid', 'contract_dilation', 'dilate_second_conv', 'ceil_pool', 'sizes',
    'align_corners',
)  # fmt: skip
# How hubs call a file that a config.json in the same folder describes; so does one beside a single file.
HUB_NAMES = ('model', 'pytorch_model')


def describe(weights: Weights) -> dict[str, Any]:
    """A description of exported weights, of which `read_meta` gives the same settings again; JSON."""
    model = {key: weights.model[key] for key in UNSEEN}
    names = {'classes': weights.classes, 'colors': weights.colors}
    images = {'images': weights.images} if weights.images else {}
    return json.loads(json.dumps({'model': model, 'input': weights.input, **names, **images}))


def write_beside(path: Path, description: Mapping[str, Any]) -> Path:
    """Writes a description beside an exported file; returns where."""
    out = path.with_suffix('.json')
    text = json.dumps({OWN: description, 'sha256': sha256(Path(fetched(str(path))))}, indent=1)
    with replacing(out) as draft:
        draft.write_text(text + '\n', encoding='utf-8')
    return out


def read_beside(path: Path) -> dict[str, Any]:
    """Reads what lies beside a file: its description, or the config.json of a hub.

    Raises:
        DataError: it cannot be read, or the description is of another file.
    """
    said: dict[str, Any] = {}
    own = _json(path.with_suffix('.json'), OWN)
    if OWN in own:
        if own.get('sha256', '') != sha256(path):
            raise DataError(
                f'{path.with_suffix(".json")} describes another file than {path.name}, which has changed: '
                'export it again, or remove the description'
            )
        said[OWN] = own[OWN]
    others = [other for other in path.parent.iterdir() if other.suffix in ENDINGS and other != path]
    if path.stem in HUB_NAMES or not others:
        config = _json(path.with_name('config.json'))
        if config.keys() & {'architecture', 'architectures', 'pretrained_cfg'}:
            said |= config | _json(path.with_name('preprocessor_config.json'))
    return said


def _json(path, word=''):
    """The dict in a file; {} if there is none, or none with the word, as in another program's log."""
    try:
        text = path.read_text(encoding='utf-8') if path.is_file() else ''
        content = json.loads(text) if text and word in text else {}
    except (OSError, ValueError) as error:
        raise DataError(f'{path} cannot be read ({error}): restore or remove it') from error
    return content if isinstance(content, dict) else {}


def read_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Reads what is said of weights.

    Args:
        meta: the `meta` of a checkpoint, or another dict of the file or beside it.

    Returns:
        Some of 'classes', 'colors', 'mean', 'std', 'bgr', 'images', the settings in `UNSEEN`, and 'crop' and
        'test', the sizes of training crops and of windows in testing.

    Raises:
        ValueError: it describes a network that cannot be built here.
    """
    facts: dict[str, Any] = {}
    names = meta.get('dataset_meta')
    if not isinstance(names, Mapping):
        names = {'classes': meta.get('CLASSES'), 'palette': meta.get('PALETTE')}
    classes, palette = names.get('classes'), names.get('palette')
    if isinstance(classes, list | tuple) and classes and all(isinstance(name, str | int) for name in classes):
        facts['classes'] = [str(name) for name in classes]
    if isinstance(palette, list | tuple | np.ndarray) and len(palette):
        facts['colors'] = [[int(level) for level in color] for color in palette]
        for color in facts['colors']:
            if len(color) != 3 or not all(0 <= level <= 255 for level in color):
                raise ValueError(f'palette has {color}, which are not three levels from 0 to 255')
    for name in ('cfg', 'config'):
        if isinstance(config := meta.get(name), str):
            config = mmseg_config.parse(config)
        if isinstance(config, Mapping):
            facts |= mmseg_config.read(as_tuples(dict(config)))
            break
    facts |= _hub_facts(meta)
    own = meta.get(OWN)
    if isinstance(own, str):
        own = json.loads(own)
    if isinstance(own, Mapping):
        own = as_tuples(dict(own))
        facts |= {key: value for key, value in own['model'].items() if key in UNSEEN}
        facts |= {**own['input'], 'classes': list(own['classes']), 'colors': own['colors']}
        facts['images'] = {key: str(own['images'][key]) for key in IMAGES if key in own.get('images', {})}
    return facts


def _hub_facts(meta):
    """Normalisation that timm's or transformers' config.json names; both state it for pixels of 0 to 1."""
    if meta.get('downsample_in_bottleneck') is True:
        raise ValueError('downsample_in_bottleneck=True: strides in 1x1 convolutions cannot be built here')
    if meta.get('downsample_in_first_stage') is True:
        raise ValueError('downsample_in_first_stage=True: a stride in the first stage cannot be built here')
    if meta.get('hidden_act', 'relu') != 'relu':
        raise ValueError(f'hidden_act={meta["hidden_act"]}: only relu can be built here')
    timm = meta.get('pretrained_cfg')
    timm = timm if isinstance(timm, Mapping) else meta
    facts: dict[str, Any] = {}
    for name in ('mean', 'std'):
        numbers = timm.get(name) or meta.get(f'image_{name}')
        if isinstance(numbers, Sequence) and not isinstance(numbers, str):
            scale = 1 if meta.get('do_rescale') is False else 255
            facts[name] = tuple(round(scale * float(number), 6) for number in numbers)
    if facts:
        facts['bgr'] = meta.get('do_flip_channel_order') is True
    return facts


# Networks with the tensors of a ResNet that compute something else, by their names.
_LOOKALIKES = {
    r'(?i)\w*resnet(aa|blur)\d+\w*': 'filters where it strides',
    r'(?i)resnet\d+_(caffe|msra)\w*': 'has its strides in 1x1 convolutions',
}


def refuse_lookalikes(name: str, meta: Mapping[str, Any]) -> None:
    """Refuses networks with the tensors of a ResNet that compute something else.

    Args:
        name: of the file, and of where it comes from.
        meta: what is said of it.

    Raises:
        DataError: the name, or what is said, tells of one.
    """
    timm = meta.get('pretrained_cfg')
    said = [name, *(value for part in (meta, timm) if isinstance(part, Mapping) for value in part.values())]
    for text in said:
        for pattern, what in _LOOKALIKES.items():
            if isinstance(text, str) and len(text) < 1000 and (found := re.search(pattern, text)):
                raise DataError(
                    f'is by its name {found[0]}, which {what}: it has the tensors of a ResNet, but computes '
                    'something else. Use a ResNet or ResNet-D'
                )
