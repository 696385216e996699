"""What is no file is refused and not waited for, and no half file is left where a disk is full."""

import contextlib
import os
import resource
import signal
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ann_jax.config import defaults
from ann_jax.data.datasets import read_image
from ann_jax.data.decode.images import PLAIN
from ann_jax.data.decode.rasters import has_place, open_raster, write_with_place
from ann_jax.data.disk import text_of
from ann_jax.data.own.annotation_kinds import find_annotations
from ann_jax.errors import DataError, SaveError
from ann_jax.files import replacing, write_json
from ann_jax.inference.intake import find_images
from ann_jax.inference.results import Result
from ann_jax.modes import predict, setup
from ann_jax.runs.record import Record
from ann_jax.tools.export_checkpoint import _write
from ann_jax.weights import safetensors
from ann_jax.weights.converter import convert
from ann_jax.weights.folder import Weights, load, save
from ann_jax.weights.opening import open_weights

SPECIAL = ('folder', 'pipe', 'socket', 'device')
READERS = {
    'image': read_image,
    'large image': lambda path: open_raster(path, PLAIN, 100),
    'GeoTIFF': has_place,
    'list': lambda path: text_of(path, 'list'),
    'torch': lambda path: convert(path.rename(path.with_suffix('.pth'))),
    'weights': open_weights,
}


@pytest.fixture(autouse=True)
def no_waiting():
    """What waits for a pipe fails."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail('it waits'))
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def full_disk(size=64):
    """No file can grow beyond some bytes: what a full disk does to its writer."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def special(kind, path):
    if kind == 'folder':
        path.mkdir()
    elif kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'socket':
        os.chdir(path.parent)  # names of sockets are short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    else:
        path.symlink_to('/dev/zero')
    return path


@pytest.mark.parametrize('kind', SPECIAL)
@pytest.mark.parametrize('reader', READERS)
def test_what_is_no_file_is_refused(reader, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if reader == 'torch' and kind == 'folder' or reader == 'weights' and kind == 'folder':
        pytest.skip('folders of weights are opened')
    with pytest.raises(DataError, match=rf'a\.\w+: it is a {kind}, not a file; save it as a file'):
        READERS[reader](special(kind, tmp_path / 'a.tif'))


@pytest.mark.parametrize('kind', SPECIAL[1:])
def test_in_a_folder_it_is_named_or_passed_over(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (2, 2)).save(tmp_path / 'b.png')
    path = special(kind, tmp_path / 'a.png')
    assert find_images(tmp_path) == [path, tmp_path / 'b.png']  # reading it says why it is not used
    special(kind, tmp_path / 'c.json')
    assert find_annotations(str(tmp_path)) == []
    folder = tmp_path / 'weights'
    folder.mkdir()
    (folder / 'model.json').write_text('{"version": 1, "sha256": "0", "model": {}, "input": {}}')
    special(kind, folder / 'weights.safetensors')
    with pytest.raises(DataError, match=f'weights.safetensors: it is a {kind}'):
        load(folder)


def test_a_link_to_a_file_is_one(tmp_path):
    Image.new('RGB', (3, 2)).save(tmp_path / 'a.png')
    (tmp_path / 'b.png').symlink_to('a.png')
    assert read_image(tmp_path / 'b.png').shape == (2, 3, 3)
    with replacing(tmp_path / 'b.png') as draft:
        draft.write_text('new')
    assert (tmp_path / 'a.png').read_text() == 'new' and (tmp_path / 'b.png').is_symlink()


@pytest.mark.parametrize('kind', SPECIAL)
def test_nothing_takes_the_place_of_what_is_no_file(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = special(kind, tmp_path / 'a.json')
    with pytest.raises(SaveError, match=f'it is a {kind}'):
        write_json(path, {})
    assert list(tmp_path.iterdir()) == [path]


IDS = np.random.default_rng(0).integers(0, 3, (40, 50), np.uint8)
PICTURE = IDS[..., None].repeat(3, 2)
RESULT = Result(None, IDS, ('a', 'b', 'c'), ((1, 2, 3), (4, 5, 6), (7, 8, 9)), PICTURE, None)
WEIGHTS = Weights({'params': {'w': np.zeros(999, np.float32)}}, {}, {}, ('a',), ((1, 2, 3),))


def predicted(kind):
    """Writes the given kind of prediction below the folder of a path."""
    network = SimpleNamespace(run=lambda image: np.zeros((40, 50, 3)))
    image = Result(Path('in/a.png'), IDS, RESULT.classes, RESULT.colors, PICTURE, network)
    return lambda path: predict._write(image, path.parent, [kind], Path('a'), Path('in'), defaults())


WRITERS = {
    'colored': RESULT.colored,
    'overlay': RESULT.overlay,
    **{
        kind: predicted(kind)
        for kind in ('ids', 'ids16', 'colors', 'overlays', 'probabilities', 'submission')
    },
    'json': lambda path: write_json(path, {'a': list(range(99))}),
    'picture': lambda path: Record(path.parent, writer=SimpleNamespace(images=print)).picture(
        1, 'a', PICTURE
    ),
    'weights': lambda path: save(path, WEIGHTS),
    'safetensors': lambda path: safetensors.write(path, {'a': np.zeros(99)}),
    'setup': lambda path: setup._write({path: 'a', path.with_suffix('.py'): 'a' * 99}),
    'exported': lambda path: _write(path, bytes(999)),
}


@pytest.mark.parametrize('writer', WRITERS)
def test_a_full_disk_leaves_no_half_file(writer, tmp_path):
    with full_disk(), pytest.raises(SaveError, match=r'cannot write .*Free space') as raised:
        WRITERS[writer](tmp_path / 'a.png')
    assert '/.' not in str(raised.value)  # the draft, which is gone
    assert not [path for path in tmp_path.rglob('*') if not path.is_dir()]
    WRITERS[writer](tmp_path / 'a.png')
    assert [path for path in tmp_path.rglob('*') if path.is_file()]
    assert not list(tmp_path.rglob('.*'))


def test_a_full_disk_leaves_no_half_geotiff(tmp_path):
    rasterio = pytest.importorskip('rasterio', reason='writes GeoTIFFs')
    place = {'crs': 'EPSG:32632', 'transform': rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)}
    shape = {'height': 40, 'width': 50, 'count': 1, 'dtype': 'uint8'}
    with rasterio.open(tmp_path / 'a.tif', 'w', driver='GTiff', **shape, **place) as opened:
        opened.write(IDS, 1)
    write = lambda: write_with_place(tmp_path / 'b.tif', IDS, RESULT.colors, tmp_path / 'a.tif')
    with full_disk(), pytest.raises(SaveError, match=r'b\.tif.*Free space'):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ['a.tif']
    write()
    with rasterio.open(tmp_path / 'b.tif') as written:
        assert (written.read(1) == IDS).all() and written.crs == place['crs']


def test_what_was_there_stays(tmp_path):
    path = tmp_path / 'a.json'
    write_json(path, {'old': 1})
    with full_disk(), pytest.raises(SaveError):
        write_json(path, {'new': list(range(99))})
    with pytest.raises(KeyError), replacing(path) as draft:
        draft.write_text('half')
        raise KeyError
    assert '"old": 1' in path.read_text() and list(tmp_path.iterdir()) == [path]
