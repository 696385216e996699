"""Reads with rasterio the TIFFs that Pillow cannot: many bands, deep colours, other types."""

import warnings

import numpy as np

from ann_jax.data.reading import damaged, optional


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
    rasterio = optional('rasterio', f'{where}, a TIFF of a kind that Pillow does not read,')
    warnings.filterwarnings('ignore', category=rasterio.errors.NotGeoreferencedWarning)
    try:
        with rasterio.MemoryFile(data) as file:
            with rasterio.open(f'GTIFF_DIR:{number + 1}:{file.name}') as opened:
                return np.ascontiguousarray(np.moveaxis(opened.read(), 0, -1))
    except rasterio.errors.RasterioError as error:
        raise damaged(where, 'image', error) from error
