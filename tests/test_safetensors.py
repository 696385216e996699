"""Files of safetensors are read without the package, as it reads them."""

import json

import numpy as np
import pytest
from stored_weights import STORED, needs_torch, torch, write_safetensors

from ann_jax.errors import DataError
from ann_jax.weights.torch_files import read


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
