"""Maps the values or colours of labels to class indices.

Labels that cannot be used raise a `DataError` that names the file.
"""

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from ann_jax.data.decode.reading import MAX_PIXELS
from ann_jax.data.label_files import Raw, decode_raw
from ann_jax.data.layout import INVALID, Layout
from ann_jax.data.own import unknown_labels as unknown
from ann_jax.errors import DataError
from ann_jax.typing import IGNORE

_CHROMA = 16  # differences between the channels of grey in formats that change values
_EXACT = 1 << 24  # numbers below are exact in float32
_ONE = np.array([1 << 16, 1 << 8, 1])  # makes one number of a colour
_PIXELS = 1 << 20  # at a time: a colour as one number takes many bytes
_GREYS = np.repeat(np.arange(256)[:, None], 3, 1)


class Label(NamedTuple):
    """A label and how it was read."""

    classes: np.ndarray  # (H, W) uint8: class index, or IGNORE
    by_color: bool = False
    raw: Raw | None = None  # None: it is not a file of its own

    @property
    def lossy(self) -> str:
        """The format, if it changes values."""
        return self.raw.lossy if self.raw else ''

    def palette(self) -> dict[int, int]:
        """Value -> 0xRRGGBB of the values in the label, if it has a palette of which the values count."""
        if self.raw is None or self.raw.palette is None or self.by_color:
            return {}
        used = np.flatnonzero(count_bytes(self.raw.values))
        return dict(zip(used.tolist(), (self.raw.palette[used] @ _ONE).tolist(), strict=True))

    def black(self) -> int:
        """Number of black pixels, if colours count."""
        if self.raw is None or not self.by_color:
            return 0
        values, palette, _ = self.raw
        if values.ndim == 3:
            return int(np.count_nonzero(~values.any(-1)))
        zero = np.arange(256) == 0 if palette is None else ~palette.any(1)
        return int(count_bytes(values)[zero].sum())


def count_bytes(values: np.ndarray) -> np.ndarray:
    """Counts each value of (H, W) uint8: (256,) int64."""
    if values.size < _EXACT:
        counts = cv2.calcHist([np.ascontiguousarray(values)], [0], None, [256], [0, 256])
        return counts.ravel().astype(np.int64)
    return np.array(Image.fromarray(values).histogram(), np.int64)


def decode_label(
    data: bytes, layout: Layout, where: object, name: str, *, max_pixels: int = MAX_PIXELS
) -> Label:
    """Decodes a label and maps it to classes.

    Args:
        data: content of the file.
        layout: defines what values and colours mean.
        where: names the file in errors.
        name: names the dataset in errors.
        max_pixels: larger labels are refused before they are decoded.

    Raises:
        DataError: see `decode_raw` and `map_label`, or the format changes values.
    """
    raw = decode_raw(data, where, layout.variable, max_pixels=max_pixels)
    if raw.lossy and not (layout.own and layout.own.coarse):
        cure = '; a black and white mask can be read with --config.dataset.label_map=0-127:0,128-255:1'
        raise DataError(
            f'label {where} is a {raw.lossy}, which can change values, mostly at edges: save labels as PNG, '
            f'not from this file but from what it was made of{cure if layout.own else ""}'
        )
    classes, by_color = _map(raw, layout, where, name)
    return Label(classes, by_color, raw)


def map_label(raw: np.ndarray, layout: Layout, where: object, name: str) -> np.ndarray:
    """Maps raw values or colours to classes.

    Args:
        raw: (H, W) integers or (H, W, 3) uint8.
        layout: defines what raw values mean.
        where: names the file in errors.
        name: names the dataset in errors.

    Returns:
        (H, W) uint8: class index, or IGNORE.

    Raises:
        DataError: there are values or colours that the layout does not list.
    """
    return _map(Raw(raw), layout, where, name)[0]


def _map(raw, layout, where, name):
    """Returns the classes, and whether they come from colours."""
    values, palette = raw.values, raw.palette
    if values.ndim == 3:
        if layout.color_map:
            classes = _by_color(values, layout.color_map)
            if not (classes == INVALID).any():
                return classes, True
        # In the user's own labels, grey that is no colour of a class is a value, saved as RGB.
        most = _CHROMA if raw.lossy else 0
        grey = layout.own and np.ptp(values, -1).max(initial=0) <= most
        if not grey or layout.color_map and not layout.own.label_map and _painted(values, layout):
            if layout.color_map:
                raise unknown.colors(values[classes == INVALID], layout, where, name)
            raise unknown.colors_without_classes(values, layout, where, name)
        values = values[..., 1]
    elif layout.color_map and layout.own and not layout.own.label_map:
        if palette is not None:
            known = _by_color(palette, layout.color_map)
            if known[IGNORE] == INVALID:
                known[IGNORE] = IGNORE  # a colour of its own, as in VOC
            classes = known[values]
            if (classes == INVALID).any():
                raise unknown.colors(palette[values[classes == INVALID]], layout, where, name, palette=True)
            return classes, True
        if values.dtype == np.uint8 and all(len(set(color)) == 1 for color in layout.own.listed):
            classes = _by_color(_GREYS, layout.color_map)[values]
            if not (classes == INVALID).any():
                return classes, True
    classes = _by_value(values, layout)
    wrong = classes == INVALID
    if wrong.any():
        raise unknown.values(values[wrong], layout, where, name)
    return classes, False


def _painted(grey, layout):
    """Whether a grey picture holds colours: one of a class, or no other values than black and white have."""
    seen = {*np.unique(grey[..., 1]).tolist()} - {0}
    return bool(seen & {color[0] for color in layout.color_map if len({*color}) == 1}) or seen <= {255}


def _by_value(values, layout):
    """Class indices of raw values (H, W); INVALID of others."""
    lut = layout.lut
    if values.dtype == np.uint8:
        return cv2.LUT(np.ascontiguousarray(values), lut[:256])
    outside = (values < 0) | (values >= len(lut) - 1)
    classes = lut[np.where(outside, len(lut) - 1, values)]
    far, targets = layout.far
    if far.size and outside.any():
        place = np.searchsorted(far, values[outside]).clip(max=len(far) - 1)
        classes[outside] = np.where(far[place] == values[outside], targets[place], lut[-1])
    return classes


def _by_color(colors, color_map):
    """Class indices (...) of colours (..., 3); INVALID of others."""
    known = np.array(list(color_map)) @ _ONE
    order = np.argsort(known)
    known, targets = known[order], np.array(list(color_map.values()), np.uint8)[order]
    classes = np.empty(colors.shape[:-1], np.uint8)
    rows = max(_PIXELS // max(classes[0].size, 1), 1) if len(classes) else 1
    for start in range(0, len(classes), rows):
        codes = colors[start : start + rows] @ _ONE
        place = np.searchsorted(known, codes).clip(max=len(known) - 1)
        classes[start : start + rows] = np.where(known[place] == codes, targets[place], np.uint8(INVALID))
    return classes
