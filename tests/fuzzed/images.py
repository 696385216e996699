"""Image files of any format, whole or damaged, and what is no file."""

import contextlib
import io
import os
import socket

import numpy as np
from PIL import Image

from ann_jax.data.datasets import read_image
from ann_jax.data.decode.jpeg import is_jpeg
from ann_jax.errors import DataError
from fuzzed.values import damaged

FORMATS = {
    'png': ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'),
    'jpeg': ('L', 'RGB', 'CMYK'),
    'bmp': ('1', 'L', 'P', 'RGB'),
    'gif': ('L', 'P'),
    'webp': ('RGB', 'RGBA'),
    'tiff': ('1', 'L', 'P', 'RGB', 'RGBA', 'CMYK', 'I;16', 'F', 'I', 'LAB', 'YCbCr'),
    'ppm': ('1', 'L', 'RGB', 'I;16'),
    'jpeg2000': ('L', 'RGB', 'RGBA'),
    'avif': ('RGB',),
    'ico': ('RGBA',),
    'tga': ('L', 'RGB'),
    'pcx': ('L', 'RGB'),
    'sgi': ('L', 'RGB'),
    'dds': ('RGB',),
    'pdf': ('RGB',),
}
CHECKED = ('png',)  # whose bytes have checksums


def some_picture(rng, mode, height=0, width=0):
    """A Pillow image of any mode."""
    height, width = height or int(rng.integers(1, 70)), width or int(rng.integers(1, 70))
    if mode == 'I;16':
        return Image.fromarray(rng.integers(0, 65536, (height, width)).astype(np.uint16))
    if mode in 'IF':
        return Image.fromarray(rng.normal(size=(height, width)).astype(np.float32) * 300).convert(mode)
    smooth = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((width, height))
    return smooth.convert(mode)


def draw(rng, folder):
    """An image file, and what it must be read as if it is."""
    path = folder / f'a.{("png", "jpg", "tif", "bmp", "x", "")[rng.integers(6)]}'
    if rng.random() < 0.15:
        return special(rng, path)
    form = list(FORMATS)[rng.integers(len(FORMATS))]
    mode = FORMATS[form][rng.integers(len(FORMATS[form]))]
    if rng.random() < 0.1:
        path.write_bytes(rng.bytes(int(rng.integers(0, 3000))))
        return 'random bytes', lambda: read(path)
    size = (1, 30000) if rng.random() < 0.05 else (0, 0)
    stream = io.BytesIO()
    options = {}
    if form == 'jpeg':
        options = {'progressive': bool(rng.integers(2)), 'quality': int(rng.integers(1, 100))}
    if form == 'tiff' and mode not in ('1', 'P'):
        options = {'compression': str(rng.choice(['raw', 'tiff_lzw', 'tiff_adobe_deflate']))}
    picture = some_picture(rng, mode, *size)
    with contextlib.suppress(OSError, ValueError, KeyError):
        picture.save(stream, form, **options)
    data = stream.getvalue() or b'\0'
    path.write_bytes(data)
    try:
        good = read_image(path)
    except DataError:
        good = None
    how = 'whole'
    if rng.random() < 0.85:
        data, how = damaged(rng, data)
        path.write_bytes(data)
    name = f'{form} {mode} {how}'
    return name, lambda: read(path, good if form in CHECKED else None)


def read(path, good=None):
    image = read_image(path)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        return f'{image.dtype} {image.shape}'
    if good is not None and not np.array_equal(image, good):
        return 'other pixels, against the checksum'
    data = path.read_bytes()
    if is_jpeg(data):  # an independent decoder
        with Image.open(io.BytesIO(data)) as opened:
            if {opened.height, opened.width} != {*image.shape[:2]}:
                return 'another size'
    return ''


def special(rng, path):
    kind = ('folder', 'pipe', 'socket', 'zero', 'random', 'full', 'loop', 'nowhere', 'proc', 'absent',
            'odd name', 'long name', 'empty')[rng.integers(13)]  # fmt: skip
    if kind == 'folder':
        path.mkdir()
    elif kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'socket':
        here = os.getcwd()
        os.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
        os.chdir(here)
    elif kind in ('zero', 'random', 'full'):
        path.symlink_to(f'/dev/{"urandom" if kind == "random" else kind}')
    elif kind == 'loop':
        path.symlink_to(path.name)
    elif kind == 'nowhere':
        path.symlink_to('nothing/there')
    elif kind == 'proc':
        path.symlink_to('/proc/self/status')
    elif kind == 'odd name':
        path = path.with_name('a\udcff\n\x1b[31m.png')
        path.write_bytes(b'x')
    elif kind == 'long name':
        path = path.with_name('a' * 300)
    elif kind == 'empty':
        path.write_bytes(b'')
    return kind, lambda: read(path) or 'it was read'
