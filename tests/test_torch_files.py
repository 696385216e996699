"""Files of torch are read without it, as it reads them."""

import collections
import zipfile

import numpy as np
import pytest
from reference import GOLDENS
from stored_weights import BASE, FORMS, STORED, check_stored, needs_torch, torch, write_stored

from ann_jax.errors import DataError
from ann_jax.weights.contents import read_file
from ann_jax.weights.torch_files import read


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


def test_a_changed_byte_is_found_by_the_checksum(tmp_path):
    path, data = tmp_path / 'a.pth', bytearray((GOLDENS / 'torch_zip.pth').read_bytes())
    data[data.find(BASE.tobytes()) + 9] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r'a.pth: is damaged \(checksum of torch_zip/data/\d+\): get it again'
    ):
        read(path)


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
