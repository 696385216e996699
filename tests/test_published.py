"""Networks that others publish: converted from their files, they give the numbers of their own code."""

import functools
import json
import os
import pickle

import jax
import numpy as np
import pytest
from reference import GOLDENS, assert_close, golden, nhwc, normal, quick, random_variables
from test_main import TINY, run  # noqa: F401

import ann_jax
from ann_jax.data.scene_objects import CLASSES, COLORS
from ann_jax.errors import ConfigError, DataError
from ann_jax.models.fold import fold
from ann_jax.models.settings import BACKBONE_FACTS, OPTIONAL, network
from ann_jax.tools.export_checkpoint import main as export
from ann_jax.weights.contents import read_file
from ann_jax.weights.converter import convert_state
from ann_jax.weights.folder import Weights, save
from ann_jax.weights.inputs import AUTHORS_BGR, IMAGENET_RGB, PADDLE_RGB
from ann_jax.weights.opening import open_weights
from ann_jax.weights.torch_state import to_torch
from configs import scenes

PADDLE = 'paddleseg_ann_thin_r50vd.pdparams'
# File -> what belongs to the weights beside them.
FILES = {
    PADDLE: {
        'layout': "PaddleSeg's ANN on a ResNet-D (deep stem, paddleseg spelling)",
        'input': PADDLE_RGB,
        'depth': 50,
        'ceil_pool': False,
        'avg_down': True,
        'contract_dilation': False,
        'aux_channels': 32,
        'conv_bias': True,
    },
    'sssegmentation_ann_thin_r50.pth': {
        'aux_channels': 32,
        'layout': "sssegmentation's ANNNet on a ResNet (deep stem, mmsegmentation spelling)",
        'input': IMAGENET_RGB,
        'depth': 50,
        'ceil_pool': False,
        'avg_down': False,
        'contract_dilation': True,
        'conv_bias': False,
    },
    'mmseg_ann_thin_r18.pth': {
        'layout': "mmsegmentation's ANNHead on a ResNet (deep stem, mmsegmentation spelling)",
        'input': IMAGENET_RGB,
        'depth': 18,
        'ceil_pool': False,
        'avg_down': False,
        'contract_dilation': True,
        'dilate_second_conv': False,
        'aux_channels': 16,
        'conv_bias': False,
    },
    'authors_ann_thin_r50.pth': {
        'layout': "the authors' ANN on a ResNet (deep stem, prefixed spelling)",
        'input': AUTHORS_BGR,
        'depth': 50,
        'ceil_pool': True,
        'avg_down': False,
        'contract_dilation': True,
        'dilate_second_conv': True,
        'aux_channels': 32,
        'conv_bias': True,
    },
}


@functools.cache
def converted(file):
    return ann_jax.convert(GOLDENS / file)


def logits(weights, image, **options):
    """Logits, and the stages of the backbone."""
    model = weights.network()
    captures = lambda module, _: module.name == 'backbone'
    apply = functools.partial(model.apply, capture_intermediates=captures, **options)
    result, captured = quick(apply)(weights.variables, nhwc(image))
    return result, captured['intermediates']['backbone']['__call__'][0]


@pytest.mark.parametrize('file', FILES)
def test_logits_are_those_of_the_source(file):
    weights, arrays = converted(file).weights, golden(file.split('.')[0])
    for part in ('', 'even/'):
        result, stages = logits(weights, arrays[f'{part}input'])
        assert_close(stages.stage4.array, nhwc(arrays[f'{part}stage4']))
        assert_close(stages.stage5.array, nhwc(arrays[f'{part}stage5']))
        assert_close(result.main, nhwc(arrays[f'{part}decode_logits']))
        assert_close(result.auxiliary, nhwc(arrays[f'{part}aux_logits']))
    full = logits(weights, arrays['input'], full_size=True)[0].main
    assert_close(full[:1, ..., :4], nhwc(arrays['full_logits']))


@pytest.mark.parametrize('file', FILES)
def test_facts_belong_to_the_weights(file, tmp_path):
    conversion = ann_jax.convert(GOLDENS / file, tmp_path / 'ann')
    facts = dict(FILES[file])
    weights = conversion.weights
    assert weights.source['layout'] == facts.pop('layout') and weights.input == facts.pop('input')
    facts |= {'align_corners': bool(golden(file.split('.')[0])['align_corners'])}
    assert {key: weights.model[key] for key in facts} == facts
    ignored = {reason.split(' of ')[0] for reason in conversion.conversion.ignored.values()}
    assert ignored <= {'step counter', 'copy'}
    loaded = open_weights(tmp_path / 'ann')
    assert loaded.model == weights.model and loaded.input == weights.input
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, weights.variables)


def layout(file):
    return {'mmseg': 'mmsegmentation'}.get(file.split('_')[0], file.split('_')[0])


@pytest.mark.parametrize('file', FILES)
def test_it_leaves_as_it_came(file, tmp_path):
    pytest.importorskip('torch', reason='writes .pth')
    ann_jax.convert(GOLDENS / file, tmp_path / 'ann')
    out = (tmp_path / file).with_name(f'again_{file}')
    export([str(tmp_path / 'ann'), '--layout', layout(file), '--out', str(out)])
    state, exported = read_file(GOLDENS / file).state, read_file(out).state
    assert exported.keys() == state.keys()
    for key, array in state.items():
        if not key.endswith('num_batches_tracked'):
            np.testing.assert_array_equal(exported[key], array, key)


@pytest.mark.parametrize('options', [{}, {'out_norm': True, 'fuse_stages': (3, 4)}, {'conv_bias': False}])
@pytest.mark.parametrize('file', FILES)
def test_a_trained_network_computes_the_same_in_every_layout(file, options):
    """With biases, and a normalisation of W_o, that the layout may not have.

    In float64: random layers multiply the rounding errors of float32, other than those of trained weights.
    """
    model = converted(file).weights.model | {'conv_bias': True, **options}
    if file != PADDLE:  # whose layout has bottlenecks alone; what export changes is in the heads
        model |= {'depth': 10, 'dilate_second_conv': layout(file) == 'authors'}
    image = normal(1, 3, 65, 49)
    variables = random_variables(network(model, 19), 1, nhwc(image))
    state = to_torch(variables, layout(file), model)
    back = convert_state(state, {}, name='', align_corners=model['align_corners']).weights
    assert back.model['fuse_stages'] == model['fuse_stages'] and not back.model['out_norm']

    def apply(model, variables):
        with jax.enable_x64():
            doubled = jax.tree.map(np.float64, variables)
            return quick(network(model | {'dtype': 'float64'}, 19).apply)(doubled, nhwc(image))

    for ours, theirs in zip(apply(model, variables), apply(back.model, back.variables), strict=True):
        assert_close(theirs, ours)


def test_a_network_that_would_be_another_in_a_layout_is_not_exported():
    """Depth 18: mmsegmentation dilates one convolution of a block, the authors two."""
    weights = converted('mmseg_ann_thin_r18.pth').weights
    with pytest.raises(
        DataError, match="'authors' takes a network of model.dilate_second_conv=True, not of False"
    ):
        to_torch(weights.variables, 'authors', weights.model)
    dilated = weights.model | {'dilate_second_conv': True}
    with pytest.raises(DataError, match='train with --config.model.dilate_second_conv=False'):
        to_torch(weights.variables, 'mmsegmentation', dilated)
    # Without dilation there is no difference.
    to_torch(weights.variables, 'mmsegmentation', dilated | {'output_stride': 32})
    averaging = converted(PADDLE).weights
    with pytest.raises(DataError, match="'authors' takes a network of model.avg_down=False, not of True"):
        to_torch(averaging.variables, 'authors', averaging.model)
    state = to_torch(averaging.variables, 'mmsegmentation', averaging.model)
    assert 'backbone.layer2.0.downsample.2.running_var' in state
    back = convert_state(state, {}, name='').weights
    assert back.model['avg_down'] and back.model['stem_widths'] == (4, 4, 8)


AUXILIARY = 'auxiliary_head.', 'dsn.', 'auxiliary_decoder.', 'head.auxlayer.'


@pytest.mark.parametrize('file', FILES)
def test_an_auxiliary_head_may_be_absent(file):
    (state, meta, *_), whole = read_file(GOLDENS / file), converted(file).weights
    state = {key: array for key, array in state.items() if not key.startswith(AUXILIARY)}
    conversion = convert_state(state, meta, name='')
    weights = conversion.weights
    assert weights.model == whole.model | {'aux_channels': 0} and 'no auxiliary head' in str(conversion)
    arrays = golden(file.split('.')[0])
    result, _ = logits(weights, arrays['input'])
    assert result.auxiliary is None
    assert_close(result.main, nhwc(arrays['decode_logits']))
    folded = fold(weights.network(), weights.variables)
    jax.tree.map(np.testing.assert_array_equal, folded, fold(whole.network(), whole.variables))
    part = convert_state(state, meta, name='', part='backbone').weights
    assert set(part.variables['params']) == {'backbone'}
    assert to_torch(weights.variables, layout(file), weights.model).keys() == state.keys()


def test_a_run_without_an_auxiliary_head(run, tmp_path):  # noqa: F811
    """Weights without one leave, come back, and are trained from by a config that has one."""
    config = scenes.get_config('runlocal')
    model = {**config.model.to_dict(), 'aux_channels': 0}
    model = {key: value for key, value in model.items() if key not in OPTIONAL}
    variables = random_variables(network(model, len(CLASSES)), 0, np.zeros((1, 33, 33, 3), np.float32))
    save(tmp_path / 'a', Weights(variables, model, config.input.to_dict(), CLASSES, COLORS))
    export([str(tmp_path / 'a'), '--layout=authors', '--out', str(tmp_path / 'a.safetensors')])
    back = ann_jax.convert(tmp_path / 'a.safetensors', tmp_path / 'back').weights
    jax.tree.map(np.testing.assert_array_equal, back.variables, variables)

    start = f'--config.init.from={tmp_path / "back"}'
    result = run('scenes.py:runlocal', *TINY, start, f'--workdir={tmp_path / "b"}')
    assert result.returncode == 0, result.stderr
    assert 'as the weights need it: model.aux_channels: 16 -> 0' in result.stderr
    assert 'the network has no auxiliary head: loss.aux_weight=0.4 counts as 0' in result.stderr
    trained = open_weights(tmp_path / 'b')
    assert trained.model['aux_channels'] == 0 and trained.source['step'] > 0
    assert not [name for name in trained.variables['params'] if 'aux' in name]


def test_the_backbone_of_another_segmentor():
    state, meta, *_ = read_file(GOLDENS / 'mmseg_ann_thin_r18.pth')
    other = {key: array for key, array in state.items() if not key.startswith('decode_head.')}
    other['decode_head.psp_modules.0.1.conv.weight'] = np.zeros((4, 64, 1, 1), np.float32)
    with pytest.raises(
        DataError, match='is not that of an ANN, .* tensor decode_head.bottleneck.conv.weight'
    ):
        convert_state(other, meta, name='')
    part = convert_state(other, meta, name='', part='backbone').weights
    whole = converted('mmseg_ann_thin_r18.pth').weights.variables['params']['backbone']
    jax.tree.map(np.testing.assert_array_equal, part.variables['params']['backbone'], whole)


def test_biases_that_sssegmentation_does_not_have_are_zero():
    conversion = converted('sssegmentation_ann_thin_r50.pth')
    zeros = {'/'.join(path) for path in conversion.conversion.zeros}
    blocks = [f'params/{block}/attention_0' for block in ('fusion', 'context')]
    assert zeros == {f'{block}/{name}/bias' for block in blocks for name in ('value', 'out')}
    assert all(f'{name} is zero' in str(conversion) for name in zeros)
    params = conversion.weights.variables['params']
    assert not params['fusion']['attention_0']['value']['bias'].any()


@pytest.mark.parametrize('key', ['afn_block.stages.0.out_project.weight', 'decoder.1.bias'])
def test_other_tensors_of_sssegmentation_must_be_there(key):
    state, meta, *_ = read_file(GOLDENS / 'sssegmentation_ann_thin_r50.pth')
    del state[key]
    with pytest.raises(DataError, match=f'no tensor {key}'):
        convert_state(state, meta, name='')


# Paddle's files


def paddle_state():
    with open(GOLDENS / PADDLE, 'rb') as file:
        return pickle.load(file)  # this one is the project's own


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


def changed(**tensors):
    return lambda path: paddle_state() | tensors


@pytest.mark.parametrize('prefix', ['backbone.', ''])
def test_a_backbone_of_paddle(prefix, tmp_path):
    whole = converted(PADDLE).weights
    state = {key: array for key, array in paddle_state().items() if key.startswith('backbone.')}
    state = {key.replace('backbone.', prefix): array for key, array in state.items()}
    (tmp_path / 'a.pdparams').write_bytes(pickle.dumps(state, 4))
    weights = ann_jax.convert(tmp_path / 'a.pdparams').weights
    backbone = {group: {'backbone': tree['backbone']} for group, tree in whole.variables.items()}
    jax.tree.map(np.testing.assert_array_equal, weights.variables, backbone)
    assert weights.model == {key: whole.model[key] for key in BACKBONE_FACTS} and not weights.classes
    part = ann_jax.convert(GOLDENS / PADDLE, part='backbone').weights
    assert part.model == weights.model and part.input == PADDLE_RGB


def test_a_backbone_of_an_earlier_version_projects_at_its_stride(tmp_path):
    weights = ann_jax.convert(GOLDENS / PADDLE, tmp_path / 'a', part='backbone').weights
    facts = json.loads((tmp_path / 'a/model.json').read_text())
    assert facts['model'].pop('avg_down') is True
    (tmp_path / 'a/model.json').write_text(json.dumps(facts))
    assert open_weights(tmp_path / 'a').model == weights.model | {'avg_down': False}


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_pdparams_of_every_protocol(protocol, tmp_path):
    (tmp_path / 'a.pdparams').write_bytes(pickle.dumps(paddle_state(), protocol))
    weights = ann_jax.convert(tmp_path / 'a.pdparams').weights
    jax.tree.map(np.testing.assert_array_equal, weights.variables, converted(PADDLE).weights.variables)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda path: {'a': Hostile(path)}, 'refused, because it uses (posix|os).system'),
        (lambda path: [1, 2], 'holds a list, not a state dict'),
        (changed(**{'head.cls.bias': np.full(19, np.nan, np.float32)}), 'head.cls.bias: holds numbers that'),
        (changed(**{'head.cls.bias': np.zeros(19, np.uint16)}), 'head.cls.bias: holds uint16, not floats'),
        (changed(**{'head.cls.bias': np.zeros(18, np.float32)}), r'head.cls.bias gives \(18,\)'),
        (changed(extra=np.zeros(2, np.float32)), r'extra \(2,\): no place for it'),
        (
            changed(**{'head.context.1.stages.0.f_query._conv.bias': np.zeros(16, np.float32)}),
            r'f_query._conv.bias \(16,\): no place',
        ),
    ],
)
def test_bad_pdparams_are_refused(make, message, tmp_path):
    path = tmp_path / 'a.pdparams'
    path.write_bytes(pickle.dumps(make(tmp_path / 'proof'), 4))
    with pytest.raises(DataError, match=f'(?s)a.pdparams: .*{message}'):
        ann_jax.convert(path, tmp_path / 'out')
    assert list(tmp_path.iterdir()) == [path]


def test_half_a_pdparams_is_refused(tmp_path):
    path = tmp_path / 'a.pdparams'
    path.write_bytes((GOLDENS / PADDLE).read_bytes()[:-5000])
    with pytest.raises(DataError, match='a.pdparams: is not a complete Paddle file'):
        ann_jax.convert(path)
    with pytest.raises(ConfigError, match=r'is a Paddle file.*ann_jax.convert'):
        ann_jax.load(path)
