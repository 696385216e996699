"""Pickles of torch made by hand: those that are whole are read, and no other does harm."""

import pickle
import zipfile

import numpy as np
import pytest
from stored_weights import BASE

from ann_jax.errors import DataError
from ann_jax.weights.pickles import Unread
from ann_jax.weights.torch_files import read

# Opcodes of protocol 2.


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
        assert found['a'].name == f'{__name__}.Recorder'
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


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path):
    path = archive(tmp_path / 'a.pth', pickled(tensor()))
    with zipfile.ZipFile(path, 'a', zipfile.ZIP_DEFLATED) as opened:
        opened.writestr('a/data/1', bytes(2**26))
    assert path.stat().st_size < 2**17
    with pytest.raises(DataError, match='far more memory'):
        read(path)
