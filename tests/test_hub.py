"""Weights on a hub: backbones as timm and transformers lay them out, and folders of this package."""

import hashlib
import json

import jax
import numpy as np
import pytest
from hub_server import Hub, serving
from small import small_folder
from test_convert import TIMM_D, TORCHVISION, TRANSFORMERS, backbone_target, filled, state_dict

import ann_jax
from ann_jax.errors import ConfigError, DataError
from ann_jax.models.resnet import ResNet
from ann_jax.tools.push_to_hub import main as push
from ann_jax.weights import safetensors
from ann_jax.weights.folder import load
from ann_jax.weights.hub import located
from ann_jax.weights.opening import open_network, open_weights

huggingface_hub = pytest.importorskip('huggingface_hub', reason='huggingface_hub speaks with the hub')


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub in place of the real one, and an empty cache."""
    hub = Hub()
    constants = pytest.importorskip('huggingface_hub.constants')
    with serving(hub) as address:
        monkeypatch.setattr(constants, 'ENDPOINT', address)
        template = address + '/{repo_id}/resolve/{revision}/{filename}'
        monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
        monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
        monkeypatch.setattr(constants, 'HF_HUB_DISABLE_PROGRESS_BARS', True)
        monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
        monkeypatch.setenv('HF_TOKEN', 'hf_test')
        yield hub


def backbone(tmp_path, depth=18, rules=TORCHVISION, prefix='', **options):
    """The bytes of a thin ResNet in a file of safetensors, and its variables."""
    module = ResNet(depth, 4, options.pop('stem_widths', (4,)), **options)
    variables = filled(backbone_target(module))

    rules = [(r'^backbone\.', ''), *rules]
    state = state_dict(variables, rules, prefix) | {'fc.weight': np.ones((5, 32), np.float32)}
    safetensors.write(tmp_path / 'x.safetensors', state, {'format': 'pt'})
    return (tmp_path / 'x.safetensors').read_bytes(), variables


TIMM = {
    'architecture': 'resnet18',
    'num_classes': 5,
    'pretrained_cfg': {'mean': [0.5] * 3, 'std': [0.25] * 3},
}


def same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_backbone_of_timm_in_one_word(hub, tmp_path, caplog):
    data, variables = backbone(tmp_path)
    commit = hub.put(
        'timm/resnet18.a1', {'model.safetensors': data, 'config.json': json.dumps(TIMM).encode()}
    )
    caplog.set_level('INFO')
    opened = open_weights('hf://timm/resnet18.a1')
    same(opened.variables, variables)
    assert opened.input == {'mean': (127.5,) * 3, 'std': (63.75,) * 3, 'bgr': False} and not opened.classes
    assert opened.source['hub'] == f'hf://timm/resnet18.a1@{commit}'
    assert opened.source['sha256'] == hashlib.sha256(data).hexdigest()
    with pytest.raises(ConfigError, match='a backbone alone, without classes'):
        open_network('hf://timm/resnet18.a1')
    converted = ann_jax.convert('hf://timm/resnet18.a1', tmp_path / 'out')
    assert load(tmp_path / 'out').source['hub'] == converted.weights.source['hub']
    # The cache serves what was fetched, without a word to the hub.
    asked = len(hub.asked)
    assert located(f'hf://timm/resnet18.a1@{commit}').name == commit
    assert len(hub.asked) <= asked + 1


def test_other_layouts_on_a_hub(hub, tmp_path):
    data, variables = backbone(tmp_path, rules=TRANSFORMERS, prefix='resnet.')
    said = {'config.json': b'{"architectures": ["ResNetForImageClassification"]}'}
    mean = {'preprocessor_config.json': b'{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}'}
    hub.put('microsoft/resnet-18', {'model.safetensors': data, **said, **mean})
    opened = open_weights('hf://microsoft/resnet-18')
    same(opened.variables, variables)
    assert opened.input['mean'] == (25.5, 51.0, 76.5)
    data, variables = backbone(tmp_path, rules=TIMM_D, stem_widths=(2, 2, 4), avg_down=True)
    hub.put('timm/resnet18d', {'model.safetensors': data, 'config.json': json.dumps(TIMM).encode()}, 'v1')
    opened = open_weights('hf://timm/resnet18d@v1')
    same(opened.variables, variables)
    assert opened.model['avg_down']
    hub.put('timm/resnetaa50', {'model.safetensors': data, 'config.json': b'{"architecture": "resnetaa50d"}'})
    with pytest.raises(DataError, match='is by its name resnetaa50'):
        open_weights('hf://timm/resnetaa50')


def test_a_folder_goes_to_a_hub_and_comes_back(hub, tmp_path, capsys, monkeypatch):
    saved = small_folder(tmp_path / 'mine')
    push([str(tmp_path / 'mine'), 'me/ann', '--license=apache-2.0', '--private'])
    files = hub.repositories['me/ann']['main']
    assert set(files) == {'model.json', 'weights.safetensors', 'README.md'}
    assert capsys.readouterr().out.startswith('written to hf://me/ann@')
    opened = open_weights('hf://me/ann')
    same(opened.variables, saved.variables)
    assert (opened.model, opened.input, opened.classes) == (saved.model, saved.input, saved.classes)
    assert (
        opened.source['hub'] == f'hf://me/ann@{hub.commit(files)}'
        and opened.source['license'] == 'apache-2.0'
    )
    with pytest.raises(ConfigError, match=r'is a folder: .*open it with ann_jax.load'):
        ann_jax.convert('hf://me/ann')
    segmenter = ann_jax.load('hf://me/ann')
    assert segmenter.classes == saved.classes
    # Offline, the cache is all there is.
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    asked = len(hub.asked)
    same(open_weights('hf://me/ann').variables, saved.variables)
    with pytest.raises(ConfigError, match='hf://me/other: not in the cache, and the hub is not reached'):
        open_weights('hf://me/other')
    assert len(hub.asked) == asked
    # A blob that has changed in the cache is noticed.
    arrays = (located('hf://me/ann') / 'weights.safetensors').resolve()
    arrays.write_bytes(arrays.read_bytes()[:-1] + b'x')
    with pytest.raises(DataError, match='weights.safetensors does not match its checksum'):
        open_weights('hf://me/ann')


def test_a_hub_that_cannot_be_written(hub, tmp_path, monkeypatch):
    small_folder(tmp_path / 'mine')
    for endpoint in ('http://127.0.0.1:9', 'http://'):  # where nobody listens
        monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', endpoint)
        with pytest.raises(SystemExit, match=r'^error: me/ann: cannot be written \(.*\): check the network'):
            push([str(tmp_path / 'mine'), 'me/ann'])


def test_what_a_hub_does_not_have(hub):
    hub.put('me/else', {'README.md': b''})
    for address, message in (
        ('hf://me/absent', 'hf://me/absent: is not there, or private'),
        ('hf://me/else@v9', 'has no revision v9'),
        ('hf://me/else', 'holds neither model.json of ann_jax nor config.json'),
        ('hf://me', 'must be hf://OWNER/NAME'),
        ('hf://a/b/c', 'must be hf://OWNER/NAME'),
    ):
        with pytest.raises(ConfigError, match=message):
            open_weights(address)


def test_a_hub_in_trouble(hub, tmp_path):
    hub.put('a/b', {'config.json': json.dumps(TIMM).encode(), 'model.safetensors': backbone(tmp_path)[0]})
    hub.status = 401
    with pytest.raises(ConfigError, match='hf://a/b: is not there, or private: .* hf auth login'):
        ann_jax.convert('hf://a/b')
    hub.status = 501
    with pytest.raises(ConfigError, match='hf://a/b: not in the cache, and the hub answers 501: try again'):
        ann_jax.convert('hf://a/b')
    hub.status, hub.cut = 200, True
    with pytest.raises(ConfigError, match='hf://a/b: cannot be fetched, try again: peer closed'):
        ann_jax.convert('hf://a/b')


def test_cards_are_those_of_a_hub(tmp_path):
    small_folder(tmp_path / 'a')
    card = huggingface_hub.ModelCard.load(tmp_path / 'a/README.md')
    said = card.data.to_dict()
    assert said['license'] == 'unknown' and said['library_name'] == 'ann_jax'
    assert said['pipeline_tag'] == 'image-segmentation' and said['metrics'] == ['mean_iou']
    assert 'semantic-segmentation' in said['tags']
    assert 'ann_jax.load(' in card.text
