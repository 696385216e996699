"""The state dict of a network is found in whatever training code wraps around it, and the report says so."""

import io
import pickle
import struct
import tarfile

import numpy as np
import pytest

import ann_jax
from ann_jax.errors import ConfigError, DataError
from ann_jax.weights import torch_files
from ann_jax.weights.layouts import Layout
from ann_jax.weights.recognize import recognize
from ann_jax.weights.state_dicts import find
from ann_jax.weights.sums import check, doubt
from ann_jax.weights.torch_state import from_torch

ONE, TWO = np.float32([1]), np.float32([2])
BACKBONE = ('conv1.weight', 'bn1.bias', 'layer1.0.conv1.weight', 'layer4.1.bn2.running_var')
ANN = (*(f'backbone.{key}' for key in BACKBONE), 'decode_head.conv_seg.weight')


def state(prefix='', value=ONE, keys=BACKBONE):
    return {f'{prefix}{key}': value for key in keys}


PREFIXES = [
    *('_orig_mod.', 'module.', 'model.', 'encoder.', 'module.encoder_q.', 'net.', 'backbone.'),
    *('backbone.body.', 'module._orig_mod.model.backbone.', 'resnet.', 'a.b.c.d.e.f.'),
]  # fmt: skip


@pytest.mark.parametrize('prefix', PREFIXES)
def test_prefixes_are_taken_off_and_told(prefix):
    found = find({'state_dict': state(prefix)})
    assert found.state == state() and not found.outside
    said = [note for note in found.notes if note.startswith('taken off the names')]
    assert {
        part for note in said for part in note.split(': ')[1].replace(', ', '').split('.') if part
    } == set(prefix.strip('.').split('.'))
    whole = find(state(prefix.removesuffix('backbone.'), keys=ANN))
    assert whole.state.keys() == set(ANN)


def test_names_within_a_network_are_unwrapped():
    wrapped = {
        key.replace('layer1.', 'layer1._orig_mod.').replace('conv1.', 'module.conv1.'): ONE for key in ANN
    }
    assert find(wrapped).state.keys() == set(ANN)


WRAPPERS = (
    'net ema params teacher student state_dict_ema model_state model_state_dict state_dict network model'
)


@pytest.mark.parametrize('wrapper', WRAPPERS.split())
def test_wrappers(wrapper):
    others = {'epoch': 3, 'optimizer': {'state': {0: {'momentum': TWO}}, 'groups': [TWO]}, 'queue': TWO}
    others['optimizer_2'] = {'momentum': state(value=TWO)}
    for content in ({wrapper: state(), **others}, {'all': {wrapper: state('module.')}, **others}):
        assert find(content).state == state()


AVERAGED = {
    'timm': ({'state_dict': state(), 'state_dict_ema': state(value=TWO)}, 'state_dict_ema'),
    'deit': ({'model': state(), 'model_ema': state('module.', TWO)}, 'model_ema'),
    'restoration': ({'params': state(), 'params_ema': state(value=TWO)}, 'params_ema'),
    'moco': (
        {'state_dict': state('module.encoder_q.') | state('module.encoder_k.', TWO) | {'module.queue': ONE}},
        "state_dict, below 'encoder_k.'",
    ),
    'moco3': (state('base_encoder.') | state('momentum_encoder.', TWO), "below 'momentum_encoder.'"),
    'dino': (
        {
            'student': state('module.backbone.'),
            'teacher': state('backbone.', TWO) | {'head.mlp.0.weight': ONE},
        },
        "teacher, below 'backbone.'",
    ),
    'mmcv': (state() | {f'ema_{key.replace(".", "_")}': TWO for key in BACKBONE}, 'the file itself, ema_*'),
    'capitals': ({'model': state(), 'EMA': state(value=TWO)}, 'EMA'),
    'avg': ({'net': state(), 'avg_model': state('module.', TWO)}, 'avg_model'),
    'lightning': ({'state_dict': state('model.') | state('model_ema.module.', TWO)}, "below 'model_ema.'"),
}


@pytest.mark.parametrize('name', AVERAGED)
def test_averages_are_named_and_taken_when_asked(name):
    content, told = AVERAGED[name]
    found = find(content)
    assert found.state == state()
    assert told in found.notes[0] and 'is taken with prefer=ema' in found.notes[0]
    assert {key: found.state[key] for key in BACKBONE} == state()
    averaged = find(content, 'ema')
    assert {key: averaged.state[key] for key in BACKBONE} == state(value=TWO)
    assert 'a moving average' in averaged.notes[0]


def test_mmengine_saves_the_average_in_the_place_of_the_weights():
    content = {'state_dict': state(value=TWO), 'ema_state_dict': {**state('module.'), 'steps': ONE}}
    for prefer in (None, 'ema'):
        found = find(content, prefer)
        assert found.state == state(value=TWO)
        assert 'state_dict is the moving average, as mmengine saves it' in found.notes[0]


def test_an_average_of_parameters_alone_takes_the_statistics_beside_it():
    parameters = [key for key in BACKBONE if 'running' not in key]
    content = {'model': state('net.'), 'ema': {'shadow': state(value=TWO, keys=parameters)}}
    found = find(content, 'ema')
    assert found.state == state(value=TWO) | {'layer4.1.bn2.running_var': ONE}
    assert 'no running statistics: they are those of the weights beside it' in found.notes[1]
    assert find(content).state == state()


def test_the_counter_of_an_average_is_left_out():
    content = {'model': state(), 'model_ema': state('module.', TWO) | {'n_averaged': np.array(3)}}
    assert find(content, 'ema').state == state(value=TWO) | {'n_averaged': np.array(3)}
    left = from_torch({'n_averaged': np.array(3)}, {}, Layout('', 'plain', '')).ignored
    assert left == {'n_averaged': 'counter of the moving average'}


def test_what_is_beside_a_backbone_is_left_out_by_name():
    found = find(state('encoder.') | {'decoder.up.weight': ONE, 'decoder.b': ONE, 'queue': ONE})
    assert found.outside == ['decoder.up.weight', 'decoder.b', 'queue']
    assert 'left out, because it is not below encoder.: decoder, queue' in found.notes
    torchvision = state('backbone.') | {'classifier.0.weight': ONE, 'aux_classifier.0.weight': ONE}
    assert find(torchvision).state == state()


@pytest.mark.parametrize(
    ('content', 'prefer', 'message'),
    [
        (state(), 'ema', 'prefer=ema: it holds no moving average'),
        (
            state() | {'module.conv1.weight': TWO},
            None,
            'conv1.weight twice, as conv1.weight and as module.conv1',
        ),
        (state('a.') | state('b.', TWO), None, r"several networks \(below 'a.'; below 'b.'\)"),
        ({'a': state(), 'b': state(value=TWO)}, None, r'several networks \(a; b\)'),
    ],
)
def test_what_is_not_clear_is_refused(content, prefer, message):
    with pytest.raises(DataError, match=message):
        find(content, prefer)
    assert find(state() | {'module.conv1.weight': ONE}).state == state()  # the same tensor twice


def test_only_known_preferences(tmp_path):
    with pytest.raises(ConfigError, match=r"prefer='average': must be one of None, 'ema'"):
        ann_jax.convert(tmp_path / 'a.pth', prefer='average')


def shapes(changes, last=256):
    """What tells relatives of ResNet-50 apart, as zeros."""
    tensors = {'conv1.weight': (64, 3, 7, 7), 'layer1.0.conv1.weight': (64, 64, 1, 1)}
    tensors |= {'layer1.0.conv2.weight': (64, 64, 3, 3), 'layer1.0.conv3.weight': (last, 64, 1, 1)}
    tensors |= {f'layer1.0.bn1.{name}': (64,) for name in ('weight', 'bias', 'running_mean', 'running_var')}
    return {key: np.zeros(shape) for key, shape in (tensors | changes).items() if shape}


@pytest.mark.parametrize(
    ('tensors', 'name'),
    [
        (shapes({'layer1.0.conv1.weight': (128, 64, 1, 1)}), 'wide_resnet'),
        (shapes({'layer1.0.conv2.weight': (64, 2, 3, 3)}), 'resnext'),
        (shapes({'layer1.0.se.fc1.weight': (4, 256, 1, 1)}), 'seresnet'),
        (shapes({'layer1.0.se_layer.conv1.conv.weight': (4, 256, 1, 1)}), 'seresnet'),
        (shapes({'layer1.0.conv2.weight': None, 'layer1.0.conv2.conv.weight': (64, 32, 3, 3)}), 'resnest'),
        (shapes({'layer1.0.convs.0.weight': (16, 16, 3, 3)}), 'res2net'),
        (shapes({'layer1.0.bn1.running_mean': None}), 'resnet50_gn'),
        (shapes({'attnpool.c_proj.bias': (64,)}), 'CLIP'),
        (shapes({'maxpool.0.weight': (64, 64, 3, 3)}), 'resnetrs'),
        (shapes({'conv1.weight': None, 'layer1.0.se_module.fc1.weight': (4, 256, 1, 1)}), 'seresnet'),
    ],
)  # fmt: skip
def test_relatives_are_refused_in_one_line(tensors, name):
    with pytest.raises(DataError, match=f'another network: it .*{name}.*Supported are') as caught:
        recognize(tensors)
    assert len(str(caught.value).splitlines()) == 1


# Checksums.


def named(tmp_path, name, content=b'ann'):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_digits_in_names(tmp_path):
    import hashlib

    sums = {kind: hashlib.new(kind, b'ann').hexdigest() for kind in ('sha256', 'sha1', 'md5')}
    good = [
        *(f'a-{digits[:length]}.pth' for digits in sums.values() for length in (8, 12, 32)),
        *('a-20251126.pth', 'a-26112025.safetensors', 'iter-1732579200.pth', 'a-0123abc.pth', 'deadbeef.pth'),
        f'a-{sums["sha256"][:8]}.pth.tar',
    ]
    for name in good:
        assert check(named(tmp_path, name)) == sums['sha256']
    for name in good:
        assert not doubt(tmp_path / name)
    for length in (32, 40):  # of a commit, or of the file before it was damaged
        other = named(tmp_path, f'a-{"0123456789abcdef" * 2}{"01234567"[: length - 32]}.pth')
        assert check(other) == sums['sha256'] and 'if it should be, the file is damaged' in doubt(other)
    for name in ('a-0123abcd.pth', 'a-0123abcd.pth.tar', 'a-99999999.pth', 'a-20251399.pth'):
        with pytest.raises(DataError, match='its name promises a checksum .* or rename it'):
            check(named(tmp_path, name))


def test_sums_beside_a_file(tmp_path):
    import hashlib

    path, digest = named(tmp_path, 'a.pth'), hashlib.sha256(b'ann').hexdigest()
    for name in ('a.pth.sha256', 'a.sha256'):
        beside = tmp_path / name
        for text in (
            f'{digest}  a.pth\n',
            digest.upper(),
            f'{"0" * 64} *b.pth\n{digest} *a.pth\n',
            f'a = {digest}',
        ):
            beside.write_text(text)
            assert check(path) == digest
        for text, message in ((f'{"0" * 64}  a.pth', f'but {name} says 00000000'), ('x', 'holds no SHA-256')):
            beside.write_text(text)
            with pytest.raises(DataError, match=message):
                check(path)
        beside.unlink()


def test_a_hub_calls_its_files_by_their_sums(tmp_path):
    blobs = tmp_path / 'blobs'
    blobs.mkdir()
    (tmp_path / 'model.safetensors').symlink_to(named(blobs, 'f' * 64))
    with pytest.raises(DataError, match='is damaged, its hub says ffffffff: delete'):
        check(tmp_path / 'model.safetensors')


# Files that need torch to be read.


def tar(path, entries):
    with tarfile.open(path, 'w') as archive:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_the_tar_form_of_early_torch_gets_a_cure_that_works(tmp_path):
    tar(tmp_path / 'a.pth', {'b.pth': b''})
    with pytest.raises(DataError, match=r'is a tar archive \(b.pth, ...\): unpack it'):
        ann_jax.convert(tmp_path / 'a.pth')
    torch = pytest.importorskip('torch', reason='carries out the cure')

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return '2' if value is Ellipsis else None

    numbers, tree = np.float32([1, 2, 3]), io.BytesIO()
    Pickler(tree, 2).dump({'conv1.weight': ...})
    dumps = lambda *values: b''.join(pickle.dumps(value, 2) for value in values)
    storages = (
        dumps(1, ('1', 'cpu', torch.FloatStorage)) + struct.pack('<q', 3) + numbers.tobytes() + dumps([])
    )
    tensors = dumps(1, (2, '1', torch.FloatTensor)) + struct.pack('<iiqqq', 1, 0, 3, 1, 0)
    tar(tmp_path / 'a.pth', {'storages': storages, 'tensors': tensors, 'pickle': tree.getvalue()})
    with pytest.raises(DataError, match='is of the tar form of early torch') as caught:
        ann_jax.convert(tmp_path / 'a.pth')
    exec(str(caught.value).split('python -c "')[1].removesuffix('"'))
    np.testing.assert_array_equal(torch_files.read(tmp_path / 'a_state.pth')['conv1.weight'], numbers)


@pytest.mark.filterwarnings('ignore')
def test_programs_and_modules_get_a_cure_that_works(tmp_path, monkeypatch):
    torch = pytest.importorskip('torch', reason='writes the files')
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1))
    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(module), 'script.pt')
    torch.save(module, 'module.pt')
    torch.save({'epoch': 1, 'model': module}, 'wrapped.pt')
    for name, kind in (
        ('script', 'a TorchScript program'),
        ('module', 'an object of'),
        ('wrapped', 'an object of'),
    ):
        with pytest.raises(DataError, match=f'holds {kind}') as caught:
            ann_jax.convert(f'{name}.pt')
        code = str(caught.value).split('python -c "')[1].removesuffix('"')
        exec(code)
        assert torch.load(f'{name}_state.pth', weights_only=True).keys() == module.state_dict().keys()


def test_views_whose_numbers_are_not_those_stored(tmp_path):
    torch = pytest.importorskip('torch', reason='writes the file')
    numbers = torch.complex(torch.arange(3.0), torch.arange(3.0) + 1)
    torch.save({'neg': numbers.conj().imag, 'expanded': torch.ones(1).expand(2, 3)}, tmp_path / 'a.pth')
    torch.save({'conj': numbers.conj()}, tmp_path / 'b.pth')
    found = torch_files.read(tmp_path / 'a.pth') | torch_files.read(tmp_path / 'b.pth')
    np.testing.assert_array_equal(found['neg'], [-1, -2, -3])
    np.testing.assert_array_equal(found['expanded'], np.ones((2, 3)))
    np.testing.assert_array_equal(found['conj'], [-1j, 1 - 2j, 2 - 3j])
