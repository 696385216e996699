"""Which bands and values of an image become the levels of 0 to 255 that a network takes."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ann_jax.data.decode.reading import MAX_PIXELS
from ann_jax.errors import ConfigError, DataError
from ann_jax.ranges import check, shown

AUTO = 'auto'
PERCENTILES = 0.1, 99.9  # of the values that `auto` maps to 0 and 255
# 16-bit images use less than a sixteenth of their range if fewer values than this share reach this value.
_USED, _FEW = 4096, 0.001
_BLOCK = 1 << 22  # values that are scaled at a time, which bounds the memory


@dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes:
        limits: the values that become 0 and 255. Without them, 8 bits are levels already, of 16 bits the
            upper 8 are, and other types are refused.
        bands: those of the image that become channels, counted from 1; () for red, green and blue.
        page: of files with several images, counted from 1; 0 to refuse them.
        max_pixels: larger images are refused before they are decoded.
    """

    limits: tuple[float, float] | None = None
    bands: tuple[int, ...] = ()
    page: int = 0
    max_pixels: int = MAX_PIXELS

    @classmethod
    def parse(
        cls, image_range: str = '', bands: str = '', page: int = 0, max_pixels: int = MAX_PIXELS
    ) -> 'Reading':
        """Reads the settings of `config.dataset`.

        Args:
            image_range: 'LOW,HIGH' or ''.
            bands: numbers from 1, separated by commas, or ''.
            page, max_pixels: see `Reading`.

        Raises:
            ConfigError: a setting cannot be parsed.
        """
        check('dataset.page', page)
        check('dataset.max_pixels', max_pixels)
        return cls(_parse_range(image_range), parse_bands(bands), page, max_pixels)


def _parse_range(text):
    if not text:
        return None
    if text == AUTO:
        raise ConfigError(
            f'dataset.image_range={AUTO} is found in training, and this network was trained without: give '
            'LOW,HIGH'
        )
    try:
        low, high = map(float, text.split(','))
        if -np.inf < low < high < np.inf:
            return low, high
    except (AttributeError, ValueError):
        pass
    raise ConfigError(
        f'dataset.image_range={text!r}: must be two numbers, such as 0,4095, of which the second is larger; '
        f'{AUTO}; or empty'
    )


def parse_bands(text: str) -> tuple[int, ...]:
    """'4,3,2' -> (4, 3, 2), and '' -> ().

    Raises:
        ConfigError: it holds something else than numbers from 1.
    """
    items = [item.strip() for item in str(text).split(',')] if text else []
    if not all(item.isdecimal() and len(item) < 10 and int(item) > 0 for item in items):
        raise ConfigError(f'dataset.bands={shown(text)}: must be numbers from 1, such as 4,3,2, or empty')
    return tuple(map(int, items))


def channels_of(bands: str) -> int:
    """Number of channels that `dataset.bands` gives."""
    return len(parse_bands(bands)) or 3


def pick(values: np.ndarray, has_alpha: bool, reading: Reading, where: object) -> np.ndarray:
    """Picks the bands that become channels.

    Args:
        values: (H, W, C); one band, grey, counts as three equal ones.
        has_alpha: whether the last band is alpha, which is dropped if no bands are picked.
        reading: names the bands.
        where: names the image in errors.

    Returns:
        (H, W, N), N = 3 if no bands are picked.

    Raises:
        DataError: a band does not exist, or no bands are picked and those of the image are not red, green and
            blue.
    """
    if values.shape[2] == 1:  # of grey; a view, which takes no memory
        values = np.broadcast_to(values, (*values.shape[:2], 3))
    count = values.shape[2]
    if reading.bands:
        if max(reading.bands) > count:
            numbers = ','.join(map(str, reading.bands))
            raise DataError(
                f'{where} has {count} bands, so bands={numbers} cannot be picked: choose from 1 to {count}'
            )
        if reading.bands == tuple(range(1, count + 1)):
            return values
        return values[..., [band - 1 for band in reading.bands]]
    if has_alpha and count in (2, 4):
        return pick(values[..., :-1], False, reading, where)
    if count != 3:
        raise DataError(
            f'{where} has {count} bands, which are not red, green and blue: pick those to use, counted from '
            "1, as in --config.dataset.bands=3,2,1 (load(..., bands='3,2,1') in Python); any number can be "
            'trained on'
        )
    return values


def looks_like_alpha(band: np.ndarray) -> bool:
    """Whether at least half of a band is transparent or opaque, as in alpha and unlike in infrared."""
    top = np.iinfo(band.dtype).max if band.dtype.kind in 'ui' else 1
    return 2 * ((band == 0).sum(dtype=np.int64) + (band == top).sum(dtype=np.int64)) >= band.size


def to_levels(values: np.ndarray, limits: tuple[float, float] | None, where: object) -> np.ndarray:
    """Scales values to levels.

    With limits (low, high), a value v becomes 255 (v - low) / (high - low), clipped to 0..255 and rounded;
    NaN becomes 0. Limits that are not those of 8 bits (high <= 1 or > 255) leave 8 bits as they are.
    Without limits, 8 bits stay as they are, and 16 bits become their upper 8.

    Args:
        values: of any shape; Booleans, integers or floats.
        limits: see `Reading`.
        where: names the image in errors.

    Returns:
        uint8 of the same shape.

    Raises:
        DataError: there are no limits, and the type has no natural ones, or the values use less than a
            sixteenth of 16 bits.
    """
    check_levels(values, limits, where)
    return scale(values, limits)


def scale(values: np.ndarray, limits: tuple[float, float] | None) -> np.ndarray:
    """As `to_levels`, for values that `check_levels` accepts."""
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint8 and (limits is None or limits[0] < 0 or not 1 < limits[1] <= 255):
        return np.ascontiguousarray(values)
    if limits is None:
        return (values >> 8).astype(np.uint8)
    low, high = limits
    if values.dtype.itemsize <= 2 and values.dtype.kind == 'u':
        table = _scale(np.arange(np.iinfo(values.dtype).max + 1), low, high)
        return table[values]
    levels = np.empty(values.shape, np.uint8)
    rows = max(1, _BLOCK // max(1, values[:1].size))
    for start in range(0, len(values), rows):
        levels[start : start + rows] = _scale(values[start : start + rows], low, high)
    return levels


def _scale(values, low, high):
    scaled = (values.astype(np.float64) - low) / (high - low) * 255
    return np.rint(np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).clip(0, 255)).astype(np.uint8)


def check_levels(values: np.ndarray, limits: tuple[float, float] | None, where: object) -> None:
    """Raises the errors of `to_levels`."""
    if values.dtype.kind not in 'buif':
        raise DataError(f'{where} holds values of type {values.dtype}: give integers or floats')
    if limits is not None or values.dtype in (bool, np.uint8):
        return
    if values.dtype == np.uint16:
        # A few may be larger, by defects of a sensor or by compression.
        if (values >= _USED).mean() >= _FEW or not values.any():
            return
        most = int(np.percentile(values, 100 * (1 - _FEW), method='lower'))
        found = f'is of 16 bits, but 99.9 % of its values are up to {most}, so it would be almost black'
        cure, more = f'0,{2 ** max(8, most.bit_length()) - 1}', '; 0,65535 if it is just dark'
    else:
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if finite.size else (np.nan, np.nan)
        found = f'holds values from {low:g} to {high:g} of type {values.dtype}, which has no natural range'
        cure, more = '0,1' if low >= 0 and high <= 1 else 'LOW,HIGH', ''
    raise DataError(
        f'{where} {found}: name the values that become 0 and 255, --config.dataset.image_range={cure} '
        f"(load(..., image_range='{cure}') in Python), or train with image_range=auto{more}"
    )


def find_range(images: Iterable[np.ndarray], per_image: int = 1 << 16) -> str:
    """Finds the `image_range` that cuts off 0.1 % of the values at each end.

    8-bit images are left out if there are others, since they have levels of their own.

    Args:
        images: values of a sample of images, (H, W, C).
        per_image: values that are taken of each, evenly spaced.

    Returns:
        'LOW,HIGH'.

    Raises:
        DataError: all values are the same.
    """
    found: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for values in images:
        values = values if values.strides[-1] else values[..., :1]  # of grey, one of the equal channels
        flat = values.reshape(-1, values.shape[-1])
        some = flat[:: max(1, flat.size // per_image)].astype(np.float64).ravel()
        found[values.dtype.itemsize == 1].append(some[np.isfinite(some)])
    values = np.concatenate(found[False] or found[True] or [np.zeros(0)])
    low, high = np.percentile(values, PERCENTILES) if values.size else (0, 0)
    if not low < high:
        raise DataError(
            f'dataset.image_range={AUTO} finds no range: all values of the images are {low:g}; give LOW,HIGH'
        )
    return f'{low:.6g},{high:.6g}'
