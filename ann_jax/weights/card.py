"""The card of a weights folder, README.md: what hubs of models show and search by."""

import json
from collections.abc import Mapping
from typing import Any

from ann_jax import __version__


def front_matter(source: Mapping[str, Any], backbone_alone: bool = False) -> str:
    """The head of a card, in YAML, of which JSON is a part: licence, data, metrics and tags.

    Args:
        source: of the weights; their 'license' is 'unknown' unless it states one, as the owner decides on it.
        backbone_alone: whether there are no classes.
    """
    data = source.get('dataset', 'folder')
    said = {
        'license': source.get('license', 'unknown'),
        'library_name': 'ann_jax',
        'pipeline_tag': 'image-feature-extraction' if backbone_alone else 'image-segmentation',
        'tags': ['jax', 'flax', 'resnet', *([] if backbone_alone else ['semantic-segmentation'])],
        'datasets': [] if data == 'folder' else [data],
        'metrics': [] if backbone_alone else ['mean_iou'],
    }
    lines = [f'{key}: {json.dumps(value, ensure_ascii=False)}' for key, value in said.items()]
    return '\n'.join(['---', *lines, '---', ''])


def card(facts: Mapping[str, Any]) -> str:
    """The whole card, in Markdown.

    Args:
        facts: those of a model.json.
    """
    model, normalization, source = facts['model'], facts['input'], facts['source']
    classes, what = facts['classes'], facts.get('backbone') or f'ResNet-{model.get("depth")}'
    if classes:
        title = f'# Asymmetric Non-local Neural Network on {what}'
        use = "ann_jax.load('FOLDER')('street.jpg').overlay('out.png')  # or hf://OWNER/NAME"
    else:
        title = f'# {what}, a backbone'
        use = "config = ann_jax.load_config('configs/cityscapes.py')\nconfig.init['from'] = 'FOLDER'"
        use += '  # or hf://OWNER/NAME'
    lines = [title, '', f'Weights of ann_jax {__version__}.', '']
    lines += ['```python', 'import ann_jax', '', use, '```', '']
    if 'miou' in source:
        lines += [f'mIoU {100 * source["miou"]:.2f} on the evaluation split, at step {source["step"]}.', '']
    order = 'blue, green, red' if normalization.get('bgr') else 'red, green, blue'
    settings = {**model, **normalization, 'channels': order, **source}
    lines += ['| setting | value |', '|---|---|']
    lines += [f'| {name} | {value} |' for name, value in settings.items()]
    if classes:
        lines += ['', 'Classes:', '', *(f'{i}. {name}' for i, name in enumerate(classes))]
    return front_matter(source, not classes) + '\n' + '\n'.join(lines) + '\n'
