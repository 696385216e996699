"""Large images: segmented in strips, read by rows, and GeoTIFFs that keep their place."""

import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ann_jax.data.augment.transforms import Augment
from ann_jax.data.classes import DATASETS
from ann_jax.data.datasets import FolderSource, InRegions
from ann_jax.data.decode.images import decode_image
from ann_jax.data.decode.levels import Reading
from ann_jax.data.decode.rasters import Raster, has_place, open_raster
from ann_jax.data.own.settings import own_dataset
from ann_jax.data.pipeline import train_batches
from ann_jax.errors import DataError
from ann_jax.inference.protocols import Canvas, sliding_window
from ann_jax.inference.results import Result
from ann_jax.inference.segmenter import Segmenter
from ann_jax.inference.strips import segment_in_strips
from ann_jax.modes import predict

RNG = np.random.default_rng(0)
CROP = (24, 40)
WEIGHTS = RNG.standard_normal((3, 5)).astype(np.float32)
PLACES = RNG.standard_normal((*CROP, 5)).astype(np.float32) * 100  # makes overlapping windows differ


def protocol(variables, images):
    """Logits of windows that depend on the place in the window, and the batch on the size of the image."""
    rows, columns = (jnp.arange(n) < images.size[0, i] for i, n in enumerate(CROP))
    inside = (rows[:, None] & columns)[..., None]
    return Canvas(jnp.where(inside, images.array @ WEIGHTS + PLACES, 1e9), images.size)


@pytest.mark.parametrize(
    ('size', 'stride'),
    [((61, 99), (7, 25)), ((10, 77), CROP), ((50, 13), (16, 16))],
)
def test_strips_are_the_sliding_window(size, stride):
    image = RNG.integers(0, 256, (*size, 3), np.uint8)
    whole = sliding_window(protocol, CROP, stride, None)({}, Canvas(image[None], np.array([size], np.int32)))
    asked = []

    def rows(top, bottom):
        asked.append(bottom - top)
        return image[top:bottom]

    ids = segment_in_strips(protocol, {}, rows, size, CROP, stride)
    np.testing.assert_array_equal(ids, np.asarray(whole.array)[0].argmax(-1))
    assert ids.dtype == np.uint8 and max(asked) <= CROP[0]


def segmenter(limit, monkeypatch):
    """A segmenter without a network, of the protocol above."""
    monkeypatch.setattr('ann_jax.inference.segmenter.LARGE', limit)
    found = object.__new__(Segmenter)
    found.classes, found.colors = DATASETS['camvid'].classes[:5], DATASETS['camvid'].colors[:5]
    found._reading = Reading(bands=(3, 2, 1))
    found._strips = lambda rows, size: segment_in_strips(protocol, {}, rows, size, CROP, CROP)
    found._argmax = lambda _: pytest.fail('not in strips')
    found._logits, found._latest = lambda image: None, []
    return found


def geotiff(rasterio, path, array, **more):
    shape = {'height': array.shape[0], 'width': array.shape[1], 'count': array.shape[2], 'dtype': array.dtype}
    place = {'crs': 'EPSG:32632', 'transform': rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)}
    tiles = {'tiled': True, 'blockxsize': 32, 'blockysize': 32, 'compress': 'lzw'}
    with rasterio.open(path, 'w', driver='GTiff', **shape, **place, **tiles, **more) as opened:
        opened.write(array.transpose(2, 0, 1))


def test_large_tiffs_are_read_by_rows_and_keep_their_place(tmp_path, monkeypatch):
    rasterio = pytest.importorskip('rasterio', reason='reads rows of TIFFs')
    array = RNG.integers(0, 256, (90, 130, 4), np.uint8)
    geotiff(rasterio, tmp_path / 'a.tif', array)
    seg = segmenter(0, monkeypatch)
    monkeypatch.setattr('ann_jax.inference.segmenter.read_image', lambda *_: pytest.fail('read whole'))
    (result,) = seg.stream([tmp_path / 'a.tif'])
    image = array[..., [2, 1, 0]]
    np.testing.assert_array_equal(result.image, image)
    expected = segment_in_strips(
        protocol, {}, lambda top, bottom: image[top:bottom], image.shape[:2], CROP, CROP
    )
    np.testing.assert_array_equal(result.ids, expected)
    predict._write(result, tmp_path / 'out', ['ids'], Path('a'), tmp_path, None)
    with rasterio.open(tmp_path / 'out/ids/a.tif') as written, rasterio.open(tmp_path / 'a.tif') as given:
        assert (written.crs, written.transform) == (given.crs, given.transform)
        np.testing.assert_array_equal(written.read(1), result.ids)
        assert written.colormap(1)[1][:3] == seg.colors[1]
    data = (tmp_path / 'a.tif').read_bytes()
    raster = open_raster(tmp_path / 'a.tif', seg._reading, 0)
    (tmp_path / 'a.tif').write_bytes(data[: len(data) // 2])
    monkeypatch.setattr(seg, '_read', lambda picture: raster)
    errors = []
    assert not list(seg.stream([tmp_path / 'a.tif'], errors)) and 'a.tif' in errors[0]
    with pytest.raises(DataError, match='copy or download'):
        seg.stream([tmp_path / 'a.tif']).__next__()
    Image.fromarray(image).save(tmp_path / 'b.tif')
    assert not has_place(tmp_path / 'b.tif') and not has_place(tmp_path / 'no.tif')
    named = Result(tmp_path / 'b.tif', result.ids, seg.classes, seg.colors, image, seg)
    predict._write(named, tmp_path / 'out', ['ids'], Path('b'), tmp_path, None)
    assert (tmp_path / 'out/ids/b.png').is_file()


@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'float32'])
def test_rows_are_those_of_the_whole_image(tmp_path, dtype):
    rasterio = pytest.importorskip('rasterio', reason='reads rows of TIFFs')
    array = RNG.integers(0, 200, (70, 50, 5)).astype(dtype)
    geotiff(rasterio, tmp_path / 'a.tif', array, nodata=7)
    data = (tmp_path / 'a.tif').read_bytes()
    reading = Reading((0, 199), (5, 1))
    raster = open_raster(tmp_path / 'a.tif', reading, 100)
    whole = decode_image(data, 'x', reading=reading)
    assert raster.shape == whole.shape == (70, 50, 2)
    for top, bottom in ((0, 70), (3, 40), (69, 70)):
        np.testing.assert_array_equal(raster.rows(top, bottom), whole[top:bottom])
    for wrong in (Reading(), Reading((0, 199)), Reading((0, 199), (6,)), Reading((0, 199), (1,), 0, 99)):
        with pytest.raises(DataError) as rows:
            open_raster(tmp_path / 'a.tif', wrong, 100)
        with pytest.raises(DataError) as decoded:
            decode_image(data, tmp_path / 'a.tif', reading=wrong)
        assert str(rows.value) == str(decoded.value)
    assert open_raster(tmp_path / 'a.tif', reading, 70 * 50) is None
    Image.fromarray(array[..., 0].astype(np.uint8)).save(tmp_path / 'a.png')
    assert open_raster(tmp_path / 'a.png', reading, 100) is None


def test_few_large_images_are_held_at_a_time(monkeypatch):
    seg = segmenter(1000, monkeypatch)
    taken = []

    def images():
        for number in range(9):
            taken.append(number)
            yield np.zeros((30, 30, 3), np.uint8)

    reader = seg._read_ahead(images(), None, 4)
    next(reader)
    assert len(taken) == 2  # one more is read meanwhile
    seg = segmenter(10**6, monkeypatch)
    taken.clear()
    reader = seg._read_ahead(images(), None, 4)
    next(reader)
    assert 2 < len(taken) < 9
    assert isinstance(reader, types.GeneratorType) and len([*reader]) == 8


@pytest.mark.filterwarnings('ignore::Warning')  # it has no place
def test_training_reads_of_a_large_tiff_what_a_crop_shows(tmp_path, monkeypatch):
    rasterio = pytest.importorskip('rasterio', reason='reads windows of TIFFs')
    size = 160, 208
    image, label = RNG.integers(0, 256, (*size, 3), np.uint8), RNG.integers(0, 2, size, np.uint8)
    for folder in ('images/train', 'labels/train'):
        (tmp_path / folder).mkdir(parents=True)
    tiles = {'tiled': True, 'blockxsize': 16, 'blockysize': 16, 'photometric': 'RGB'}
    shape = {'height': size[0], 'width': size[1], 'count': 3, 'dtype': 'uint8'}
    with rasterio.open(tmp_path / 'images/train/a.tif', 'w', driver='GTiff', **shape, **tiles) as file:
        file.write(np.moveaxis(image, -1, 0))
    Image.fromarray(label).save(tmp_path / 'labels/train/a.png')
    dataset = own_dataset(name='folder', classes='a,b', root=str(tmp_path))
    source = FolderSource(dataset, tmp_path, 'train')
    np.testing.assert_array_equal(source[0]['image'], image)
    augment = Augment((48, 40), aspect_range=(0.9, 1.1))
    whole, regions = ([], [])
    for batches, samples in ((whole, source), (regions, InRegions(source))):
        monkeypatch.setattr('ann_jax.data.datasets.IN_REGIONS', 1000)
        iterator = train_batches(samples, augment, batch_size=2, seed=3)
        batches += [next(iterator) for _ in range(5)]
        iterator.close()
        monkeypatch.setattr(Raster, '_read', _less_than_whole(Raster._read, size))
    for ours, theirs in zip(whole, regions, strict=True):
        np.testing.assert_array_equal(ours['image'], theirs['image'])
        np.testing.assert_array_equal(ours['label'], theirs['label'])
    assert isinstance(source.in_regions(0)['image'], Raster)


def _less_than_whole(read, size):
    def checked(self, **options):
        (top, bottom), (left, right) = options.get('window', ((0, 0), (0, 0)))
        assert (bottom - top) * (right - left) < size[0] * size[1] / 2
        return read(self, **options)

    return checked
