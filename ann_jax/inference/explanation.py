"""A page on which a click on a pixel shows what it attends to: one HTML file that loads nothing."""

import base64
import io
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from ann_jax.errors import DataError
from ann_jax.inference.attention import BlockAttention
from ann_jax.inference.results import Result

MOST = 1 << 26  # weights of all blocks on a page, which takes 2.7 bytes for each
_PHOTO = 1 << 19  # pixels; larger images are stored as JPEG


def page(views: Sequence[tuple[str, Result]]) -> str:
    """The page of some results, which a list on it chooses among.

    Args:
        views: titles and results; images that several share are stored once.

    Raises:
        DataError: the weights would make a page of more than 180 MB.
    """
    images: dict[str, None] = {}
    entries, count = [], 0
    for title, result in views:
        blocks = result.attention()
        count += sum(each.weights.size for each in blocks.values())
        if count > MOST:
            raise DataError(
                f'{title}: the page would hold more than {MOST} weights: explain fewer or smaller images'
            )
        images.setdefault(source := _picture(result.image))
        entries.append(_view(title, result, blocks) | {'image': list(images).index(source)})
    # "</script>" in a name would end the data.
    data = json.dumps({'images': list(images), 'views': entries}, separators=(',', ':')).replace(
        '<', '\\u003c'
    )
    template = resources.files('ann_jax.inference').joinpath('attention.html').read_text(encoding='utf-8')
    return template.replace('DATA', data, 1)


def _view(title, result, blocks) -> dict[str, Any]:
    return {
        'title': title,
        'size': result.ids.shape,
        'ids': _encoded(result.ids, 'PNG'),
        'classes': result.classes,
        'colors': np.asarray(result.colors).tolist(),
        'blocks': [_block(name, each) for name, each in blocks.items()],
        'start': _start(list(blocks.values())),
    }


def _block(name: str, block: BlockAttention) -> dict[str, Any]:
    """With weights as 16-bit integers: an error of at most 8e-6."""
    weights = (block.weights * 65535).round().astype('<u2')
    rows, columns = block.cells
    return {
        'name': name,
        'width': weights.shape[1],
        'weights': base64.b64encode(weights.tobytes()).decode(),
        'boxes': block.boxes.tolist(),
        'levels': block.levels.tolist(),
        'rows': rows.tolist(),
        'columns': columns.tolist(),
    }


def _start(blocks):
    """A pixel that looks at one place most of all, of the last block."""
    if not blocks:
        return 0, 0
    peak = blocks[-1].weights.max(-1)
    cell = np.unravel_index(peak.argmax(), peak.shape)
    return [int(np.median(np.flatnonzero(of == n))) for of, n in zip(blocks[-1].cells, cell, strict=True)]


def _picture(image):
    return _encoded(image, 'PNG' if image.shape[0] * image.shape[1] <= _PHOTO else 'JPEG')


def _encoded(picture, form):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, form, **({'quality': 90} if form == 'JPEG' else {}))
    return f'data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}'
