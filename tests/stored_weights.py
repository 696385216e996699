"""Weights as torch and safetensors write them, and what the stored files in goldens/ hold."""

import collections
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from reference import below, golden

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


def network_state():
    return below(golden('mmseg_ann_thin_r101'), 'state/')


if __name__ == '__main__':  # writes the stored files
    for form, options in FORMS.items():
        write_stored(Path(__file__).parent / 'goldens' / f'torch_{form}.pth', **options)
