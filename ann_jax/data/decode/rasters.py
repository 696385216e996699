"""TIFFs by rasterio: many bands, deep colours, rows of large images, and georeferences."""

import importlib.util
import logging
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ann_jax.data.decode import tiff
from ann_jax.data.decode.levels import Reading, check_levels, looks_like_alpha, pick, scale
from ann_jax.data.decode.reading import check_size, damaged, optional
from ann_jax.files import refuse_special, replacing

logger = logging.getLogger(__name__)

_SAMPLE = 512  # pixels of the longer side of a small copy


def read_bands(data: bytes, number: int, where: object) -> np.ndarray:
    """Reads all bands of a TIFF.

    Args:
        data: content of the file.
        number: of the directory, from 0.
        where: names the file in errors.

    Returns:
        (H, W, C), of the type that the file holds.

    Raises:
        DataError: rasterio is missing, or the file is damaged.
    """
    rasterio = _rasterio(f'{where}, a TIFF of a kind that Pillow does not read,')
    try:
        with rasterio.MemoryFile(data) as file:
            with rasterio.open(f'GTIFF_DIR:{number + 1}:{file.name}') as opened:
                return np.ascontiguousarray(np.moveaxis(opened.read(), 0, -1))
    except rasterio.errors.RasterioError as error:
        raise damaged(where, 'image', error) from error


class Raster:
    """A TIFF of which rows are decoded when they are needed.

    Attributes:
        shape: (H, W, N), N being the number of bands picked.
    """

    def __init__(self, path: str | os.PathLike, directory: tiff.Directory, reading: Reading):
        """Looks at a small copy of the image, which decides for all of it whether it can be read.

        Raises:
            DataError: as `data.decode.images.decode_image`.
        """
        self._path, self._directory, self._reading = path, directory, reading
        check_size(directory.width, directory.height, path, 'image', reading.max_pixels)
        directory.refuse_missing(path)
        self._alpha = False
        shrink = max(1, max(directory.width, directory.height) // _SAMPLE)
        size = directory.height // shrink, directory.width // shrink
        values = self._read(out_shape=(directory.samples, *(max(1, length) for length in size)))
        self._alpha = directory.alpha and looks_like_alpha(values[..., -1])
        values = pick(values, self._alpha, reading, path)
        check_levels(values, reading.limits, path)
        self.shape = directory.height, directory.width, values.shape[2]

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        """A window as (h, w, N) uint8, see `data.decode.images.decode_image`.

        Raises:
            DataError: the file is damaged.
        """
        ranges = [part.indices(length)[:2] for part, length in zip(window, self.shape, strict=False)]
        values = self._read(window=tuple(ranges))
        return scale(pick(values, self._alpha, self._reading, self._path), self._reading.limits)

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """Some rows as (bottom - top, W, N) uint8."""
        return self[top:bottom, :]

    def _read(self, **options):
        rasterio = _rasterio(self._path)
        try:
            with rasterio.open(f'GTIFF_DIR:{self._directory.number + 1}:{os.fspath(self._path)}') as opened:
                values = np.moveaxis(opened.read(**options), 0, -1)
        except rasterio.errors.RasterioError as error:
            raise damaged(self._path, 'image', error) from error
        return self._directory.without_nodata(values)


def whole(image: np.ndarray | Raster) -> np.ndarray:
    """All rows of an image."""
    return image.rows(0, image.shape[0]) if isinstance(image, Raster) else image


def open_raster(path: str | os.PathLike, reading: Reading, pixels: int) -> Raster | None:
    """Opens a TIFF of more than `pixels` to be read by rows; None for other files and without rasterio.

    Raises:
        DataError: see `Raster`.
    """
    directory = _directory(path, reading.page)
    if directory is None or directory.width * directory.height <= pixels or directory.orientation != 1:
        return None
    if directory.photometric not in (tiff.BLACK_IS_ZERO, tiff.RGB) or not _has_rasterio():
        return None
    return Raster(path, directory, reading)


def has_place(path: str | os.PathLike) -> bool:
    """Whether a file is a GeoTIFF, whose place can be kept; says so if rasterio is missing."""
    directory = _directory(path, 0)
    if directory is None or not directory.geographic or directory.orientation != 1:
        return False
    if not _has_rasterio():
        logger.warning('%s is a GeoTIFF: to keep its place, pip install rasterio', path)
    return _has_rasterio()


def place_of(path: str | os.PathLike) -> tuple[Any, str]:
    """The affine map of a GeoTIFF from pixels to coordinates, and the name of their reference system.

    The first is None where the place is given in another way, the second '' where the system has no code.

    Raises:
        DataError: rasterio is missing.
    """
    rasterio = _rasterio(f'the georeference of {path}')
    with rasterio.open(path) as source:
        code = source.crs.to_epsg() if source.crs else None
        place = None if source.gcps[0] else source.transform
    return place, f'urn:ogc:def:crs:EPSG::{code}' if code and place else ''


def write_with_place(
    path: str | os.PathLike, ids: np.ndarray, colors: Sequence[tuple[int, int, int]], like: str | os.PathLike
) -> None:
    """Writes a class map as a GeoTIFF with the place of another.

    Args:
        path: of the file to write.
        ids: (H, W) uint8.
        colors: RGB of the classes, which become its palette.
        like: a GeoTIFF of the same size.

    Raises:
        DataError: rasterio is missing.
        SaveError: the file cannot be written.
    """
    rasterio = _rasterio(f'the georeference of {like}')
    with rasterio.open(like) as source:
        place: dict[str, Any] = {'crs': source.crs, 'transform': source.transform}
        if source.gcps[0]:
            place = {'crs': source.gcps[1], 'gcps': source.gcps[0]}
    shape = {'height': ids.shape[0], 'width': ids.shape[1], 'count': 1, 'dtype': 'uint8'}
    # In memory first: GDAL only logs that a disk is full.
    with rasterio.MemoryFile() as memory, replacing(path) as draft:
        with rasterio.open(memory.name, 'w', driver='GTiff', compress='deflate', **shape, **place) as target:
            target.write_colormap(1, dict(enumerate(colors)))  # before the values, or GDAL complains
            target.write(ids, 1)
        draft.write_bytes(memory.getbuffer())


def _directory(path, page):
    """The directory of a page of a TIFF, or of its only one if `page` is 0; None if there is none."""
    refuse_special(path, 'image')
    try:
        with open(path, 'rb') as file:
            found = tiff.directories(file) or []
    except OSError:
        return None  # reading it says why
    if not page and len(found) == 1:
        return found[0]
    return found[page - 1] if 0 < page <= len(found) else None


def _rasterio(where):
    rasterio = optional('rasterio', where)
    warnings.filterwarnings('ignore', category=rasterio.errors.NotGeoreferencedWarning)
    return rasterio


def _has_rasterio():
    return importlib.util.find_spec('rasterio') is not None
