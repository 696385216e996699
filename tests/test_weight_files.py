"""Files of weights of any form are told apart by their content, and converted."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from reference import GOLDENS
from stored_weights import BASE, FORMS, STORED, needs_torch, network_state, torch, write_safetensors

import ann_jax
from ann_jax.errors import ConfigError, DataError
from ann_jax.weights.contents import read_file
from ann_jax.weights.torch_files import read


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
