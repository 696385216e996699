"""Files of torch and safetensors are read without them, as they read them; and no file does harm."""

import collections
import json
import os
import pickle
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from reference import GOLDENS, below, golden

import ann_jax
from ann_jax.errors import ConfigError, DataError
from ann_jax.weights.contents import read_file
from ann_jax.weights.pickles import Unread
from ann_jax.weights.torch_files import read

try:
    import torch
except ImportError:
    torch = None
needs_torch = pytest.mark.skipif(torch is None, reason='torch writes and reads the files to compare with')

# What the files of torch in goldens/ hold: key -> numbers.
BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
STORED = {
    'plain': BASE,
    'transposed': BASE.T,
    'strided': BASE[1:, ::2],
    'expanded': np.broadcast_to(BASE[:, :1], (4, 3)),
    'half': np.array([0.5, -2, 65504], np.float16),
    'brain': np.array([1, -0.15625, 3e38], np.float32).view(np.uint32) & 0xFFFF0000,
    'double': np.array([[1 / 3]], np.float64),
    'counter': np.array(7, np.int64),
    'bytes': np.array([0, 255], np.uint8),
    'flags': np.array([True, False, True]),
    'short': np.array([60000], np.uint16),
    'empty': np.zeros((0, 3), np.float32),
    'parameter': np.array(0.25, np.float32),
}
STORED['brain'] = STORED['brain'].view(np.float32)


class HistoryBuffer:
    """As mmengine's: an object with arrays, of a class that is not there when the file is read."""

    def __init__(self):
        self.max_length, self._log_history = 10, np.array([1.5, 2])


HistoryBuffer.__module__ = 'mmengine.logging.history_buffer'


def write_stored(path, **options):
    """Writes with torch what `STORED` says, as mmengine writes its checkpoints."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = collections.OrderedDict(
        plain=base,
        transposed=base.t(),
        strided=base[1:, ::2],
        expanded=base[:, :1].expand(4, 3),
        brain=torch.tensor(STORED['brain']).bfloat16(),
        parameter=torch.nn.Parameter(torch.tensor(0.25)),
    )
    for key in STORED.keys() - state.keys():
        state[key] = torch.from_numpy(STORED[key])
    state._metadata = {'': {'version': 1}}
    meta = {
        'epoch': np.int64(3),
        'CLASSES': ('road', 'sky'),
        'PALETTE': np.array([[1, 2, 3], [4, 5, 6]], np.uint8),
        'time': collections.defaultdict(list, a=[1.5, None, True]),
    }
    content = {'meta': meta, 'state_dict': state, 'message_hub': {'loss': HistoryBuffer()}}
    module = types.ModuleType(HistoryBuffer.__module__)
    module.HistoryBuffer = HistoryBuffer
    for name in ('mmengine', 'mmengine.logging', HistoryBuffer.__module__):
        sys.modules[name] = module
    try:
        torch.save(content, path, **options)
    finally:
        for name in ('mmengine', 'mmengine.logging', HistoryBuffer.__module__):
            del sys.modules[name]


FORMS = {'zip': {}, 'legacy': {'_use_new_zipfile_serialization': False}}


def check_stored(path):
    content = read(path)
    for key, expected in STORED.items():
        assert content['state_dict'][key].dtype == expected.dtype, key
        np.testing.assert_array_equal(content['state_dict'][key], expected, key)
    assert content['state_dict'].keys() == STORED.keys()
    meta = content['meta']
    np.testing.assert_array_equal(meta['PALETTE'], [[1, 2, 3], [4, 5, 6]])
    assert meta['PALETTE'].dtype == np.uint8
    assert (meta['epoch'], meta['CLASSES'], meta['time']) == (3, ('road', 'sky'), {'a': [1.5, None, True]})
    assert content['message_hub']['loss'].name == 'mmengine.logging.history_buffer.HistoryBuffer'


@pytest.mark.parametrize('form', FORMS)
def test_stored_files_of_torch(form):
    check_stored(GOLDENS / f'torch_{form}.pth')


@needs_torch
@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('form', FORMS)
def test_new_files_of_torch(form, protocol, tmp_path):
    write_stored(tmp_path / 'a.pth', pickle_protocol=protocol, **FORMS[form])
    check_stored(tmp_path / 'a.pth')


DTYPES = 'float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128'.split()


def random_tensor(rng, pool, dtypes):
    """A tensor of any type and strides; often over numbers of an earlier one."""
    if pool and rng.random() < 0.4:
        tensor = pool[rng.integers(len(pool))]
    else:
        shape = tuple(rng.integers(0 if rng.random() < 0.1 else 1, 6, rng.integers(0, 5)))
        tensor = torch.tensor(rng.normal(0, 50, shape)).to(getattr(torch, rng.choice(dtypes)))
        pool.append(tensor)
    for _ in range(rng.integers(0, 4)):
        if tensor.ndim == 0:
            tensor = tensor.expand(tuple(map(int, rng.integers(1, 4, rng.integers(0, 3)))))
            continue
        axis = int(rng.integers(tensor.ndim))
        match rng.integers(5):
            case 0:
                tensor = tensor.transpose(0, axis)
            case 1 if tensor.shape[axis]:
                tensor = tensor.narrow(
                    axis, begin := int(rng.integers(tensor.shape[axis])), tensor.shape[axis] - begin
                )
            case 2 if tensor.shape[axis]:
                tensor = tensor.select(axis, int(rng.integers(tensor.shape[axis])))
            case 3:
                tensor = tensor[..., :: int(rng.integers(1, 4))]
            case 4:
                tensor = tensor.unsqueeze(axis).expand(*tensor.shape[:axis], 3, *tensor.shape[axis:])
    if tensor.is_floating_point() and rng.random() < 0.2:
        tensor = torch.nn.Parameter(tensor)
    return tensor


def random_tree(rng, pool, dtypes, depth=0):
    leaf = rng.random() < 0.5 + depth / 4
    if leaf and rng.random() < 0.7:
        return random_tensor(rng, pool, dtypes)
    if leaf:
        leaves = [
            None,
            True,
            'text',
            'grüße',
            b'',
            b'\xff\x00',
            -7,
            2**70,
            300,
            70000,
            1.5,
            -np.inf,
            {1, 'a'},
            (),
            torch.Size([2, 3]),
        ]
        return leaves[rng.integers(len(leaves))]
    parts = [random_tree(rng, pool, dtypes, depth + 1) for _ in range(rng.integers(0, 8))]
    match rng.integers(4):
        case 0:
            return parts
        case 1:
            return tuple(parts)
        case 2:
            return collections.OrderedDict((f'k{i}', part) for i, part in enumerate(parts))
        case 3:
            return {('pair', i) if i % 2 else i: part for i, part in enumerate(parts)}


def assert_equal(ours, theirs, where='tree'):
    """Compares with what torch.load gives."""
    if isinstance(theirs, torch.Tensor):
        theirs = theirs.detach()
        theirs = (theirs.float() if theirs.dtype == torch.bfloat16 else theirs).numpy()
        assert isinstance(ours, np.ndarray) and (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), (
            where
        )
        np.testing.assert_array_equal(ours, theirs, where)
    elif isinstance(theirs, dict):
        assert isinstance(ours, dict) and list(ours) == list(theirs), where
        for key in theirs:
            assert_equal(ours[key], theirs[key], f'{where}/{key}')
    elif isinstance(theirs, list | tuple):
        assert isinstance(ours, list | tuple) and len(ours) == len(theirs), where
        assert isinstance(ours, list) == isinstance(theirs, list), where
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(one, other, f'{where}/{i}')
    else:
        assert type(ours) is type(theirs) and ours == theirs, where


@needs_torch
@pytest.mark.parametrize('seed', range(60))
def test_random_trees_read_as_torch_reads_them(seed, tmp_path):
    rng = np.random.default_rng(seed)
    form, path, pool = 'legacy' if seed % 3 == 0 else 'zip', tmp_path / 'a.pth', []
    # torch itself does not read these two again from the legacy form.
    dtypes = DTYPES if form == 'legacy' else [*DTYPES, 'uint16', 'uint32']
    tree = {'tree': random_tree(rng, pool, dtypes)}
    tree['tensors'] = [random_tensor(rng, pool, dtypes) for _ in range(8)]
    torch.save(tree, path, pickle_protocol=2 + seed % 4, **FORMS[form])
    assert_equal(read(path), torch.load(path, weights_only=False))


def change(path, changes, compression=zipfile.ZIP_STORED):
    """Writes an archive anew: name below its root -> its new bytes, or a function of the old ones."""
    with zipfile.ZipFile(path) as archive:
        entries = {name.split('/', 1)[1]: archive.read(name) for name in archive.namelist()}
    for name, new in changes.items():
        entries[name] = new(entries[name]) if callable(new) else new
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, data in entries.items():
            if data is not None:
                archive.writestr(f'another root/{name}', data)
    return path


@needs_torch
def test_big_endian_numbers(tmp_path):
    kinds = ('float32', 'float64', 'float16', 'bfloat16', 'int64', 'int16', 'bool', 'complex64')
    tree = {kind: torch.tensor([[1, -3, 0.1], [0, 1e4, 7]]).to(getattr(torch, kind)).t() for kind in kinds}
    torch.save(tree, tmp_path / 'a.pth')
    swap = lambda width: lambda raw: np.frombuffer(raw, f'u{width}').byteswap().tobytes()
    widths = (4, 8, 2, 2, 8, 2, 1, 4)
    change(
        tmp_path / 'a.pth',
        {'byteorder': b'big'} | {f'data/{i}': swap(width) for i, width in enumerate(widths)},
    )
    assert_equal(read(tmp_path / 'a.pth'), torch.load(tmp_path / 'a.pth', weights_only=True))
    # Bytes of tensors without a class of storages: torch does not swap them, which gives other numbers.
    stored = tmp_path / 'stored.pth'
    stored.write_bytes((GOLDENS / 'torch_zip.pth').read_bytes())
    found = read(change(stored, {'byteorder': b'big'}))['state_dict']
    assert found['short'].name == 'torch._utils._rebuild_tensor of torch.uint16'
    np.testing.assert_array_equal(found['bytes'], STORED['bytes'])
    np.testing.assert_allclose(read(tmp_path / 'a.pth')['float64'], tree['float64'])


def test_other_archives_with_the_same_content(tmp_path):
    path = tmp_path / 'a.pth'
    path.write_bytes((GOLDENS / 'torch_zip.pth').read_bytes())
    check_stored(change(path, {}))
    check_stored(change(path, {'byteorder': None, '.format_version': None}))  # as of before torch 2.1
    check_stored(change(path, {}, zipfile.ZIP_DEFLATED))


# Pickles made by hand, of opcodes of protocol 2.
def text(word):
    return b'X' + len(word).to_bytes(4, 'little') + word.encode()


def number(value):
    return (
        b'J' + value.to_bytes(4, 'little', signed=True) if abs(value) < 2**31 else pickle.dumps(value)[2:-1]
    )


def name(full):
    return b'c' + full.rpartition('.')[0].encode() + b'\n' + full.rpartition('.')[2].encode() + b'\n'


def ints(values):
    return b'(' + b''.join(map(number, values)) + b't'


def call(full, *arguments):
    return name(full) + b'(' + b''.join(arguments) + b'tR'


def storage(key='0', count=24, kind='FloatStorage'):
    return b'(' + text('storage') + name(f'torch.{kind}') + text(key) + text('cpu') + number(count) + b'tQ'


def tensor(offset=0, size=(4, 6), stride=(6, 1), numbers=None):
    return call(
        'torch._utils._rebuild_tensor_v2',
        *(
            numbers or storage(),
            number(offset),
            ints(size),
            ints(stride),
            b'\x89',
            call('collections.OrderedDict'),
        ),
    )


def pickled(value):
    """A state dict of one entry."""
    return b'\x80\x02}' + text('a') + value + b's.'


def archive(path, pickle_bytes):
    with zipfile.ZipFile(path, 'w') as opened:
        opened.writestr('a/data.pkl', pickle_bytes)
        opened.writestr('a/data/0', BASE.tobytes())
    return path


def test_hand_made_files_are_right_where_they_are_whole(tmp_path):
    """So that the refusals below are for the reason they name."""
    for value, expected in (
        (tensor(), BASE),
        (tensor(5, (2, 2), (6, 0)), [[5, 5], [11, 11]]),
        (tensor(23, (1, 1), (10**6, 10**6)), [[23]]),
        (call('torch._utils._rebuild_tensor', storage(), number(1), ints([2]), ints([1])), [1, 2]),
        (
            call('numpy.core.multiarray.scalar', call('numpy.dtype', text('i2')), b'U\x02\x01\x02'),
            513,
        ),  # Python 2
    ):
        np.testing.assert_array_equal(read(archive(tmp_path / 'a.pth', pickled(value)))['a'], expected)


RECONSTRUCT = call('numpy.core.multiarray._reconstruct')
F8 = call('numpy.dtype', text('f8'))
BIG = F8 + b'(K\x03' + text('>') + b'NNN' + number(-1) + number(-1) + b'K\x00tb'


def test_numpy_objects(tmp_path):
    raw = np.array([1.5, -2], '>f8').tobytes()
    value = RECONSTRUCT + b'(K\x01' + ints([2, 1]) + BIG + b'\x89U\x10' + raw + b'tb'
    np.testing.assert_array_equal(read(archive(tmp_path / 'a.pth', pickled(value)))['a'], [[1.5], [-2]])
    objects = {
        'a': np.array([None, 'x']),
        'b': np.datetime64(0, 's'),
        'c': np.zeros(2, 'i4,f4'),
        'd': np.int8(3),
    }
    for protocol in range(2, 6):
        found = read(archive(tmp_path / 'a.pth', pickle.dumps(objects, protocol)))
        assert found['a'].size == 0  # objects are not made
        assert found['c'].name == 'numpy.ndarray' if protocol == 5 else found['c'].size == 0
        assert found['b'].name == 'numpy.generic' and found['d'] == 3


def test_legacy_files_without_some_numbers(tmp_path):
    path, storage = (
        tmp_path / 'a.pth',
        lambda key: b'(' + text('storage') + name('torch.FloatStorage') + text(key),
    )
    head = b''.join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}))
    tree = pickled(tensor(0, (2,), (1,), storage('k') + text('cpu') + b'K\x02NtQ'))
    keys, numbers = pickle.dumps(['k'], 2), (2).to_bytes(8, 'little') + np.array([3, 4], np.float32).tobytes()
    path.write_bytes(head + tree + keys + numbers)
    np.testing.assert_array_equal(read(path)['a'], [3, 4])
    for rest, message in (
        (pickle.dumps([], 2), '1 storages are missing'),
        (keys + b'\x03' + numbers[1:], 'has 3 numbers, not 2'),
        (keys + numbers[:-1], 'not a complete torch file'),
        (pickle.dumps(['k', 'k'], 2) + numbers * 2, 'not a complete torch file'),
    ):
        path.write_bytes(head + tree + rest)
        with pytest.raises(DataError, match=message):
            read(path)


def test_a_changed_byte_is_found_by_the_checksum(tmp_path):
    path, data = tmp_path / 'a.pth', bytearray((GOLDENS / 'torch_zip.pth').read_bytes())
    data[data.find(BASE.tobytes()) + 9] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r'a.pth: is damaged \(checksum of torch_zip/data/\d+\): get it again'
    ):
        read(path)


NESTED = b')' + b'\x85' * 10**5
BAD = {
    'beyond_its_end': (tensor(1), 'reaches beyond its 24 numbers'),
    'beyond_by_stride': (tensor(0, (2, 2), (23, 1)), 'reaches beyond'),
    'beyond_by_far': (tensor(0, (2,), (2**62,)), 'reaches beyond'),
    'overflow': (tensor(0, (5, 2), (2**62, 1)), 'reaches beyond'),
    'before_its_start': (tensor(-1), 'offset -1'),
    'negative_stride': (tensor(23, (4, 6), (-6, -1)), 'strides'),
    'negative_size': (tensor(0, (-4, -6)), 'shape'),
    'other_rank': (tensor(0, (4, 6), (1,)), 'strides'),
    'expanded_without_end': (tensor(0, (10**9, 10**9), (0, 0)), 'more memory'),
    'expanded_often': (b'(' + tensor(0, (10**7,), (0,)) * 3 + b'l', 'more memory'),
    'longer_than_its_record': (tensor(numbers=storage(count=25)), 'not a complete torch file'),
    'absent_record': (tensor(numbers=storage(key='1')), "no item named 'a/data/1'"),
    'outside': (tensor(numbers=storage(key='../../a/data.pkl')), 'no item named'),
    'large_memo': (b'Nr\xff\xff\xff\x7f', None),
    'long_text': (b'X\xff\xff\xff\xff', 'expected 4294967295 bytes'),
    'longer_text': (b'\x8d' + b'\xff' * 8, 'not a complete torch file'),
    'copies': (text('x' * 10**5) + b'q\x01' + b'c_codecs\nencode\nh\x01\x85R' * 300, 'more memory'),
    'calls_a_number': (b'K\x01)R', 'not a complete torch file'),
    'calls_a_tensor': (tensor() + b')R', 'not a complete torch file'),
    'builds_an_array': (RECONSTRUCT + b'(K\x01' + ints([9]) + F8 + b'\x89U\x00tb', '0 bytes for an array'),
    'appends_to_a_tensor': (tensor() + b'Na', 'appends to a ndarray'),
    'unknown_opcode': (b'\xff', 'unknown'),
    'extension': (b'\x82\x01', 'opcode EXT1'),
    'no_end': (b'N' * 10 + b'00000000000000', 'not a complete torch file'),
}  # fmt: skip


@pytest.mark.parametrize('case', BAD)
def test_bad_pickles_are_refused(case, tmp_path):
    value, message = BAD[case]
    path = archive(tmp_path / 'a.pth', pickled(value))
    if message is None:
        assert read(path) == {'a': None}
    else:
        with pytest.raises(DataError, match=f'a.pth: .*{message}'):
            read(path)


def test_deep_and_endless_pickles(tmp_path):
    deep = b'\x80\x02' + NESTED + b'.'
    assert isinstance(read(archive(tmp_path / 'a.pth', deep)), tuple)
    keys = read(archive(tmp_path / 'a.pth', b'\x80\x02}' + NESTED + b'Ns.'))
    assert [type(key) for key in keys] == [Unread]  # to hash it would kill the process
    deep_key = b'(' + text('storage') + name('torch.FloatStorage') + NESTED + text('cpu') + b'K\x01tQ'
    with pytest.raises(DataError, match='a storage has a tuple as its key'):
        read(archive(tmp_path / 'a.pth', b'\x80\x02' + deep_key + b'.'))
    head = b''.join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}))
    for rest in (
        b'\x80\x02' + deep_key.replace(b'tQ', b'NtQ') + b'.',
        b'\x80\x02}.\x80\x02](' + NESTED + b'e.',
    ):
        (tmp_path / 'a.pth').write_bytes(head + rest)
        with pytest.raises(DataError, match='a storage has a tuple as its key'):
            read(tmp_path / 'a.pth')
    rebuild = name('torch._tensor._rebuild_from_type_v2')
    endless = b'\x80\x02' + rebuild + b'q\x01](h\x01Nh\x02Neq\x02R.'
    with pytest.raises(DataError, match='not a complete torch file'):
        read(archive(tmp_path / 'a.pth', endless))
    itself = b'\x80\x02' + rebuild + b'q\x01]q\x02(h\x01Nh\x02NeR.'
    with pytest.raises(DataError, match='not a complete torch file .*recursion'):
        read(archive(tmp_path / 'a.pth', itself))


HARMFUL = """
    os.system posix.system nt.system subprocess.Popen commands.getoutput builtins.eval builtins.exec
    builtins.compile builtins.open builtins.__import__ __builtin__.eval __builtin__.execfile runpy.run_path
    importlib.import_module pickle.loads cPickle.loads types.CodeType types.FunctionType ctypes.CDLL
    webbrowser.open pty.spawn shutil.rmtree socket.socket sys.exit code.interact os.path.join io.open
    multiprocessing.process.Process operator.attrgetter _posixsubprocess.fork_exec timeit.timeit pdb.run
""".split()


@pytest.mark.parametrize('full', HARMFUL)
def test_code_is_refused_by_name(full, tmp_path):
    path, proof = tmp_path / 'a.pth', tmp_path / 'proof'
    shown = (
        full.replace('__builtin__', 'builtins').replace('commands', 'subprocess').replace('cPickle', 'pickle')
    )
    for value in (
        call(full, text(f'touch {proof}')),
        text(full.rpartition('.')[0]) + text(full.rpartition('.')[2]) + b'\x93',
    ):
        with pytest.raises(
            DataError, match=f'a.pth: refused, because it uses {shown}, .*save only its state dict'
        ):
            read(archive(path, pickled(value)))
        path.write_bytes(pickled(value))  # where the first pickle of the older form stands
        with pytest.raises(DataError, match=f'refused, because it uses {shown}'):
            read(path)
    assert not proof.exists()


CALLED = []


class Recorder:
    def __new__(cls, *_):
        CALLED.append('new')
        return super().__new__(cls)

    def __setstate__(self, state):
        CALLED.append('setstate')


def test_objects_of_other_classes_are_not_made(tmp_path):
    made = Recorder()
    made.x = 1
    CALLED.clear()
    for protocol in range(2, 6):
        found = read(archive(tmp_path / 'a.pth', pickle.dumps({'a': made}, protocol)))
        assert found['a'].name == 'test_torch_files.Recorder'
    for full in (
        'argparse.Namespace',
        'pathlib.PosixPath',
        'builtins.getattr',
        'torch.hub.load',
        'numpy.load',
    ):
        value = call(full, text('a')) + b'}' + text('b') + b'Nsb'
        assert read(archive(tmp_path / 'a.pth', pickled(value)))['a'].name == full
    assert not CALLED
    # The state of a name is no way into what stands for it.
    before = dict(vars(Unread))
    value = name('torch._utils._rebuild_tensor_v2') + b'N}' + text('name') + text('os.system') + b's\x86b'
    read(archive(tmp_path / 'a.pth', pickled(value)))
    assert dict(vars(Unread)) == before


@pytest.mark.parametrize('form', FORMS)
def test_damaged_bytes_are_errors_or_other_numbers(form, tmp_path):
    """Nothing but a `DataError` comes out, whatever bytes change."""
    rng = np.random.default_rng(0)
    path, original = tmp_path / 'a.pth', (GOLDENS / f'torch_{form}.pth').read_bytes()
    with zipfile.ZipFile(GOLDENS / 'torch_zip.pth') as opened:
        entries = {entry: opened.read(entry) for entry in opened.namelist()}
    refused = 0
    for _ in range(300):
        if form == 'zip':  # the checksum of the archive would find it: damage the pickle below it
            data = bytearray(entries['torch_zip/data.pkl'])
        else:
            data = bytearray(original)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        if rng.random() < 0.2:
            del data[rng.integers(len(data)) :]
        if form == 'zip':
            with zipfile.ZipFile(path, 'w') as opened:
                for entry, content in (entries | {'torch_zip/data.pkl': bytes(data)}).items():
                    opened.writestr(entry, content)
        else:
            path.write_bytes(data)
        try:
            read(path)
        except DataError as error:
            assert str(path) in str(error)
            refused += 1
    assert 100 < refused < 300
    for length in range(0, len(original), 97):
        path.write_bytes(original[:length])
        with pytest.raises(DataError, match='is not a complete torch file'):
            read(path)


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path):
    path = archive(tmp_path / 'a.pth', pickled(tensor()))
    with zipfile.ZipFile(path, 'a', zipfile.ZIP_DEFLATED) as opened:
        opened.writestr('a/data/1', bytes(2**26))
    assert path.stat().st_size < 2**17
    with pytest.raises(DataError, match='far more memory'):
        read(path)


def refusal(path, content):
    torch.save(content, path)
    with pytest.raises(DataError) as caught:
        read_file(path)
    return str(caught.value)


@needs_torch
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_what_is_no_state_dict_is_named(tmp_path):
    path, eye = tmp_path / 'a.pth', torch.eye(3)
    for tensor, problem in (
        (eye.to_sparse(), 'is a sparse tensor: save it after .to_dense()'),
        (eye.to_sparse_csr(), 'is a sparse tensor'),
        (torch.quantize_per_tensor(eye, 0.1, 0, torch.qint8), 'is quantized: save the network as it was'),
        (torch.empty(3, device='meta'), 'is a meta tensor, without numbers'),
        (torch.nested.nested_tensor([eye, eye]), 'is a nested tensor'),
        (eye.to(torch.float8_e4m3fn), 'is of the type torch.float8_e4m3fn, which is not supported'),
        (eye.to(torch.complex64), 'holds complex numbers'),
        (torch.complex(eye, eye).conj(), 'holds complex numbers'),
        (None, 'is a NoneType, not a tensor'),
        ([1.0], 'is a list, not a tensor'),
    ):
        message = refusal(path, {'layer.weight': tensor, 'b': eye})
        assert f'a.pth: layer.weight {problem}' in message and len(message.splitlines()) == 1
    assert 'expanded from 1 numbers, and claims far more memory' in refusal(
        path, {'a': torch.ones(1).expand(10**5, 10**5)}
    )
    for content in (torch.nn.Conv2d(1, 1, 1), {'epoch': 1, 'model': torch.nn.Conv2d(1, 1, 1)}):
        message = refusal(path, content)
        assert 'holds an object of torch.nn.modules.conv.Conv2d, not a state dict' in message
        assert "['backbone'].state_dict()" in refusal(path, {'backbone': torch.nn.Conv2d(1, 1, 1)})
    assert 'holds a list' in refusal(path, [eye])
    assert 'holds no tensors, only epoch' in refusal(path, {'epoch': 1})
    torch.save({'a': torch.tensor(1e300, dtype=torch.float64), 'meta': [1]}, path)
    state, meta, *_ = read_file(path)
    assert state['a'].dtype == np.float32 and np.isinf(state['a']) and meta == {}


def write_safetensors(path, state):
    """Writes the format as its documentation says, without the package."""
    kinds = {
        'float32': 'F32',
        'int64': 'I64',
        'float16': 'F16',
        'uint8': 'U8',
        'bool': 'BOOL',
        'float64': 'F64',
    }
    header, data = {'__metadata__': {'format': 'pt'}}, b''
    for key, array in state.items():
        raw = np.ascontiguousarray(array).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[key] = {'dtype': kinds[array.dtype.name], 'shape': array.shape, 'data_offsets': offsets}
        data += raw
    header = json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, 'little') + header + data)
    return path


def test_safetensors(tmp_path):
    state = {key: array for key, array in STORED.items() if array.dtype != np.uint16}
    found = read(write_safetensors(tmp_path / 'a.safetensors', state))
    assert found.keys() == state.keys()
    for key, array in state.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)
    package = pytest.importorskip('safetensors.numpy')
    for key, array in package.load_file(tmp_path / 'a.safetensors').items():
        np.testing.assert_array_equal(found[key], array)
    kinds = 'float32 float64 float16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool'.split()
    rng = np.random.default_rng(0)
    state = {f'{kind}{i}': rng.normal(0, 9, (i, 3)).astype(kind) for i in range(3) for kind in kinds}
    package.save_file(state, tmp_path / 'b.safetensors', {'format': 'np'})
    found = read(tmp_path / 'b.safetensors')
    assert found.keys() == state.keys()
    for key, array in state.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)


@needs_torch
def test_bfloat16_in_safetensors(tmp_path):
    save_file = pytest.importorskip('safetensors.torch').save_file
    numbers = torch.randn(3, 5).bfloat16()
    save_file({'a': numbers}, tmp_path / 'a.safetensors')
    np.testing.assert_array_equal(read(tmp_path / 'a.safetensors')['a'], numbers.float().numpy())


def test_endings_do_not_matter(tmp_path):
    """What a file is, its first bytes tell."""
    state = network_state()
    written = write_safetensors(tmp_path / 'a.safetensors', state).read_bytes()
    plain = pickle.dumps(state, 4)
    stored = (GOLDENS / 'torch_zip.pth').read_bytes(), (GOLDENS / 'torch_legacy.pth').read_bytes()
    for name in ('a.pth', 'a.safetensors', 'a.bin'):
        for data in (written, *stored, *([] if name == 'a.safetensors' else [plain])):
            if data is stored[1] and name == 'a.safetensors':
                continue
            (tmp_path / name).write_bytes(data)
            found = read_file(tmp_path / name).state
            assert set(found) == set(state if data in (written, plain) else STORED)


OTHER_FILES = {
    b'version https://git-lfs.github.com/spec/v1': 'is a pointer of git-lfs, not the file: run git lfs pull',
    b'\n<!DOCTYPE html><html>': 'is a web page, not weights',
    b'\x1f\x8b\x08\x00': 'is compressed with gzip: unpack it',
    b'\x89HDF\r\n\x1a\n': 'is a file of HDF5',
    b'\x93NUMPY\x01\x00': 'is a file of NumPy',
}


@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors', 'a.pdparams'])
def test_other_files_are_named(name, tmp_path):
    for begin, message in OTHER_FILES.items():
        (tmp_path / name).write_bytes(begin + bytes(1000))
        with pytest.raises(DataError, match=f'{name}: {message}'):
            read(tmp_path / name)
    with open(tmp_path / name, 'wb') as file:
        np.savez(file, a=BASE)
    with pytest.raises(DataError, match=r'is a zip archive that torch did not write \(a.npy, '):
        read(tmp_path / name)


HEADERS = {
    'beyond': ({'a': {'dtype': 'F32', 'shape': [3], 'data_offsets': [0, 12]}}, 'smaller than requested'),
    'hole': ({'a': {'dtype': 'F32', 'shape': [1], 'data_offsets': [4, 8]}}, 'does not match'),
    'other_shape': ({'a': {'dtype': 'F32', 'shape': [3], 'data_offsets': [0, 8]}}, 'does not match'),
    'negative': ({'a': {'dtype': 'F32', 'shape': [-2, -1], 'data_offsets': [0, 8]}}, 'the shape'),
    'rest': ({'a': {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}}, 'have 4 bytes, the file 8'),
    'overlap': ({k: {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]} for k in 'ab'}, 'does not match'),
    'no_offsets': ({'a': {'dtype': 'F32', 'shape': [2]}}, 'data_offsets'),
    'no_dict': ([1], 'not a complete safetensors file'),
    'type': ({'a': {'dtype': 'F8_E5M2', 'shape': [8], 'data_offsets': [0, 8]}}, 'the type F8_E5M2'),
}  # fmt: skip


@pytest.mark.parametrize('case', HEADERS)
def test_bad_safetensors_are_refused(case, tmp_path):
    header, message = HEADERS[case]
    header = json.dumps(header).encode()
    path = tmp_path / 'a.safetensors'
    path.write_bytes(len(header).to_bytes(8, 'little') + header + bytes(8))
    with pytest.raises(DataError, match=f'a.safetensors: .*{message}'):
        read(path)
    for data in (b'', b'abc', (2**63).to_bytes(8, 'little'), (10**5).to_bytes(8, 'little') + b'[' * 10**5):
        path.write_bytes(data)
        with pytest.raises(DataError, match='not a complete safetensors file'):
            read(path)


def network_state():
    return below(golden('mmseg_ann_thin_r101'), 'state/')


def test_convert_is_a_function(tmp_path):
    path = write_safetensors(tmp_path / 'ann.safetensors', network_state())
    for wrong in (lambda: ann_jax.load(path), lambda: ann_jax.load(str(path))):
        with pytest.raises(
            ConfigError, match=r"is a torch file.*ann_jax.convert\('.*/ann.safetensors', '.*/ann'\)"
        ):
            wrong()
    converted = ann_jax.convert(str(path), str(tmp_path / 'ann'), classes='cityscapes', align_corners=True)
    assert converted.weights.classes[0] == 'road' and converted.weights.model['align_corners'] is True
    report = str(converted)
    assert 'decode_head.conv_seg.weight -> params/classifier/kernel' in report
    assert report.splitlines()[-1].startswith(f'{len(converted.conversion.used)} tensors converted (')
    assert ann_jax.load(tmp_path / 'ann').classes == converted.weights.classes
    dry = ann_jax.convert(path)
    assert len(dry.notes) == 3 and f'note: {dry.notes[0]}' in str(dry) and dry.weights.classes[0] == 'class 0'
    backbone = ann_jax.convert(path, part='backbone').weights
    assert set(backbone.variables['params']) == {'backbone'} and not backbone.classes
    for options in ({'part': 'head'}, {'output_stride': 2}, {'align_corners': 'true'}, {'classes': 'mars'}):
        with pytest.raises(
            ConfigError, match=next(iter(options.values())) if 'classes' in options else next(iter(options))
        ):
            ann_jax.convert(path, **options)
    with pytest.raises(ConfigError, match='exists'):
        ann_jax.convert(path, tmp_path / 'ann')
    with pytest.raises(DataError, match='no such file'):
        ann_jax.convert(tmp_path / 'absent.pth')


@needs_torch
@pytest.mark.parametrize('form', FORMS)
def test_checkpoints_as_mmsegmentation_writes_them(form, tmp_path):
    state = {key: torch.from_numpy(array) for key, array in network_state().items()}
    path = tmp_path / 'iter_160000.pth'
    palette = np.arange(57).reshape(19, 3)
    meta = {
        'CLASSES': [f'c{i}' for i in range(19)],
        'PALETTE': palette,
        'config': 'model = dict(decode_head=dict(align_corners=True))',
        'best': np.float64(0.7),
    }
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9).state_dict()
    torch.save({'meta': meta, 'state_dict': state, 'optimizer': optimizer}, path, **FORMS[form])
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    weights = ann_jax.convert(path).weights
    assert weights.classes[3] == 'c3' and weights.colors[3] == tuple(palette[3])
    assert weights.model['align_corners'] is True


def test_neither_torch_nor_safetensors_is_imported(tmp_path):
    path = write_safetensors(tmp_path / 'ann.safetensors', network_state())
    program = f"""
import sys
sys.modules['torch'] = sys.modules['safetensors'] = None  # importing them raises
import ann_jax
from ann_jax.weights.torch_files import read
ann_jax.convert({str(path)!r}, {str(tmp_path / 'ann')!r})
for form in {list(FORMS)}:
    assert read(__import__('pathlib').Path({str(GOLDENS)!r}, f'torch_{{form}}.pth'))['state_dict']
assert not [name for name in sys.modules if name.startswith(('torch.', 'safetensors.'))]
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'ann/model.json').is_file()


if __name__ == '__main__':  # writes the stored files
    for form, options in FORMS.items():
        write_stored(Path(__file__).parent / 'goldens' / f'torch_{form}.pth', **options)
