"""What files say of their weights is kept: exported and converted again, a network is the same network."""

import functools
import json
import pickle
from dataclasses import replace

import jax
import numpy as np
import pytest
from reference import GOLDENS

import ann_jax
from ann_jax.errors import DataError
from ann_jax.models.initializers import shape_variables
from ann_jax.models.resnet import _blocks
from ann_jax.models.settings import network
from ann_jax.tools.export_checkpoint import main as export
from ann_jax.weights import mmseg_config, safetensors
from ann_jax.weights.contents import read_file
from ann_jax.weights.converter import convert_state
from ann_jax.weights.descriptions import read_meta
from ann_jax.weights.folder import Weights, save
from ann_jax.weights.layouts import EXPORTS
from ann_jax.weights.opening import open_weights

MODEL = {
    'depth': 18, 'width': 4, 'stem_widths': (2, 2, 4), 'output_stride': 8, 'multi_grid': (1, 1, 1),
    'contract_dilation': True, 'ceil_pool': False, 'avg_down': False, 'dilate_second_conv': False,
    'variant': 'full', 'fuse_stages': (4,), 'sampling': 'average', 'sizes': (1, 3), 'share': 'query_key',
    'out_norm': False, 'key_channels': 4, 'head_channels': 8, 'aux_channels': 4, 'conv_bias': True,
    'align_corners': False, 'decoder': 'none', 'decoder_channels': 256,
}  # fmt: skip
CHOICES = {
    'output_stride': (4, 8, 16, 32),
    'multi_grid': ((1, 1, 1), (1, 2, 4), (2, 2, 2)),
    'contract_dilation': (True, False),
    'ceil_pool': (True, False),
    'align_corners': (True, False),
    'sizes': ((1, 3, 6, 8), (1, 2), (4,)),
}
# Networks whose tensors differ from the first, in what layouts can have.
OTHERS = {
    'mmsegmentation': {'conv_bias': False, 'fuse_stages': (3,), 'avg_down': True},
    'authors': {'aux_channels': 0, 'dilate_second_conv': True, 'stem_widths': (4,), 'fuse_stages': (2, 4)},
    'paddleseg': {'depth': 50, 'avg_down': True},
    'sssegmentation': {'conv_bias': False, 'aux_channels': 0},
}
# What a layout always has.
FIXED = {
    'paddleseg': {'contract_dilation': False, 'ceil_pool': False},
    'sssegmentation': {'ceil_pool': False},
}


@functools.cache
def variables_of(layout, channels=3):
    rng = np.random.default_rng(0)
    target = shape_variables(network(MODEL | OTHERS[layout], 3, in_channels=channels))
    variables = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), target)
    if layout == 'sssegmentation':  # it has no such biases
        for block in ('fusion', 'context'):
            attention = variables['params'][block]['attention_0']
            attention['value']['bias'][:] = attention['out']['bias'][:] = 0
    return variables


def drawn(layout, seed):
    """Weights of any settings that a layout takes, with any input and classes."""
    rng = np.random.default_rng(seed)
    pick = lambda values: values[rng.integers(len(values))]
    model = MODEL | OTHERS[layout] | {key: pick(values) for key, values in CHOICES.items()}
    normalization = {
        'mean': tuple(map(float, rng.uniform(80, 140, 3))),
        'std': tuple(map(float, rng.uniform(1, 60, 3))),
        'bgr': bool(rng.integers(2)),
    }
    colors = tuple(tuple(map(int, rng.integers(0, 256, 3))) for _ in range(3))
    names = ('road', 'sky', 'tree é')
    return Weights(variables_of(layout), model | FIXED.get(layout, {}), normalization, names, colors)


ENDINGS = [
    (layout, 'pdparams' if (layout, ending) == ('paddleseg', 'pth') else ending)
    for layout in EXPORTS
    for ending in ('pth', 'safetensors')
]


@pytest.mark.parametrize(('layout', 'ending'), ENDINGS)
def test_files_say_every_setting(layout, ending, tmp_path, capsys):
    if ending == 'pth':
        pytest.importorskip('torch', reason='writes .pth')
    for seed in range(2):
        weights, out = drawn(layout, seed), tmp_path / f'{seed}.{ending}'
        save(tmp_path / str(seed), weights)
        export([str(tmp_path / str(seed)), '--layout', layout, '--out', str(out)])
        facts = read_meta(read_file(out).meta)
        assert {key: facts[key] for key in CHOICES} == {key: weights.model[key] for key in CHOICES}
        assert {key: facts[key] for key in weights.input} == weights.input
        assert (tuple(facts['classes']), facts['colors']) == (weights.classes, weights.colors)
        printed = capsys.readouterr().out
        if layout != 'paddleseg':
            ceil = layout == 'authors'
            assert 'always computes with' in printed or weights.model['ceil_pool'] == ceil


@pytest.mark.parametrize('layout', EXPORTS)
def test_a_round_trip_gives_the_same_network(layout, tmp_path):
    weights = drawn(layout, 5)
    save(tmp_path / 'a', weights)
    out = tmp_path / ('a.pdparams' if layout == 'paddleseg' else 'a.safetensors')
    export([str(tmp_path / 'a'), '--layout', layout, '--out', str(out)])
    back = ann_jax.convert(out, tmp_path / 'b').weights
    for name in ('model', 'input', 'classes', 'colors'):
        assert getattr(back, name) == getattr(weights, name), name
    jax.tree.map(np.testing.assert_array_equal, back.variables, weights.variables)
    loaded = open_weights(tmp_path / 'b')
    assert (loaded.model, loaded.input) == (weights.model, weights.input)


@pytest.mark.parametrize('layout', EXPORTS)
def test_files_say_how_images_are_read(layout, tmp_path):
    weights = replace(
        drawn(layout, 5),
        variables=variables_of(layout, 4),
        input={'mean': (1.0, 2.0, 3.0), 'std': (4.0, 5.0, 6.0), 'bgr': False},
        images={'image_range': '0,4095', 'bands': '4,3,2,1'},
    )
    save(tmp_path / 'a', weights)
    out = tmp_path / ('a.pdparams' if layout == 'paddleseg' else 'a.safetensors')
    export([str(tmp_path / 'a'), '--layout', layout, '--out', str(out)])
    back = ann_jax.convert(out).weights
    assert back.images == weights.images and back.in_channels == 4
    jax.tree.map(np.testing.assert_array_equal, back.variables, weights.variables)


def test_a_description_beside_a_file_is_of_that_file(tmp_path, capsys):
    save(tmp_path / 'a', drawn('paddleseg', 1))
    arguments = [str(tmp_path / 'a'), '--layout=paddleseg', '--out', str(tmp_path / 'x.pdparams')]
    export(arguments)
    assert f'{tmp_path / "x.json"} says what tensors do not: keep it beside' in capsys.readouterr().out
    (tmp_path / 'x.pdparams').rename(tmp_path / 'y.pdparams')
    with pytest.raises(SystemExit, match=r'x.json exists'):
        export(arguments)
    state = pickle.loads((tmp_path / 'y.pdparams').read_bytes())  # this one is the project's own
    (tmp_path / 'x.pdparams').write_bytes(pickle.dumps(state, 2))
    with pytest.raises(DataError, match=r'x.json describes another file than x.pdparams, .*or remove'):
        ann_jax.convert(tmp_path / 'x.pdparams')
    alone = ann_jax.convert(tmp_path / 'y.pdparams')
    assert 'output_stride is 8, because the file does not say' in str(alone)


THEIRS = 'output_stride', 'multi_grid', 'contract_dilation', 'sizes', 'align_corners'


@pytest.mark.parametrize('seed', range(8))
def test_mmsegmentation_and_this_package_read_the_same_config(seed):
    """Its rules by definition, on what running the text gives."""
    rng = np.random.default_rng(seed)
    model = MODEL | {key: values[rng.integers(len(values))] for key, values in CHOICES.items()}
    model['depth'] = (18, 50)[seed % 2]
    normalization = {'mean': (1.5, 2.0, 3.0), 'std': (4.0, 5.0, 6.5), 'bgr': bool(seed % 2)}
    text = mmseg_config.write(model, normalization, 3, (97, 65))
    names = {}
    exec(text, names)
    backbone, head = names['model']['backbone'], names['model']['decode_head']
    strides, dilations = {
        4: ((1, 1, 1, 1), (1, 2, 4, 8)),
        8: ((1, 2, 1, 1), (1, 1, 2, 4)),
        16: ((1, 2, 2, 1), (1, 1, 1, 2)),
        32: ((1, 2, 2, 2), (1, 1, 1, 1)),
    }[model['output_stride']]
    assert (backbone['strides'], backbone['dilations']) == (strides, dilations)
    # mmseg's ResLayer: dilations of the first convolutions of the last stage.
    rate, count = backbone['dilations'][-1], {18: 2, 50: 3}[model['depth']]
    grid = backbone.get('multi_grid')
    contracted = rate // 2 if rate > 1 and backbone['contract_dilation'] else rate
    theirs = [contracted if grid is None else grid[0]] + [grid[i] if grid else rate for i in range(1, count)]
    module = network(model, 3).backbone
    assert theirs == [block.first_dilation for block in _blocks(module, 4)]
    assert head['align_corners'] == model['align_corners'] and head['key_pool_scales'] == model['sizes']
    assert names['model']['data_preprocessor']['bgr_to_rgb'] is not normalization['bgr']
    facts = read_meta({'cfg': text})
    assert {key: facts[key] for key in THEIRS} == {
        key: model[key][:count] if key == 'multi_grid' and grid else model[key] for key in THEIRS
    }
    assert {key: facts[key] for key in normalization} == normalization and facts['crop'] == (97, 65)


def stage(**backbone):
    return f'model = {dict(backbone={"type": "ResNetV1c", "depth": 50, **backbone})!r}'


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        (stage(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
         {'output_stride': 16, 'contract_dilation': False}),
        (stage(contract_dilation=True), {'output_stride': 32, 'contract_dilation': True}),
        (stage(strides=[1, 2, 1, 1], dilations=[1, 1, 2, 4]), {'output_stride': 8}),
        ('s = (1, 2, 1, 1)\nmodel = dict(backbone=dict(strides=s, dilations=(1, 1, 2, 4)))',
         {'output_stride': 8}),
        ('model = dict(decode_head=dict(type="ANNHead"))', {'align_corners': False}),
        ('img_norm_cfg = dict(mean=[1, 2, 3], std=[4, 5, 6], to_rgb=False)', {'bgr': True, 'std': (4, 5, 6)}),
        ('p = [dict(type="Normalize", mean=[1, 2, 3], std=[4, 5, 6])]', {'bgr': False, 'mean': (1, 2, 3)}),
        ('data_preprocessor = dict(mean=[1, 2, 3], std=[4, 5, 6])', {'bgr': True}),
        ('data_preprocessor = dict(mean=[1, 2, 3], std=[4, 5, 6], to_rgb=True)', {'bgr': False}),
        ('/x/a.py\n\nmodel = dict(decode_head=dict(align_corners=True))', {'align_corners': True}),
        ('x = print("run")\nmodel = dict(test_cfg=dict(mode="slide", crop_size=(9, 8), stride=(6, 5)))',
         {'test': {'crop': (9, 8), 'stride': (6, 5)}}),
    ],
)  # fmt: skip
def test_configs_as_they_are_found(text, expected, capsys):
    facts = read_meta({'config': text})
    assert {key: facts[key] for key in expected} == expected
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (stage(strides=(1, 2, 1, 1), dilations=(1, 1, 1, 1)), r'strides=\(1, 2, 1, 1\) with dilations='),
        (stage(style='caffe'), "style='caffe' puts strides into 1x1"),
        (
            stage(multi_grid=(1, 2, 4), strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
            'multi_grid=.* cannot be',
        ),
        ('model = dict(decode_head=dict(query_scales=(1, 2)))', 'query_scales'),
        ("norm = dict(type='BN', eps=0.001)\nmodel = dict(backbone=dict(norm_cfg=norm))", 'eps=0.001'),
        ("model = dict(decode_head=[dict(act_cfg=dict(type='GELU'))])", 'act_cfg=.*GELU.*: only ReLU'),
        ('model = dict(auxiliary_head=dict(act_cfg=None))', 'act_cfg=None: only ReLU'),
        ('model = dict(decode_head=dict(align_corners=f()))', 'align_corners in its config is not a plain'),
        ('model = dict(', 'its config is not Python'),
    ],
)
def test_configs_of_other_networks_are_refused(text, message):
    state, _ = read_file(GOLDENS / 'mmseg_ann_thin_r18.pth')[:2]
    with pytest.raises(DataError, match=f'what is said of it cannot be used .*{message}'):
        convert_state(state, {'cfg': text}, name='')


@pytest.mark.parametrize(
    ('said', 'message'),
    [
        ({'cfg': 'model = dict(decode_head=dict(key_pool_scales=(0,)))'}, 'model.sizes=.*: must be'),
        (
            {'cfg': 'model = dict(data_preprocessor=dict(mean=[1, 2, 3], std=[0, 1, 1]))'},
            'input.std=.*: must be',
        ),
        ({'PALETTE': [[0, 0, 256]] * 19}, r'what is said .*palette has \[0, 0, 256\], which are not three'),
        ({'CLASSES': ['road', 'sky']}, 'names 2 classes, but its classifier has 19 outputs: give --classes'),
    ],
)
def test_no_folder_is_written_that_could_not_be_opened(said, message, tmp_path):
    state, _ = read_file(GOLDENS / 'mmseg_ann_thin_r18.pth')[:2]
    path = tmp_path / 'a.pth'
    path.write_bytes(pickle.dumps({'state_dict': state, 'meta': said}, 4))
    with pytest.raises(DataError, match=f'a.pth: {message}'):
        ann_jax.convert(path, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_the_stride_of_a_config_is_that_of_the_network():
    state, _ = read_file(GOLDENS / 'mmseg_ann_thin_r18.pth')[:2]
    meta = {'cfg': stage(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))}
    assert convert_state(state, meta, name='').weights.model['output_stride'] == 16
    assert convert_state(state, meta, name='', output_stride=8).weights.model['output_stride'] == 8
    assert convert_state(state, {}, name='').weights.model['output_stride'] == 8


def test_configs_of_hubs():
    timm = {
        'architecture': 'resnet50',
        'pretrained_cfg': {'mean': [0.485, 0.456, 0.406], 'std': [0.5, 0.5, 1]},
    }
    assert read_meta(timm) == {'mean': (123.675, 116.28, 103.53), 'std': (127.5, 127.5, 255.0), 'bgr': False}
    transformers = {'architectures': ['ResNetModel'], 'image_mean': [0.5] * 3, 'image_std': [0.25] * 3}
    assert read_meta(transformers)['std'] == (63.75,) * 3
    assert not read_meta({'downsample_in_first_stage': False, 'hidden_act': 'relu'})
    for key, value in (
        ('downsample_in_bottleneck', True),
        ('downsample_in_first_stage', True),
        ('hidden_act', 'gelu'),
    ):
        with pytest.raises(ValueError, match=f'{key}={value}'):
            read_meta({key: value})


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('resnetaa50_a1h-4cf422b3.pth', {}),
        ('resnetblur50-84f4748f.pth', {}),
        ('resnet50_caffe-788b5fa3.pth', {}),
        ('resnet101_msra-6cc46731.pth', {}),
        ('model.safetensors', {'architecture': 'resnetaa50d'}),
        (
            'model.safetensors',
            {'architecture': 'x', 'pretrained_cfg': {'hf_hub_id': 'timm/resnetblur101d.x'}},
        ),
    ],
)
def test_networks_with_the_tensors_of_a_resnet_are_told_by_their_names(name, said):
    with pytest.raises(
        DataError, match=r'is by its name .*resnet.*, which (filters where it|has its) strides'
    ):
        convert_state({}, said, name=name)


def hub_file(folder, name='model.safetensors', **config):
    """A file of no network, and a config.json beside it."""
    folder.mkdir(exist_ok=True)
    safetensors.write(folder / name, {'a': np.zeros(1, np.float32)})
    (folder / 'config.json').write_text(json.dumps(config))
    return folder / name


def test_a_config_beside_a_file_is_that_of_the_file(tmp_path):
    said = {'architecture': 'resnetaa50', 'pretrained_cfg': {'mean': [0.5] * 3}}
    for name in ('model.safetensors', 'alone.safetensors'):
        assert read_file(hub_file(tmp_path / name, name, **said)).meta['architecture'] == 'resnetaa50'
    hub_file(tmp_path / 'many', 'x.safetensors', **said)
    assert 'architecture' not in read_file(hub_file(tmp_path / 'many', 'y.safetensors', **said)).meta
    assert 'seed' not in read_file(hub_file(tmp_path / 'run', seed=1)).meta  # the config of a run
    (tmp_path / 'run/model.json').write_text('{}\n{}')  # a log
    read_file(tmp_path / 'run/model.safetensors')
    hub_file(tmp_path / 'bad')
    (tmp_path / 'bad/config.json').write_text('{')
    with pytest.raises(DataError, match='config.json cannot be read .*restore or remove it'):
        read_file(tmp_path / 'bad/model.safetensors')
