"""The errors for values and colours of labels that mean no class, with the setting that would help."""

import shlex

import numpy as np

from ann_jax.data import label_map as maps
from ann_jax.data.layout import INVALID, Layout
from ann_jax.errors import DataError

_SHOWN = 8
_MANY = 16  # values or colours; more than that come from smooth edges, not from classes
_EDGES = 'so many come from JPEG, smooth edges or interpolation: save labels without these, as PNG'


def values(raw: np.ndarray, layout: Layout, where: object, name: str) -> DataError:
    """The error for raw values (N,) that mean nothing."""
    found, pixels = np.unique(raw, return_counts=True)
    shown = _counted([str(value) for value in found], pixels)
    near, (far, targets) = np.flatnonzero(layout.lut[:-1] != INVALID), layout.far
    known = ', '.join(str(v) for v in sorted([*near, *far[targets != INVALID]])[:300])
    if not layout.own:
        return DataError(
            f'label {where} holds values that are not {name} labels: {shown}; relabel them, or choose the '
            f'dataset that has them. Known: {known}'
        )
    given, listed = layout.own.label_map, found.tolist()
    first = given or _map_of(layout)
    last = max((c for c in layout.lut.tolist() if c < INVALID), default=0)
    if len(listed) > _SHOWN:
        text = f'{first},others:ignore'
    else:
        text = ','.join([first, *(f'{value}:ignore' for value in listed)])
    setting = '--config.dataset.label_map='
    cure = f'to ignore them, set {setting}{shlex.quote(text)}, or write a class in place of ignore'
    if len(listed) > INVALID:
        cure += f'; label_map takes up to {maps.MOST_VALUES} values to at most {INVALID} classes'
    if not given and listed == [last + 1]:
        cure += ' (or, if 1 is the first class, --config.dataset.reduce_zero_label=True)'
    elif len(listed) > _MANY:
        cure = f'{_EDGES}, or read a black and white mask with {setting}0-127:0,128-255:1; {cure}'
    return DataError(f'label {where} holds values without a class: {shown}; {cure}. Known: {known}')


def colors(raw: np.ndarray, layout: Layout, where: object, name: str, *, palette: bool = False) -> DataError:
    """The error for colours (N, 3) that mean nothing, in the pixels or the palette of a label."""
    codes, pixels = np.unique(raw @ np.array([1 << 16, 1 << 8, 1]), return_counts=True)
    order = np.argsort(-pixels, kind='stable')
    codes, pixels = codes[order], pixels[order]
    found = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], -1)  # red below 0: no colour
    known = np.array(list(layout.color_map or {}))
    names = layout.own.listed if layout.own else {}
    near = []
    for color in found[:_SHOWN]:
        nearest = known[np.abs(known - color).sum(1).argmin()]
        near.append(', nearest ' + f'{names.get(tuple(nearest.tolist()), "")} {_rgb(nearest)}'.strip())
    shown = _counted([_rgb(color) for color in found], pixels, near)
    if not layout.own:
        return DataError(
            f'label {where} holds values that are not {name} labels: {shown}; relabel them, or choose the '
            f'dataset that has them. Known: the {len(known)} colours of the classes'
        )
    cure = 'repaint them, or give each a class and a line of its own in the class file, such as '
    cure += f"'ignore {' '.join(map(str, found[0].clip(0)))}'"
    if len(found) <= len(known) and (found[:, None, ::-1] == known).all(-1).any(1).all():
        cure = 'red and blue are swapped, as when OpenCV writes RGB: swap them in labels or the class file'
    elif len(found) > _MANY:
        cure = _EDGES
    elif len(found) > len(known):
        cure += '; few pixels of many colours come from smooth edges: save labels without these'
    if palette:
        cure += f'; if not colours but values count, set --config.dataset.label_map={_map_of(layout)}'
    return DataError(f'label {where} holds colours without a class: {shown}; {cure}')


def colors_without_classes(raw: np.ndarray, layout: Layout, where: object, name: str) -> DataError:
    """The error for a label (H, W, 3) of colours if classes have none."""
    found = np.unique(raw[:: max(len(raw) // 64, 1)].reshape(-1, 3), axis=0)
    example = next((color for color in found if color.any()), found[0])
    if not layout.own:
        return DataError(
            f'label {where} holds colours (RGB), not class values: {name} labels are greyscale or palette '
            'PNGs of class values; choose the dataset or the files that fit'
        )
    return DataError(
        f'label {where} holds colours (RGB), not class values, such as {_rgb(example)}: give the colours in '
        f"a class file, a line like 'road {' '.join(map(str, example))}' for each class, and name it with "
        '--config.dataset.classes=names.txt'
    )


def _map_of(layout):
    return maps.write(layout.label_map or {})


def _rgb(color):
    if color[0] < 0:
        return 'a value that the palette lacks'
    return f'rgb({", ".join(str(channel) for channel in color.tolist())})'


def _counted(texts, pixels, notes=('',) * _SHOWN):
    """'a (3 pixels), b (1 pixels) and 2 more', with a note after each."""
    found = ', '.join(
        f'{text} ({n} pixels){note}' for text, n, note in zip(texts, pixels.tolist(), notes, strict=False)
    )
    return found + (f' and {len(texts) - _SHOWN} more' if len(texts) > _SHOWN else '')
