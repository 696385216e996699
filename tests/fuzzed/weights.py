"""Folders of weights of which a file, an entry, an array or the header is damaged."""

import copy
import json
import os
import shutil
import warnings
import zipfile

import numpy as np
from flax import traverse_util
from small import small_folder

from ann_jax.inference.segmenter import Segmenter
from ann_jax.weights import safetensors
from ann_jax.weights.opening import open_network
from fuzzed.values import VALUES, damaged, some_number


class Whole:
    """A folder of weights, and what its network gives."""

    def __init__(self, folder):
        self.path = folder / 'whole'
        self.weights = small_folder(self.path)
        self.facts = json.loads((self.path / 'model.json').read_text(encoding='utf-8'))
        self.arrays = numbers(self.weights)


def numbers(weights):
    """Name -> array of a network's variables."""
    return {name: np.asarray(x) for name, x in traverse_util.flatten_dict(weights.variables, sep='/').items()}


def draw(whole, rng, folder):
    """A damaged copy of a folder of weights."""
    path = folder / 'weights'
    shutil.copytree(whole.path, path)
    kind = list(DAMAGES)[rng.integers(len(DAMAGES))]
    what = DAMAGES[kind](rng, path, whole)
    return f'{kind} {what or ""}', lambda: opened(path, whole, kind)


def opened(path, whole, kind):
    weights = open_network(path)
    got = numbers(weights)
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
