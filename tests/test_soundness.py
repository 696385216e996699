"""Weights that cannot be are refused by name when they are opened, and damaged folders end in one line."""

import io
import json
import math
import shutil
import zipfile

import numpy as np
import pytest
from flax import traverse_util
from small import small_folder
from test_witnesses import WITNESSES

from ann_jax.errors import ConfigError, DataError
from ann_jax.models.settings import BACKBONE_FACTS, network
from ann_jax.runs.checkpoints import Checkpoints
from ann_jax.weights import safetensors
from ann_jax.weights.opening import open_weights

KERNEL, BIAS = 'params/bottleneck/conv/kernel', 'params/classifier/bias'
MEAN, VAR = 'batch_stats/bottleneck/bn/mean', 'batch_stats/bottleneck/bn/var'
DEEP = 'params/backbone/layer1_0/conv1/kernel'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A folder of weights, its facts and its arrays by name."""
    path = tmp_path_factory.mktemp('weights') / 'whole'
    saved = small_folder(path)
    facts = json.loads((path / 'model.json').read_text(encoding='utf-8'))
    del facts['sha256']  # whoever writes other arrays writes another checksum, or none
    return path, facts, traverse_util.flatten_dict(saved.variables, sep='/')


@pytest.fixture
def written(whole, tmp_path):
    """Writes a folder with other facts or arrays."""

    def write(facts=None, arrays=None):
        path = tmp_path / 'weights'
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        text = (
            facts if isinstance(facts, bytes) else json.dumps(whole[1] if facts is None else facts).encode()
        )
        (path / 'model.json').write_bytes(text)
        if isinstance(arrays, bytes):
            (path / 'weights.npz').write_bytes(arrays)
        else:
            arrays = whole[2] if arrays is None else arrays
            safetensors.write(path / 'weights.safetensors', arrays)
        return path

    return write


def first(array, value):
    changed = np.array(array)
    changed.flat[0] = value
    return changed


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        (KERNEL, lambda x: first(x, np.nan), 'not finite'),
        (DEEP, lambda x: first(x, -np.inf), 'not finite'),
        (MEAN, lambda x: x * np.nan, 'not finite'),
        (DEEP, lambda x: x.astype(np.float64) * 1e300, 'not finite'),  # overflows in float32
        (KERNEL, lambda x: first(x, 1e30), r'beyond 1e\+08'),
        (MEAN, lambda x: first(x, -2e8), r'beyond 1e\+08'),
        (VAR, lambda x: first(x, 1e17), r'beyond 1e\+16'),
        (VAR, lambda x: first(x, -1e-3), 'negative variances'),
        (BIAS, lambda x: x[:1], '17 classes, but params/classifier has 1 outputs'),
        (BIAS, lambda x: x[0], r'\(\), the network has \(17,\)'),
        (MEAN, lambda x: x[None], r'\(1, 8\), the network has \(8,\)'),
        (KERNEL, lambda x: x[:1], 'the network has'),
        (KERNEL, lambda x: np.rint(x).astype(np.int32), 'holds int32, not floats'),
        (BIAS, lambda x: x > 0, 'holds bool, not floats'),
        (DEEP, lambda x: None, 'absent, the network has'),
        ('params/extra/kernel', lambda x: np.zeros(3, np.float32), 'no place for it'),
        ('opt_state/momentum', lambda x: np.zeros(3, np.float32), 'no variable of a network'),
        ('params' + '/a' * 5000, lambda x: np.zeros(3, np.float32), 'no variable of a network'),
        (BIAS + '/a', lambda x: np.zeros(3, np.float32), "bias' and also 'params/classifier/bias/a'"),
    ],
)
def test_arrays_that_cannot_be_those_of_the_network(name, change, message, whole, written):
    arrays = dict(whole[2])
    arrays[name] = change(arrays.get(name))
    if arrays[name] is None:
        del arrays[name]
    with pytest.raises(DataError, match=message) as error:
        open_weights(written(arrays=arrays))
    assert str(error.value).startswith(str(written())) and name.split('/')[1] in str(error.value)


def test_limits_themselves_are_accepted(whole, written):
    arrays = dict(whole[2])
    arrays[KERNEL], arrays[VAR] = first(arrays[KERNEL], 1e8), first(arrays[VAR], 1e16)
    arrays[DEEP] = arrays[DEEP].astype(np.float16)
    opened = open_weights(written(arrays=arrays)).variables
    assert opened['params']['backbone']['layer1_0']['conv1']['kernel'].dtype == np.float32
    assert opened['params']['bottleneck']['conv']['kernel'].flat[0] == np.float32(1e8)


@pytest.mark.parametrize('change', [-1, 1])
def test_classes_are_the_outputs(change, whole, written):
    names = [f'c{i}' for i in range(17 + change)]
    with pytest.raises(DataError, match=f'names {len(names)} classes, but params/classifier has 17 outputs'):
        open_weights(written({**whole[1], 'classes': names, 'colors': [[0, 0, 0]] * len(names)}))
    with pytest.raises(DataError, match='colors: there are 17 for 18 classes'):
        open_weights(written({**whole[1], 'classes': [f'c{i}' for i in range(18)]}))
    with pytest.raises(DataError, match="classes: 'c1' appears twice"):
        open_weights(written({**whole[1], 'classes': [f'c{max(i, 1)}' for i in range(17)]}))


def test_a_backbone_alone(whole, written):
    model = {key: whole[1]['model'][key] for key in BACKBONE_FACTS}
    facts = {**whole[1], 'model': model, 'classes': [], 'colors': []}
    arrays = {name: array for name, array in whole[2].items() if '/backbone/' in name}
    assert not open_weights(written(facts, arrays)).classes
    with pytest.raises(DataError, match='classifier/bias.*no place for it'):
        open_weights(written(facts, arrays | {BIAS: whole[2][BIAS]}))
    del arrays[DEEP]
    with pytest.raises(DataError, match='layer1_0/conv1/kernel: absent'):
        open_weights(written(facts, arrays))


def test_the_head_on_a_custom_backbone(whole, written):
    """Whatever its channels: here those of the `ResNet`, whose arrays it names otherwise."""
    arrays = {name.replace('layer1_0', 'first'): array for name, array in whole[2].items()}
    facts = {**whole[1], 'backbone': 'Mine'}
    assert open_weights(written(facts, arrays)).backbone == 'Mine'
    for name, array in (
        (BIAS, arrays[BIAS][:1]),
        (KERNEL, arrays[KERNEL][:, :, :2]),
        ('params/more/bias', arrays[BIAS]),
        ('params/backbone/first/conv1/kernel', arrays[DEEP.replace('layer1_0', 'first')] * np.nan),
    ):
        with pytest.raises(DataError, match=name.split('/')[-2] + '|outputs'):
            open_weights(written(facts, arrays | {name: array}))
    narrow = {key: value for key, value in arrays.items() if key != 'params/aux_classifier/bias'}
    with pytest.raises(DataError, match='aux_classifier/bias: absent'):
        open_weights(written(facts, narrow))
    # As soon as the backbone is given, its arrays are compared too.
    real = network(whole[1]['model'], 17).backbone
    assert open_weights(written(facts, whole[2])).network(real).num_classes == 17
    with pytest.raises(DataError, match='arrays of a network on ResNet:(?s:.*)first/bn1/mean'):
        open_weights(written(facts, arrays)).network(real)


def npz(arrays, compressed=False, **others):
    """The bytes of an archive; `others` are raw members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, array in arrays:
            with archive.open(f'{name}.npy', 'w') as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=True)
        for name, raw in others.items():
            archive.writestr(name, raw)
    return buffer.getvalue()


class Trap:
    def __reduce__(self):
        return (pytest.fail, ('a pickle was opened',))


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_archives_of_early_versions(whole, written):
    """They open; what is no archive of their arrays does not, and nothing in it is run or unpacked."""
    facts = whole[1] | {'version': 2}
    arrays = list(whole[2].items())
    kernel = dict(arrays)[KERNEL]
    opened = open_weights(written(facts, npz(arrays)))
    np.testing.assert_array_equal(opened.variables['params']['bottleneck']['conv']['kernel'], kernel)
    zeros, cut = np.zeros(10**7, np.float32), npz(arrays)[:-3000]
    huge = npz([(KERNEL, kernel)]).replace(b"'shape': (3, 3, 32, 8)", b"'shape': (3, 3, 32, 1" + b'0' * 9)
    for raw, message in (
        (b'', 'not a complete npz file'),
        (np.random.default_rng(0).bytes(5000), 'not a complete npz file'),
        (cut, 'not a complete npz file'),
        (npz([]), 'absent, the network has'),
        (npz([*arrays[1:], (arrays[0][0], np.full(arrays[0][1].shape, 'a'))]), 'holds <U1, not floats'),
        (npz([*arrays[1:], (arrays[0][0], np.array([Trap()]))]), 'not a complete npz file .*allow_pickle'),
        (npz([*arrays[1:], (arrays[0][0], arrays[0][1] * 1j)]), 'holds complex64, not floats'),
        (npz([*arrays, arrays[0]]), f"{arrays[0][0]}.npy' more than once"),
        (npz(arrays, **{'more.txt': b'a'}), 'more.txt., which is no array'),
        (npz([*arrays, (KERNEL + '2', zeros)], compressed=True), 'unpacks to 4.* more than 4 times'),
        (huge, 'not a complete npz file'),
    ):
        with pytest.raises(DataError, match=message) as error:
            open_weights(written(facts, raw))
        assert 'weights' in str(error.value)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (b'7', 'was not written by ann_jax'),
        (b'[1]', 'was not written by ann_jax'),
        (b'', 'damaged weights folder .model.json: '),
        (b'[' * 100_000, 'damaged weights folder .model.json: '),
        (b'{"model": ' + b'[' * 40 + b']' * 40 + b'}', 'nested more than 32 times'),
        (b'{"version": ' + b'9' * 5000 + b'}', 'damaged weights folder .model.json: '),
        ('{"version": 3}'.encode('utf-16'), 'damaged weights folder .model.json: '),
        ({'version': '3'}, "model.json: version='3': must be of type int"),
        ({'version': 4, 'model': 3, 'source': 3}, 'format 4 of model.json is newer than 3'),
        ({'version': True}, 'version=True: must be of type int'),
        ({'model': 3}, 'model.json: model=3: must be of type dict'),
        ({'input': None}, 'input=None: must be of type dict'),
        ({'classes': 'road'}, "classes='road': must be of type list"),
        ({'classes': list(range(17))}, 'classes=0: must be texts'),
        ({'colors': [[0, 0, 0]] * 16}, 'colors: there are 16 for 17 classes'),
        ({'colors': [[0, 0, 256]] * 17}, 'colors=.*three levels'),
        ({'colors': [[0, 0]] * 17}, 'colors=.*three levels'),
        ({'source': {'ann_jax': 3}}, 'source.ann_jax=3: must be a text'),
        ({'images': {'bands': '0'}}, "bands='0'"),
        ({'images': {'image_range': [0, 1]}}, 'images.image_range='),
        ({'model.depth': '10'}, "model.depth='10': must be of type int"),
        ({'model.depth': [10]}, r'model.depth=\(10,\): must be of type int'),
        ({'model.variant': 3}, 'model.variant=3: must be of type str'),
        ({'model.variant': {}}, 'no model.variant'),
        ({'model.conv_bias': 'no'}, "model.conv_bias='no': must be true or false"),
        ({'model.sizes': [1, 'a']}, r"model.sizes=\(1, 'a'\): must be 1 to 1024 whole numbers"),
        ({'model.key_channels': math.nan}, 'model.key_channels=nan'),
        ({'model.head_channels': 10**9}, 'model.head_channels=1000000000'),
        ({'model.fuse_stages': [4, 4]}, 'model.fuse_stages'),
        ({'model.head_channels': 16}, 'bottleneck/conv/kernel'),
        ({'model.variant': 'ring'}, "model.variant='ring'"),
        ({'model.gate': 1}, 'model.gate=1'),
        ({'model': {'depth': 10, 'depth.x': 1}}, "a setting 'depth.x'"),
        ({'input.std': [1, 1]}, 'input.std=.*must be 3 numbers'),
        ({'input.std': [1, 0, 1]}, 'input.std='),
        ({'input.std': [1, math.inf, 1]}, 'input.std='),
        ({'input.mean': 'abc'}, "input.mean='abc'"),
        ({'input.mean': [1, math.nan, 1]}, 'input.mean='),
        ({'input.bgr': 1}, 'input.bgr=1'),
    ],
)
def test_a_model_json_with_errors(change, message, whole, written):
    facts = change
    if isinstance(change, dict):
        facts = json.loads(json.dumps(whole[1]))
        for key, value in change.items():
            *section, name = key.split('.')
            (facts[section[0]] if section else facts)[name] = value
    with pytest.raises(DataError, match=message) as error:
        open_weights(written(facts)).network()
    assert 'weights' in str(error.value)


def test_no_mutation_brings_anything_but_errors_of_the_package(whole, written):
    """Bytes and values of a folder changed at random: it opens, or says why not."""
    rng = np.random.default_rng(0)
    text, raw = json.dumps(whole[1]).encode(), npz(whole[2].items())
    path = written()
    sound = (path / 'weights.safetensors').read_bytes()
    values = [None, True, -1, 0, 3.5, math.nan, 10**30, '', 'a', [], [[]], {}, {'a': 1}, [1, 2, 3], 'é' * 50]
    opened = 0
    for trial in range(120):
        facts = json.loads(text)
        target = [facts, facts['model'], facts['input'], facts['source']][rng.integers(4)]
        keys = sorted(target)
        files = {'model.json': text, 'weights.safetensors': sound}
        if trial % 4 == 0:
            target[keys[rng.integers(len(keys))]] = values[rng.integers(len(values))]
            files['model.json'] = json.dumps(facts).encode()
        else:
            name = ['model.json', 'weights.safetensors', 'weights.npz'][trial % 4 - 1]
            changed = bytearray(files.get(name, raw))
            # The beginning holds names and shapes; an archive has them at its end.
            where = rng.integers(0, min(len(changed), 4000), rng.integers(1, 3))
            for at in len(changed) - 1 - where if name == 'weights.npz' else where:
                changed[at] = rng.integers(256) if trial % 3 == 0 else rng.integers(48, 58)
            files[name] = bytes(changed[: rng.integers(1, len(changed))] if trial % 5 == 0 else changed)
            if name == 'weights.npz':
                del files['weights.safetensors']
        for file in path.iterdir():
            file.unlink()
        for name, content in files.items():
            (path / name).write_bytes(content)
        try:
            open_weights(path).network()
            opened += 1
        except (DataError, ConfigError) as error:
            assert str(path) in str(error) or 'backbone' in str(error)
    assert 0 < opened < 150


def test_a_run_that_holds_nan_is_refused(monkeypatch):
    """Although its checksums are right: a user's own step may have written it."""
    read = Checkpoints.read

    def spoilt(self, step, names):
        tree = read(self, step, names)
        norm = tree['batch_stats']['bottleneck']['bn']
        norm['mean'] = norm['mean'] * np.nan
        return tree

    run = WITNESSES / 'commit_29e8a0d'
    monkeypatch.setattr(Checkpoints, 'read', spoilt)
    with pytest.raises(DataError, match=r'400: .*be weights:\n.*bottleneck/bn/mean: .*not finite'):
        open_weights(run)
