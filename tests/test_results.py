"""What a result gives to other tools, compared with NumPy and with what reads those formats."""

import csv
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from ann_jax import build, load_config
from ann_jax.data import scene_objects
from ann_jax.errors import ConfigError, DataError
from ann_jax.inference import lettering, pictures
from ann_jax.inference.results import Result
from ann_jax.modes import predict

CLASSES = ('sky', 'road, wet', '道路', 'none')
COLORS = ((9, 9, 200), (90, 90, 90), (200, 90, 0), (1, 255, 1))
RNG = np.random.default_rng(0)
# Regions with holes, and regions that touch at a corner only.
IDS = np.kron(RNG.integers(0, 3, (7, 9)), np.ones((4, 5), int)).astype(np.uint8)
IMAGE = RNG.integers(0, 256, (*IDS.shape, 3), np.uint8)


@pytest.fixture
def result(tmp_path):
    return Result(tmp_path / 'street.v1.jpg', IDS, CLASSES, COLORS, IMAGE, None)


def counts():
    return [int((IDS == i).sum()) for i in range(len(CLASSES))]


def test_save_writes_ids_overlay_with_legend_and_areas(result, tmp_path):
    files = result.save(tmp_path / 'out', ['ids', 'ids16', 'overlay', 'areas'])
    names = ['street.v1_ids.png', 'street.v1_ids16.png', 'street.v1_overlay.png', 'street.v1_areas.csv']
    assert [file.name for file in files] == names and all(file.is_file() for file in files)
    for file, mode in zip(files, ('L', 'I;16'), strict=False):
        with Image.open(file) as image:
            assert image.mode == mode
            np.testing.assert_array_equal(np.asarray(image), IDS)
    with Image.open(files[2]) as image:
        overlay = np.asarray(image)
    np.testing.assert_array_equal(overlay[: len(IDS), : IDS.shape[1]], result.overlay())
    legend = overlay[len(IDS) :]
    assert [(legend == color).all(-1).sum() > 100 for color in COLORS] == [True, True, True, False]
    with open(files[3], encoding='utf-8', newline='') as file:
        heads, row = csv.reader(file)
    assert heads == ['image', 'width', 'height', *CLASSES]
    assert row == ['street.v1.jpg', '45', '28', *map(str, counts())]
    assert result.areas() == dict(zip(CLASSES, counts(), strict=True))
    assert [file.name for file in result.save(tmp_path, 'ids', name='a')] == ['a_ids.png']
    with pytest.raises(ConfigError, match="unknown kind of file 'overlays'; did you mean 'overlay'"):
        result.save(tmp_path / 'out', 'overlays')


def test_a_picture_of_no_format_is_refused(result, tmp_path):
    for path in ('street', 'street.txt', 'street.gbr'):  # Pillow reads the last, and does not write it
        for write in (result.overlay, result.colored):
            with pytest.raises(ConfigError, match=rf'{path}: no picture format has the ending'):
                write(tmp_path / path)
    result.overlay(tmp_path / 'street.PNG')
    assert [path.name for path in tmp_path.iterdir()] == ['street.PNG']


def test_a_notebook_shows_the_overlay_and_its_legend(result):
    with Image.open(io.BytesIO(result._repr_png_())) as image:
        assert image.format == 'PNG' and image.size[0] == 320
        np.testing.assert_array_equal(np.asarray(image)[: len(IDS), : IDS.shape[1]], result.overlay())
    wide = Result(None, IDS.repeat(80, 1), CLASSES, COLORS, IMAGE.repeat(80, 1), None)
    with Image.open(io.BytesIO(wide._repr_png_())) as image:
        assert image.size[0] == 1024


def test_coco_is_what_pycocotools_reads(result, tmp_path, capsys):
    coco = pytest.importorskip('pycocotools.coco')
    (file,) = result.save(tmp_path, 'coco')
    opened = coco.COCO(str(file))
    read = np.full(IDS.shape, 255)
    for annotation in opened.loadAnns(opened.getAnnIds()):
        mask = opened.annToMask(annotation).astype(bool)
        read[mask] = annotation['category_id']
        rows, columns = np.nonzero(mask)
        left, top = columns.min(), rows.min()
        assert annotation['area'] == mask.sum()
        assert annotation['bbox'] == [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
    np.testing.assert_array_equal(read, IDS)
    assert [each['name'] for each in opened.loadCats(opened.getCatIds())] == list(CLASSES)
    assert opened.imgs[1]['file_name'] == 'street.v1.jpg'


def area(ring):
    """Twice the signed area of a closed ring."""
    x, y = np.array(ring).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())


def inside(ring, x, y):
    """Whether points lie in a closed ring: a ray to the right crosses it an odd number of times."""
    crossings = np.zeros(x.shape, int)
    for (x1, y1), (_, y2) in zip(ring[:-1], ring[1:], strict=True):
        crossings += (min(y1, y2) < y) & (y < max(y1, y2)) & (x < x1)  # its sides are upright or level
    return crossings % 2 == 1


def test_polygons_cover_each_pixel_once(result, tmp_path):
    pytest.importorskip('rasterio', reason='draws polygons')
    (file,) = result.save(tmp_path, 'polygons')
    features = json.loads(file.read_text(encoding='utf-8'))['features']
    y, x = np.mgrid[: IDS.shape[0], : IDS.shape[1]] + 0.5
    covered = np.zeros(IDS.shape, int)
    for feature in features:
        outer, *holes = feature['geometry']['coordinates']
        mask = inside(outer, x, y) & ~np.any([inside(hole, x, y) for hole in holes] or [x < 0], 0)
        size = abs(area(outer)) - sum(abs(area(hole)) for hole in holes)
        assert size == 2 * mask.sum()
        assert (IDS[mask] == feature['properties']['id']).all()
        assert feature['properties']['class'] == CLASSES[feature['properties']['id']]
        covered += mask
    assert (covered == 1).all()
    corners = Result(None, np.eye(2, dtype=np.uint8), CLASSES, COLORS, IMAGE[:2, :2], None)
    assert len(corners.polygons()['features']) == 4  # regions that touch at a corner are apart


def test_polygons_of_a_geotiff_have_its_coordinates(tmp_path):
    rasterio = pytest.importorskip('rasterio', reason='reads and draws')
    place = {'crs': 'EPSG:32632', 'transform': rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)}
    shape = {'height': IDS.shape[0], 'width': IDS.shape[1], 'count': 3, 'dtype': 'uint8'}
    with rasterio.open(tmp_path / 'a.tif', 'w', driver='GTiff', **shape, **place) as file:
        file.write(IMAGE.transpose(2, 0, 1))
    plain = Result(None, IDS, CLASSES, COLORS, IMAGE, None).polygons()
    placed = Result(tmp_path / 'a.tif', IDS, CLASSES, COLORS, IMAGE, None).polygons()
    assert 'crs' not in plain and placed['crs']['properties']['name'] == 'urn:ogc:def:crs:EPSG::32632'
    for one, other in zip(plain['features'], placed['features'], strict=True):
        for ring, there in zip(one['geometry']['coordinates'], other['geometry']['coordinates'], strict=True):
            expected = np.array(ring) * (10, -10) + (5e5, 5e6)
            np.testing.assert_allclose(there, expected)


def ink(picture):
    """Dark pixels beside the swatches."""
    return int((picture[:, 28:].max(-1) < 128).sum())


def test_names_in_any_script_or_their_numbers(monkeypatch, caplog):
    monkeypatch.setattr(lettering.shutil, 'which', lambda name: None)
    lettering._font.cache_clear()
    lettering._tell.cache_clear()
    latin = lettering._fonts()[:1]
    monkeypatch.setattr(lettering, '_fonts', lambda: latin)
    named, numbered = (lettering.legend([1], ('a', name), COLORS, 320) for name in ('道路', 'class 1'))
    np.testing.assert_array_equal(named, numbered)
    assert 'has 道路:' in caplog.text and 'fonts-noto-cjk' in caplog.text
    assert ink(lettering.legend([0], ('street',), COLORS, 320)) > 50 and len(caplog.records) == 1
    lettering._font.cache_clear()


def test_a_font_of_another_script_is_found():
    lettering._font.cache_clear()
    if lettering._font('道路') is None:
        pytest.skip('no font here has Chinese')
    one, other = (lettering.legend([0], (name,), COLORS, 320) for name in ('道路', '天空'))
    assert ink(one) > 50 and (one != other).any()  # not the same box for every sign


def test_small_keeps_classes_and_averages_colours():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, ::2] = 100
    assert (pictures.small(image, 4) == 50).all() and pictures.small(image, 8) is image
    assert set(np.unique(pictures.small(np.uint8(IDS), 9)).tolist()) <= {0, 1, 2}


def test_labels_of_the_embedded_scenes_can_be_read():
    for config in (load_config('configs/scenes.py'), load_config('configs/cityscapes.py:runlocal')):
        assert build.dataset(config).classes == scene_objects.CLASSES


def test_ids_of_a_geotiff_are_one(tmp_path):
    rasterio = pytest.importorskip('rasterio', reason='reads and writes')
    place = {'crs': 'EPSG:32632', 'transform': rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)}
    shape = {'height': IDS.shape[0], 'width': IDS.shape[1], 'count': 1, 'dtype': 'uint8'}
    with rasterio.open(tmp_path / 'a.tif', 'w', driver='GTiff', **shape, **place) as file:
        file.write(IDS, 1)
    (path,) = Result(tmp_path / 'a.tif', IDS, CLASSES, COLORS, IMAGE, None).save(tmp_path / 'out', 'ids')
    assert path == tmp_path / 'out' / 'a_ids.tif'
    with rasterio.open(path) as file:
        assert (file.crs, file.transform) == (rasterio.CRS.from_epsg(32632), place['transform'])
        np.testing.assert_array_equal(file.read(1), IDS)


@pytest.mark.parametrize(('kind', 'package'), [('coco', 'pycocotools'), ('polygons', 'rasterio')])
def test_a_missing_package_is_told_before_anything_is_opened(kind, package, monkeypatch, tmp_path):
    monkeypatch.setitem(
        sys.modules, {'coco': 'pycocotools.mask', 'polygons': 'rasterio.features'}[kind], None
    )
    config = load_config('configs/scenes.py')
    config.predict.write = f'ids,{kind}'
    with pytest.raises(DataError, match=f'predict.write={kind} needs .*pip install {package}'):
        predict.predict(config, tmp_path)
