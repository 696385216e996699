"""Seeded inputs that should not be, and a judge: each is used rightly, or refused in one line.

    python tests/fuzz.py --seed=1 --count=600 [--kinds=config,images,...] [--verbose]

`test_fuzz.py` runs a few of each kind.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import numpy as np
from absl import flags
from flax import traverse_util
from PIL import Image

from ann_jax import build, command
from ann_jax.config import CHOICES, defaults, validate
from ann_jax.data.datasets import read_image
from ann_jax.data.decode.jpeg import is_jpeg
from ann_jax.errors import ConfigError, DataError, SaveError
from ann_jax.inference.segmenter import Segmenter
from ann_jax.ranges import RANGES
from ann_jax.runs.history import flat
from ann_jax.weights import safetensors
from ann_jax.weights.opening import open_network

LIMIT = 20  # seconds, after which an input hangs
REFUSALS = ConfigError, DataError, SaveError


class _Late(BaseException):
    pass


def judge(case) -> tuple[str, str]:
    """Runs a case, which returns '' if it was used rightly, or what it gave instead.

    Returns:
        'used', 'refused', 'unclear', 'WRONG', 'TRACEBACK' or 'HANG', and what was said.
    """

    def late(*_):
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        wrong = case()
        return ('WRONG', wrong) if wrong else ('used', '')
    except REFUSALS as error:
        text = str(error)
        clear = 15 < len(text) < 3000 and text.count('\n') < 12 and 'Traceback' not in text
        return 'refused' if clear else 'unclear', text
    except SystemExit as end:
        text = str(end.code)
        return 'refused' if text.startswith('error: ') and '\n' not in text else 'unclear', text
    except _Late:
        return 'HANG', ''
    except BaseException as error:
        return 'TRACEBACK', ''.join(traceback.format_exception(error)[-6:])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- Values

TEXTS = (
    '', ' ', 'x', '0', '-1', '1e999', 'nan', 'inf', 'None', 'True', '()', '[]', '{}', '(1,', "'", '"', '\\',
    '%s', 'é', '日本語', '\u202e', '\ud800', '\0', '\n', 'a\nb', 'a' * 5000, '~', '/', '..', '/dev/null',
    '1,2', '1,2,3', '1.5,2', ',', ',,', '33,33', '-5,5', '1e3,2', '0x10', '1_000', '1+1', '[1,2]', '(3,)',
    '{"a":1}', 'b"x"', '1j', '99999999999999999999', '-0.0', '5e-324', 'true', 'FULL', 'full ', 'lambda: 1',
)  # fmt: skip
VALUES = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 0.0, -0.0, 0.5, 1e-320, 1e308, float('nan'),
    float('inf'), -float('inf'), '', 'x', 'é', '\ud800', b'x', (), [], {}, (1,), [1, 2], (1, 2, 3),
    ('a',), ((1, 2),),
    [None], [float('nan')], {'a': 1}, 1j, (True, False), np.float32(1), np.int64(3), object(), range(3),
    {1, 2},
)  # fmt: skip


def some_number(rng):
    """A number of any size and kind."""
    kind = rng.integers(4)
    if kind == 0:
        return int(rng.integers(-5, 70))
    if kind == 1:
        return float(rng.normal() * 10.0 ** rng.integers(-6, 7))
    if kind == 2:
        return int(rng.integers(-(2**62), 2**62)) * int(rng.integers(1, 9))
    return float(rng.integers(-100, 100))


# --- Settings

KEYS = sorted(flat(defaults().to_dict()))


def settings(rng, folder):
    """A setting on the command line, or in a config of one's own, of any value; then what is built of it."""
    key = KEYS[rng.integers(len(KEYS))]
    if rng.random() < 0.5:
        text = TEXTS[rng.integers(len(TEXTS))] if rng.random() < 0.6 else str(some_number(rng))
        if rng.random() < 0.2:
            text = ','.join(str(some_number(rng)) for _ in range(rng.integers(1, 5)))
        return f'--config.{key}={text!r}', lambda: from_command(key, text)
    value = copy.copy(VALUES[rng.integers(len(VALUES))])
    if rng.random() < 0.3:
        value = some_number(rng)
    elif rng.random() < 0.2:
        value = [some_number(rng) for _ in range(rng.integers(1, 5))]
    return f'{key}={value!r:.80}', lambda: built(own(key, value))


def from_command(key, text):
    given = flags.FlagValues()
    argv = command.arguments(['--config=scenes:runlocal', f'--config.{key}={text}'])
    command.define_config('A config.', given, argv)
    command.parse(argv, 'help', given)
    return built(given.config)


def own(key, value):
    config = command.load_config('scenes:runlocal')
    config.unlock()
    *sections, name = key.split('.')
    section = config
    for each in sections:
        section = section[each]
    del section[name]
    section[name] = value
    return config


def built(config):
    """Builds what a run does before it compiles; what was accepted must lie in its range."""
    validate(config)
    for key, value in flat(config.to_dict()).items():
        if key in RANGES and not RANGES[key].holds(value):
            return f'{key}={value!r:.80} was accepted'
        if key in CHOICES and value not in CHOICES[key]:
            return f'{key}={value!r:.80} was accepted'
    build.reading(config)
    build.augment(config)
    if config.model.width <= 64 and config.model.depth <= 50:
        build.model(config, 5)
    build.optimizer(config)
    build.loss(config, 5)
    build.normalize(config)
    return ''


# --- Images

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


def damaged(rng, data):
    """Bytes with flips, cuts, gaps, additions, or wrong numbers in the head; and what was done."""
    data, kind = (
        bytearray(data),
        ('flip', 'flips', 'cut', 'gap', 'zeros', 'more', 'head', 'swap')[rng.integers(8)],
    )
    place = int(rng.integers(len(data)))
    if kind in ('flip', 'flips'):
        for _ in range(1 if kind == 'flip' else int(rng.integers(2, 40))):
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    elif kind == 'cut':
        data = data[:place]
    elif kind == 'gap':
        del data[place : place + int(rng.integers(1, 200))]
    elif kind == 'zeros':
        count = min(int(rng.integers(1, 300)), len(data) - place)
        data[place : place + count] = bytes(count)
    elif kind == 'more':
        data[place:place] = rng.bytes(int(rng.integers(1, 300)))
    elif kind == 'head':
        for _ in range(int(rng.integers(1, 5))):
            data[rng.integers(min(len(data), 40))] = int(rng.choice([0, 1, 127, 128, 255]))
    else:
        half = len(data) // 2
        data = data[half:] + data[:half]
    return bytes(data), kind


def images(rng, folder):
    """An image file of any format, whole or damaged, or what is no file."""
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


# --- Weights


class Whole:
    """A folder of weights, and what its network gives."""

    def __init__(self, folder):
        from small import small_folder

        self.path = folder / 'whole'
        self.weights = small_folder(self.path)
        self.facts = json.loads((self.path / 'model.json').read_text(encoding='utf-8'))
        self.arrays = {
            name: np.asarray(array)
            for name, array in traverse_util.flatten_dict(self.weights.variables, sep='/').items()
        }
        self.image = np.random.default_rng(0).integers(0, 256, (33, 49, 3), np.uint8)


def weights_of(whole):
    """The generator of damaged folders of weights."""

    def generate(rng, folder):
        path = folder / 'weights'
        shutil.copytree(whole.path, path)
        kind = list(DAMAGES)[rng.integers(len(DAMAGES))]
        what = DAMAGES[kind](rng, path, whole)
        return f'{kind} {what or ""}', lambda: opened(path, whole, kind)

    return generate


def opened(path, whole, kind):
    weights = open_network(path)
    got = {
        name: np.asarray(array)
        for name, array in traverse_util.flatten_dict(weights.variables, sep='/').items()
    }
    if {name: array.shape for name, array in got.items()} != {n: a.shape for n, a in whole.arrays.items()}:
        return 'other arrays'
    if not all(np.isfinite(array).all() for array in got.values()):
        return 'numbers that are not finite'
    same = all(np.array_equal(array, whole.arrays[name]) for name, array in got.items())
    if not same and kind in ('bytes', 'link'):
        return 'other numbers, against the checksum'
    if len(weights.classes) != len(whole.weights.classes) or len(weights.colors) != len(weights.classes):
        return 'another number of classes'
    Segmenter(weights)
    return ''


def _facts(path, facts):
    (path / 'model.json').write_text(json.dumps(facts), encoding='utf-8')


def _bytes(rng, path, whole):
    file = path / ('model.json', 'weights.safetensors')[rng.integers(2)]
    data, how = damaged(rng, file.read_bytes())
    if file.name == 'model.json':  # a flip may give other valid text
        while file.read_bytes()[:1] == data[:1] and _is_json(data):
            data, how = damaged(rng, file.read_bytes())
    file.write_bytes(data)
    return f'{file.name} {how}'


def _is_json(data):
    try:
        json.loads(data)
        return True
    except (ValueError, RecursionError):
        return False


def _entry(rng, path, whole):
    facts = copy.deepcopy(whole.facts)
    del facts['sha256']
    places = [(facts, key) for key in facts]
    places += [(facts[part], key) for part in ('model', 'input', 'source') for key in facts[part]]
    place, key = places[rng.integers(len(places))]
    value = VALUES[rng.integers(len(VALUES))] if rng.random() < 0.6 else some_number(rng)
    if rng.random() < 0.15:
        del place[key]
        value = 'gone'
    else:
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            value = str(value)
        place[key] = value
    _facts(path, facts)
    return f'{key}={value!r:.60}'


def _text(rng, path, whole):
    text = json.dumps(whole.facts)
    kind = int(rng.integers(8))
    encoded = (
        text.encode('utf-16'), text.encode('utf-8-sig'), b'[' * 100000, b'{"a":' * 5000, b'', b'null',
        (text[:-1] + ', "model": {}}').encode(),
        text.replace('"classes"', '"classes": ["x"], "classes"').encode(),
    )[kind]  # fmt: skip
    (path / 'model.json').write_bytes(encoded)
    return str(kind)


def _array(rng, path, whole):
    facts = {key: value for key, value in whole.facts.items() if key != 'sha256'}
    arrays = dict(whole.arrays)
    name = list(arrays)[rng.integers(len(arrays))]
    array, kind = arrays[name], int(rng.integers(14))
    changed = [
        lambda: array.astype(np.float16), lambda: array.astype(np.int32), lambda: array > 0,
        lambda: array[..., None], lambda: array.reshape(-1), lambda: np.full_like(array, np.nan),
        lambda: np.full_like(array, np.inf), lambda: np.full_like(array, 1e30),
        lambda: np.full_like(array, -1e20), lambda: array.T, lambda: np.zeros(0, np.float32),
        lambda: array.astype(np.float64) * 1e200,
    ]  # fmt: skip
    if kind < len(changed):
        arrays[name] = changed[kind]()
    elif kind == 12:
        del arrays[name]
    else:
        arrays[f'{name}{"/x" if rng.integers(2) else "x"}'] = array
    (path / 'weights.safetensors').unlink()
    safetensors.write(path / 'weights.safetensors', arrays)
    _facts(path, facts)
    return f'{name} {kind}'


def _archive(rng, path, whole):
    facts = {key: value for key, value in whole.facts.items() if key != 'sha256'}
    (path / 'weights.safetensors').unlink()
    _facts(path, facts)
    file, kind = path / 'weights.npz', int(rng.integers(8))
    if kind == 0:
        np.savez(file, **whole.arrays)
        data, _ = damaged(rng, file.read_bytes())
        file.write_bytes(data)
    elif kind == 1:
        np.savez_compressed(file, **(whole.arrays | {'params/x/bomb': np.zeros((1 << 26,), np.float32)}))
    elif kind == 2:
        np.savez(file, **(whole.arrays | {'params/x/y': np.array([print], object)}))
    elif kind == 3:
        with zipfile.ZipFile(file, 'w') as archive:
            archive.writestr('../../out.npy', b'x')
    elif kind == 4:
        with zipfile.ZipFile(file, 'w') as archive, warnings.catch_warnings():
            warnings.simplefilter('ignore')
            for _ in range(2):
                archive.writestr('params/classifier/bias.npy', b'x')
    elif kind == 5:
        np.savez(file, **(whole.arrays | {'params/x/y': np.array(['text'])}))
    elif kind == 6:
        file.write_bytes(rng.bytes(500))
    else:
        np.savez(file)
    return str(kind)


def _header(rng, path, whole):
    file = path / 'weights.safetensors'
    data = file.read_bytes()
    size = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8 : 8 + size])
    name = list(header)[rng.integers(len(header))]
    key = ('dtype', 'shape', 'data_offsets')[rng.integers(3)]
    value = VALUES[rng.integers(len(VALUES))]
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        value = str(value)
    if isinstance(header[name], dict) and rng.random() < 0.8:
        header[name][key] = value
    else:
        header[name] = value
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, 'little') + text + data[8 + size :])
    _facts(path, {k: v for k, v in whole.facts.items() if k != 'sha256'})
    return f'{name} {key}={value!r:.60}'


def _link(rng, path, whole):
    file = path / ('model.json', 'weights.safetensors')[rng.integers(2)]
    file.unlink()
    kind = int(rng.integers(5))
    if kind == 0:
        file.symlink_to(whole.path / file.name)  # out of the folder, to a file: fine
    elif kind == 1:
        file.symlink_to('/dev/zero')
    elif kind == 2:
        os.mkfifo(file)
    elif kind == 3:
        file.mkdir()
    else:
        file.symlink_to(file.name)
    return f'{file.name} {kind}'


DAMAGES = {
    'bytes': _bytes,
    'entry': _entry,
    'text': _text,
    'array': _array,
    'archive': _archive,
    'header': _header,
    'link': _link,
}

# --- Arrays

OTHER_TYPES = [
    'int8', 'uint16', 'int32', 'int64', 'float16', 'float32', 'float64', 'bool', 'complex64', 'object', 'U3',
    'datetime64[s]',
]  # fmt: skip
WRAPS = (
    'numpy', 'torch', 'jax', 'list', 'nested', 'masked', 'readonly', 'strided', 'fortran',
    'matrix', 'swapped',
    'memory', 'pillow', 'tuple', 'generator', 'record',
)  # fmt: skip


def arrays_for(segmenter):
    """The generator of arrays, lists and frames that a segmenter gets."""

    def generate(rng, folder):
        channels = int(rng.choice([0, 1, 2, 3, 3, 3, 4, 5]))
        shape = [int(rng.integers(1, 60)), int(rng.integers(1, 60)), *([channels] if channels else [])]
        if rng.random() < 0.15:
            shape = [int(n) for n in rng.integers(0, 9, rng.integers(0, 6))]
        if rng.random() < 0.1:
            shape.insert(0, int(rng.integers(0, 3)))
        values = rng.integers(0, 256, shape)
        kind = str(rng.choice(['uint8'] * 6 + OTHER_TYPES))
        array = values.astype(kind)
        if array.dtype.kind == 'f' and array.size and rng.random() < 0.5:
            array.flat[0] = rng.choice([np.nan, np.inf, -1.0, 1e9])
        wrap = WRAPS[rng.integers(len(WRAPS))]
        return f'{wrap} {kind} {tuple(shape)}', lambda: segmented(segmenter, wrap, array)

    return generate


def segmented(segmenter, wrap, array):
    try:
        given = wrapped(wrap, array)
    except (TypeError, ValueError, RuntimeError, AttributeError, OverflowError, IndexError):
        return ''  # that library has no such array
    before = array.tobytes() if array.dtype != object else b''
    result = segmenter(given)
    several = isinstance(result, list)
    if before and array.tobytes() != before:
        return 'the array was changed'
    if wrap == 'matrix':  # which drops axes of 1
        array = np.asarray(given)
    if wrap == 'masked' and np.ma.is_masked(given):
        return 'masked pixels were segmented'
    if wrap in ('list', 'tuple', 'generator') or (wrap != 'nested' and array.ndim == 4):
        if not several:
            return 'one result for several images'
        parts = [array] if wrap in ('list', 'tuple', 'generator') and array.ndim < 4 else list(array)
    elif isinstance(given, list) and not given:
        parts = []
    else:
        if several:
            return f'{len(result)} results for one image'
        result, parts = [result], [array]
    if len(result) != len(parts):
        return f'{len(result)} results for {len(parts)} images'
    for one, part in zip(result, parts, strict=True):
        expected = rgb(part)
        if expected is None:
            return f'{part.dtype} {part.shape} was segmented'
        if not np.array_equal(one.image, expected):
            return 'another image was segmented'
        if not np.array_equal(one.ids, segmenter(expected).ids):
            return 'other classes than those of the plain image'
    return ''


def rgb(array):
    """The image that an array means, by definition; None if it means none."""
    if array.dtype != np.uint8 and array.dtype != bool or array.ndim not in (2, 3) or not array.size:
        return None
    array = array[..., None] if array.ndim == 2 else array
    if array.shape[2] not in (1, 2, 3, 4):
        return None
    array = array.astype(np.uint8) * np.uint8(255) if array.dtype == bool else array
    return array[..., :3] if array.shape[2] > 2 else np.repeat(array[..., :1], 3, 2)


def wrapped(wrap, array):
    if wrap == 'torch':
        import torch

        return torch.tensor(array)
    if wrap == 'jax':
        import jax.numpy as jnp

        return jnp.asarray(array)
    if wrap in ('list', 'tuple', 'generator'):
        items = [array] if array.ndim < 4 else list(array)
        return {'list': items, 'tuple': tuple(items), 'generator': (x for x in items)}[wrap]
    if wrap == 'nested':
        return array.tolist()
    if wrap == 'masked':  # refused, unless nothing is masked
        return np.ma.masked_array(array, np.arange(array.size).reshape(array.shape) % 7 == 0)
    if wrap == 'readonly':
        array = array.copy()
        array.flags.writeable = False
    elif wrap == 'strided':
        array = np.repeat(array, 2, 0)[::2]
    elif wrap == 'fortran':
        array = np.asfortranarray(array)
    elif wrap == 'matrix':
        return np.matrix(array)
    elif wrap == 'swapped':
        array = array.astype(array.dtype.newbyteorder())
    elif wrap == 'memory':
        return memoryview(np.ascontiguousarray(array))
    elif wrap == 'pillow':
        return Image.fromarray(array)
    elif wrap == 'record':
        return array.view([('x', array.dtype)])
    return array


# --- Checkpoints


def checkpoints_of(run):
    """The generator of runs whose folder of checkpoints is damaged; `run` holds two, of known numbers."""
    facts = {}

    def known():
        if not facts:
            for step in (1, 2):
                facts[step] = numbers(open_network(run / 'checkpoints' / str(step)))
        return facts

    def generate(rng, folder):
        known()
        copied = folder / 'run'
        shutil.copytree(run, copied)
        done = [spoil(rng, copied / 'checkpoints') for _ in range(int(rng.integers(1, 4)))]
        return '; '.join(done), lambda: restored(copied, known())

    return generate


def numbers(weights):
    return {name: np.asarray(x) for name, x in traverse_util.flatten_dict(weights.variables, sep='/').items()}


def restored(path, known):
    got = numbers(open_network(path))
    for arrays in known.values():
        if got.keys() == arrays.keys() and all(np.array_equal(got[name], arrays[name]) for name in got):
            return ''
    return 'numbers of no checkpoint'


def spoil(rng, folder):
    paths = sorted(path for path in folder.rglob('*') if rng.random() < 0.9) or [folder]
    path = paths[rng.integers(len(paths))]
    kind = ('bytes', 'gone', 'empty', 'folder', 'link', 'pipe', 'number', 'zero')[rng.integers(8)]
    if kind == 'number':
        name = str(
            rng.choice(['99', '0', '-1', '1e3', '003', '7.orbax-checkpoint-tmp', 'damaged.2', 'x', '2 '])
        )
        with contextlib.suppress(FileExistsError):
            (folder / name).mkdir(parents=True)
        return f'a folder {name}'
    if not os.path.lexists(path):
        return 'nothing'
    if kind == 'bytes' and path.is_file():
        path.write_bytes(damaged(rng, path.read_bytes() or b'\0')[0])
        return f'bytes of {path.relative_to(folder)}'
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == 'empty':
        path.write_bytes(b'')
    elif kind == 'folder':
        path.mkdir()
    elif kind == 'link':
        path.symlink_to(rng.choice(['nowhere', '.', path.name, '/dev/null']))
    elif kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'zero':
        path.symlink_to('/dev/zero')
    return f'{path.relative_to(folder)} {kind}'


# --- The long run


def make_run(folder):
    """What a run of two steps leaves: a checkpoint at each."""
    from reference import random_variables

    from ann_jax.data.scene_objects import CLASSES, COLORS
    from ann_jax.runs.checkpoints import Checkpoints

    config = command.load_config('scenes:runlocal')
    facts = {'config': config.to_dict(), 'classes': CLASSES, 'colors': COLORS}
    facts = json.loads(json.dumps(facts))
    model = build.model(config, len(CLASSES))
    with contextlib.closing(Checkpoints(folder / 'checkpoints')) as checkpoints:
        for step in (1, 2):
            variables = random_variables(model, step, np.zeros((1, 33, 33, 3), np.float32))
            checkpoints.save(step, dict(variables), facts)
            checkpoints.score(step, 0.1 * step)
    return folder


def run(kind, generate, seed, count, verbose):
    """Judges inputs of one kind; returns the verdicts."""
    verdicts: Counter = Counter()
    for number in range(count):
        with tempfile.TemporaryDirectory() as folder:
            rng = np.random.default_rng([seed, number])
            start = time.monotonic()
            try:
                name, case = generate(rng, Path(folder))
            except Exception:
                print(kind, seed, number, 'the generator failed', traceback.format_exc())
                continue
            verdict, said = judge(case)
            verdicts[verdict] += 1
            slow = time.monotonic() - start > 5
            if verbose or slow or verdict not in ('used', 'refused'):
                name = re.sub(r'[^ -~]', '?', name)[:150]
                print(
                    f'{kind} {number}: {verdict}{" slow" if slow else ""} {name}: {said[-700:]!r}', flush=True
                )
    return verdicts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--count', type=int, default=600, help='of all kinds together')
    parser.add_argument('--kinds', default='config,images,weights,arrays,checkpoints')
    parser.add_argument(
        '--run', type=Path, help='folder of a run with two checkpoints, made if it is not there'
    )
    parser.add_argument('--verbose', action='store_true')
    options = parser.parse_args()
    kinds = options.kinds.split(',')
    total: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        whole = Whole(place) if {'weights', 'arrays'} & {*kinds} else None
        for kind in kinds:
            if kind == 'checkpoints':
                where = options.run or place / 'run'
                generate = checkpoints_of(where if where.exists() else make_run(where))
            else:
                generate = {
                    'config': lambda: settings,
                    'images': lambda: images,
                    'weights': lambda: weights_of(whole),
                    'arrays': lambda: arrays_for(Segmenter(open_network(whole.path))),
                }[kind]()
            verdicts = run(kind, generate, options.seed, options.count // len(kinds), options.verbose)
            print(kind, dict(verdicts), flush=True)
            total += verdicts
    print('all', dict(total))
    bad = total.total() - total['used'] - total['refused']
    return 1 if bad else 0


if __name__ == '__main__':
    sys.exit(main())
