"""Class maps in the formats of other tools: COCO's runs of pixels, and polygons."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ann_jax.data.decode.rasters import has_place, place_of
from ann_jax.data.decode.reading import optional
from ann_jax.inference.pictures import present

# What the formats take.
NEEDS = {'coco': 'pycocotools.mask', 'polygons': 'rasterio.features'}


def coco(ids: np.ndarray, classes: Sequence[str], name: str) -> dict[str, Any]:
    """A class map as a data set of COCO: one annotation per class that occurs, its mask run-length encoded.

    Args:
        ids: (H, W) uint8 class indices, which become the ids of categories.
        classes: names.
        name: of the image.

    Returns:
        What a JSON file of annotations holds.

    Raises:
        DataError: pycocotools is missing.
    """
    mask = optional(NEEDS['coco'], 'COCO JSON')
    height, width = ids.shape
    annotations = []
    for number, i in enumerate(present(ids), 1):
        runs = mask.encode(np.asfortranarray(ids == i, dtype=np.uint8))
        annotations.append(
            {
                'id': number,
                'image_id': 1,
                'category_id': i,
                'segmentation': {'size': [height, width], 'counts': runs['counts'].decode('ascii')},
                'area': int(mask.area(runs)),
                'bbox': mask.toBbox(runs).tolist(),
                'iscrowd': 0,
            }
        )
    return {
        'images': [{'id': 1, 'file_name': name, 'height': height, 'width': width}],
        'categories': [{'id': i, 'name': each} for i, each in enumerate(classes)],
        'annotations': annotations,
    }


def polygons(ids: np.ndarray, classes: Sequence[str], path: Path | None = None) -> dict[str, Any]:
    """A class map as GeoJSON: a polygon, with its holes, around each connected region.

    Its corners are corners of pixels, x to the right and y down, from (0, 0) at the top left. For a GeoTIFF
    they are coordinates of its reference system, which is named as QGIS and GDAL expect it.

    Args:
        ids: (H, W) uint8 class indices.
        classes: names.
        path: of the image, if it is a file.

    Raises:
        DataError: rasterio is missing.
    """
    features = optional(NEEDS['polygons'], 'GeoJSON')
    place, crs = place_of(path) if path is not None and has_place(path) else (None, '')
    options = {} if place is None else {'transform': place}
    counted = [
        {'type': 'Feature', 'properties': {'class': classes[int(i)], 'id': int(i)}, 'geometry': shape}
        for shape, i in features.shapes(ids, connectivity=4, **options)
    ]
    collection: dict[str, Any] = {'type': 'FeatureCollection', 'features': counted}
    if crs:
        collection['crs'] = {'type': 'name', 'properties': {'name': crs}}
    return collection
