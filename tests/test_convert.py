"""Every key layout of torch checkpoints maps onto the network, completely or with an error that says why."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from reference import below, golden, oihw

from ann_jax.models.ann import ANN
from ann_jax.models.convert import from_torch
from ann_jax.models.resnet import ResNet


def abstract(module, *args):
    return jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 33, 33, 3)), *args))


def filled(target):
    """Variables that hold another number everywhere."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), target)


# Our module names -> those of a checkpoint, in order; written from the checkpoints' side, so that the
# rules under test are not inverted by themselves.
BLOCK_KEYS = [(r'layer(\d)_(\d+)', r'layer\1.\2'), (r'downsample_(\d)', r'downsample.\1')]
TORCHVISION = [*BLOCK_KEYS, (r'^stem\.', '')]
PREFIXED_STEM = [*BLOCK_KEYS, (r'^stem\.', 'prefix.')]
MMSEG_STEM = [*BLOCK_KEYS] + [
    (rf'\bstem\.{kind}{i + 1}\b', f'stem.{3 * i + offset}')
    for i in range(3)
    for kind, offset in (('conv', 0), ('bn', 1))
]
MMSEG = [
    *MMSEG_STEM,
    (r'^(fusion|bottleneck|context|classifier)\b', r'decode_head.\1'),
    (r'decode_head\.classifier', 'decode_head.conv_seg'),
    (r'^aux_classifier', 'auxiliary_head.conv_seg'),
    (r'^aux_bottleneck', 'auxiliary_head.convs.0'),
    (r'attention_(\d)', r'stages.\1'),
    (r'stages\.(\d)\.(key|query|value|out)\b', r'stages.\1.\2_project'),
    (r'(fusion|context)\.project', r'\1.bottleneck'),
]
AUTHORS = [
    *BLOCK_KEYS,
    (r'\bstem\.', 'prefix.'),
    (r'^context\.', 'context.2.'),
    (r'attention_(\d)', r'stages.\1'),
    (r'stages\.(\d)\.(key|query)\.conv', r'stages.\1.f_\2.0'),
    (r'stages\.(\d)\.(key|query)\.bn', r'stages.\1.f_\2.1.0'),
    (r'stages\.(\d)\.value', r'stages.\1.f_value'),
    (r'stages\.(\d)\.out', r'stages.\1.W'),
    (r'^fusion\.project\.conv', 'fusion.conv_bn_dropout.0'),
    (r'^fusion\.project\.bn', 'fusion.conv_bn_dropout.1'),
    (r'^context\.2\.project\.conv', 'context.2.conv_bn_dropout.0'),
    (r'^context\.2\.project\.bn', 'context.2.conv_bn_dropout.1.0'),
    (r'^bottleneck\.conv', 'context.0'),
    (r'^bottleneck\.bn', 'context.1.0'),
    (r'^classifier', 'cls'),
    (r'^aux_bottleneck\.conv', 'dsn.0'),
    (r'^aux_bottleneck\.bn', 'dsn.1.0'),
    (r'^aux_classifier', 'dsn.3'),
]
LEAVES = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var', 'bias': 'bias'}


def state_dict(variables, rules, prefix=''):
    """The torch state dict of variables, in a layout given by its rules."""
    state = {}
    for (_, *modules, leaf), array in traverse_util.flatten_dict(variables).items():
        name = '.'.join(modules)
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        state[f'{prefix}{name}.{LEAVES[leaf]}'] = oihw(array) if array.ndim == 4 else array
        if leaf == 'mean':
            state[f'{prefix}{name}.num_batches_tracked'] = np.array(7)
    return state


def assert_same(ours, expected):
    ours, expected = traverse_util.flatten_dict(ours), traverse_util.flatten_dict(expected)
    assert ours.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(ours[path], array, str(path))


BACKBONES = {
    'torchvision': (ResNet(50, 4, (4,)), TORCHVISION, 'layer1.0.downsample.0.weight'),
    'torchvision_basic': (ResNet(18, 4, (4,)), TORCHVISION, 'layer2.0.downsample.1.running_var'),
    'plain_deep_stem': (ResNet(50, 4, (2, 2, 4)), TORCHVISION, 'conv3.weight'),
    'prefixed_deep_stem': (ResNet(101, 4, (2, 2, 4)), PREFIXED_STEM, 'prefix.bn2.running_mean'),
    'mmseg_deep_stem': (ResNet(50, 4, (2, 2, 4)), MMSEG_STEM, 'stem.7.bias'),
}


@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('layout', BACKBONES)
def test_backbones(layout, prefix):
    module, rules, known_key = BACKBONES[layout]
    target = abstract(module, False)
    variables = filled(target)
    state = state_dict(variables, rules, prefix)
    assert prefix + known_key in state
    assert_same(from_torch(state, target), variables)


@pytest.fixture(scope='module')
def network():
    model = ANN(3, ResNet(50, 4, (2, 2, 4)), key_channels=4, head_channels=8, aux_channels=4)
    target = abstract(model)
    return target, filled(target)


NETWORKS = {
    'mmseg': (MMSEG, 'decode_head.context.stages.0.key_project.bn.running_mean'),
    'authors': (AUTHORS, 'context.2.stages.0.f_key.1.0.running_mean'),
}


@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('layout', NETWORKS)
def test_networks(network, layout, prefix):
    target, variables = network
    rules, known_key = NETWORKS[layout]
    state = state_dict(variables, rules, prefix)
    assert prefix + known_key in state
    assert prefix + 'backbone.layer3.5.conv2.weight' in state
    # The copy of the projection that query and key share.
    state |= {
        key.replace('key', 'query', 1): array
        for key, array in state.items()
        if 'context' in key and 'key' in key
    }
    assert_same(from_torch(state, target), variables)


@pytest.mark.parametrize(
    ('name', 'backbone'),
    [('mmseg_ann_thin_v1c_r50', ResNet(50, 4, (2, 2, 4))), ('mmseg_ann_thin_r101', ResNet(101, 4, (4,)))],
)
def test_stored_networks(name, backbone):
    model = ANN(19, backbone, key_channels=16, head_channels=32, aux_channels=16, conv_bias=False)
    state = below(golden(name), 'state/')
    variables = traverse_util.flatten_dict(from_torch(state, abstract(model)))
    copies = [key for key in state if 'context' in key and 'query' in key]
    assert len(variables) == len(state) - len(copies)
    kernel = variables['params', 'fusion', 'attention_0', 'value', 'kernel']
    np.testing.assert_array_equal(oihw(kernel), state['decode_head.fusion.stages.0.value_project.weight'])


def test_errors_list_every_problem(network):
    target, variables = network
    state = state_dict(variables, MMSEG)
    del state['decode_head.bottleneck.conv.weight']
    del state['backbone.stem.1.running_var']
    state['backbone.fc.weight'] = np.zeros((5, 4), np.float32)
    state['decode_head.conv_seg.weight'] = np.zeros((7, 8, 1, 1), np.float32)
    with pytest.raises(ValueError) as caught:
        from_torch(state, target)
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert 'backbone.fc.weight: no place for it (params/backbone/fc/kernel)' in lines
    assert 'params/bottleneck/conv/kernel: no tensor for it' in lines
    assert 'batch_stats/backbone/stem/bn1/var: no tensor for it' in lines
    wrong = [line for line in lines if line.startswith('decode_head.conv_seg.weight: shape (1, 1, 8, 7)')]
    assert wrong == [
        'decode_head.conv_seg.weight: shape (1, 1, 8, 7), but params/classifier/kernel is (1, 1, 8, 3)'
    ]


def test_a_query_that_differs_from_its_key_is_an_error(network):
    target, variables = network
    state = state_dict(variables, MMSEG)
    key = 'decode_head.context.stages.0.key_project.conv.weight'
    query = key.replace('key', 'query')
    with pytest.raises(ValueError, match=f'{query}: no place for it'):
        from_torch({**state, query: state[key] + 1}, target)
