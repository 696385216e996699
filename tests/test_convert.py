"""Every key layout of torch checkpoints maps onto the network and back, or an error says why not."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from reference import assert_close, below, golden, normal, oihw, quick, random_variables

from ann_jax.errors import DataError
from ann_jax.models.ann import ANN
from ann_jax.models.resnet import ResNet
from ann_jax.weights.descriptions import read_meta
from ann_jax.weights.recognize import recognize
from ann_jax.weights.state_dicts import find
from ann_jax.weights.torch_state import from_torch, to_torch


def abstract(module, *args):
    return jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 33, 33, 3)), *args))


def filled(target):
    """Variables that hold another number everywhere."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), target)


def convert(state, target, part='all'):
    """What the script does between reading a file and writing a folder."""
    state = find(state).state
    return from_torch(state, target, recognize(state).layout, part)


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
TIMM_STEM = [
    *BLOCK_KEYS,
    (r'^stem\.bn3', 'bn1'),
    (r'^stem\.(conv|bn)([123])', lambda found: f'conv1.{3 * int(found[2]) - 3 + (found[1] == "bn")}'),
]
# ResNet-D: an average, which has no tensors, is the first part of a shortcut.
AVERAGING = [(r'downsample_1', 'downsample.2'), (r'downsample_0', 'downsample.1')]
TIMM_D, MMSEG_D = [*AVERAGING, *TIMM_STEM], [*AVERAGING, *MMSEG_STEM]
TRANSFORMERS = [
    (r'layer(\d)_(\d+)', lambda found: f'encoder.stages.{int(found[1]) - 1}.layers.{found[2]}'),
    (r'^stem\.conv1', 'embedder.embedder.convolution'),
    (r'^stem\.bn1', 'embedder.embedder.normalization'),
    (r'conv(\d)$', lambda found: f'layer.{int(found[1]) - 1}.convolution'),
    (r'bn(\d)$', lambda found: f'layer.{int(found[1]) - 1}.normalization'),
    (r'downsample_0', 'shortcut.convolution'),
    (r'downsample_1', 'shortcut.normalization'),
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


DEEP = (2, 2, 4)
SHORTCUT = 'encoder.stages.0.layers.0.shortcut.normalization.running_var'
BACKBONES = {  # module, its keys, one of them, depth, stem, whether it is the authors'
    'torchvision': (ResNet(50, 4, (4,)), TORCHVISION, 'layer1.0.downsample.0.weight', 50, (4,), False),
    'torchvision_18': (ResNet(18, 4, (4,)), TORCHVISION, 'layer2.0.downsample.1.bias', 18, (4,), False),
    'torchvision_34': (ResNet(34, 4, (4,)), TORCHVISION, 'layer3.5.bn2.bias', 34, (4,), False),
    'torchvision_152': (ResNet(152, 4, (4,)), TORCHVISION, 'layer3.35.conv3.weight', 152, (4,), False),
    'numbered_deep_stem': (ResNet(50, 4, DEEP), TORCHVISION, 'conv3.weight', 50, DEEP, True),
    'prefixed_deep_stem': (ResNet(101, 4, DEEP), PREFIXED_STEM, 'prefix.bn2.running_mean', 101, DEEP, True),
    'prefixed_plain_stem': (ResNet(50, 4, (4,)), PREFIXED_STEM, 'prefix.bn1.weight', 50, (4,), True),
    'mmseg_deep_stem': (ResNet(50, 4, DEEP), MMSEG_STEM, 'stem.7.bias', 50, DEEP, False),
    'transformers': (ResNet(50, 4, (4,)), TRANSFORMERS, SHORTCUT, 50, (4,), False),
    'timm_deep_stem': (ResNet(50, 4, DEEP), TIMM_STEM, 'conv1.4.running_mean', 50, DEEP, False),
    'timm_d': (ResNet(50, 4, DEEP, avg_down=True), TIMM_D, 'layer1.0.downsample.2.bias', 50, DEEP, False),
    'timm_d_18': (ResNet(18, 4, DEEP, avg_down=True), TIMM_D, 'layer2.0.downsample.2.bias', 18, DEEP, False),
    'mmseg_d': (ResNet(101, 4, DEEP, avg_down=True), MMSEG_D, 'layer4.0.downsample.2.bias', 101, DEEP, False),
}  # fmt: skip


def backbone_target(module):
    return {group: {'backbone': tree} for group, tree in abstract(module, False).items()}


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.', 'module.backbone.'])
@pytest.mark.parametrize('layout', BACKBONES)
def test_backbones(layout, prefix):
    module, rules, known_key, depth, stem_widths, authors = BACKBONES[layout]
    target = backbone_target(module)
    variables = filled(target)
    state = state_dict(variables, [(r'^backbone\.', ''), *rules], prefix)
    assert prefix + known_key in state
    state |= {f'{prefix.removesuffix("backbone.")}fc.{leaf}': np.ones((5, 4)) for leaf in ('weight', 'bias')}
    result, outside = convert(state, target), find(state).outside
    assert_same(result.variables, variables)
    counters = [key for key in state if key.endswith('num_batches_tracked')]
    assert len(result.used) + len(result.ignored) + len(outside) == len(state)
    assert len(result.ignored) + len(outside) == len(counters) + 2
    assert outside or result.ignored['fc.weight'] == 'head of the pretraining'
    found = recognize(find(state).state)
    assert (found.model['depth'], found.model['width'], found.model['stem_widths']) == (depth, 4, stem_widths)
    assert found.model['ceil_pool'] == found.input['bgr'] == authors
    assert found.model['avg_down'] == module.avg_down
    assert found.num_classes is None


def small_network(**options):
    options = {'key_channels': 4, 'head_channels': 8, 'aux_channels': 6, **options}
    model = ANN(3, ResNet(50, 4, options.pop('stem_widths', (2, 2, 4))), **options)
    return model, abstract(model)


@pytest.fixture(scope='module')
def network():
    _, target = small_network()
    return target, filled(target)


NETWORKS = {
    'mmsegmentation': (MMSEG, 'decode_head.context.stages.0.key_project.bn.running_mean'),
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
    copies = {
        key.replace('key', 'query', 1): array
        for key, array in state.items()
        if 'context' in key and 'key' in key
    }
    result = convert(state | copies, target)
    assert_same(result.variables, variables)
    kept = [key for key in copies if 'tracked' not in key]
    assert all('copy of' in result.ignored[key.removeprefix(prefix)] for key in kept)
    found = recognize(find(state).state)
    expected = {'variant': 'full', 'key_channels': 4, 'head_channels': 8, 'aux_channels': 6, 'depth': 50}
    expected |= {'fuse_stages': (4,), 'conv_bias': True, 'align_corners': layout == 'authors'}
    assert {key: found.model[key] for key in expected} == expected
    assert found.num_classes == 3 and found.input['bgr'] == (layout == 'authors')


@pytest.mark.parametrize('variant', ['baseline', 'afnb', 'apnb'])
@pytest.mark.parametrize('fuse_stages', [(4,), (2, 3, 4)])
def test_the_variant_is_told_by_the_keys(variant, fuse_stages):
    _, target = small_network(variant=variant, fuse_stages=fuse_stages)
    found = recognize(state_dict(filled(target), MMSEG)).model
    assert found['variant'] == variant
    if variant == 'afnb':
        assert found['fuse_stages'] == fuse_stages


@pytest.mark.parametrize(
    ('name', 'backbone'),
    [('mmseg_ann_thin_v1c_r50', ResNet(50, 4, (2, 2, 4))), ('mmseg_ann_thin_r101', ResNet(101, 4, (4,)))],
)
def test_stored_networks(name, backbone):
    model = ANN(19, backbone, key_channels=16, head_channels=32, aux_channels=16, conv_bias=False)
    state = below(golden(name), 'state/')
    result = convert(state, abstract(model))
    copies = [key for key in state if 'context' in key and 'query' in key]
    assert set(result.ignored) == {*copies, *(key for key in state if key.endswith('tracked'))}
    kernel = result.variables['params']['fusion']['attention_0']['value']['kernel']
    np.testing.assert_array_equal(oihw(kernel), state['decode_head.fusion.stages.0.value_project.weight'])
    found = recognize(state)
    assert (found.num_classes, found.model['depth'], found.model['conv_bias']) == (19, backbone.depth, False)
    # And back: the very keys and tensors, but for the step counters, which count anew.
    exported = to_torch(result.variables, 'mmsegmentation', found.model)
    counters = {key for key in exported if key.endswith('tracked')}
    assert exported.keys() - counters == {key for key in state if not key.endswith('tracked')}
    for key in exported.keys() - counters:
        np.testing.assert_array_equal(exported[key], state[key], key)


def test_the_backbone_alone_can_be_taken_from_a_network(network):
    target, variables = network
    state = state_dict(variables, MMSEG)
    target = {group: {'backbone': tree['backbone']} for group, tree in target.items()}
    result = convert(state, target, part='backbone')
    assert_same(
        result.variables, {group: {'backbone': tree['backbone']} for group, tree in variables.items()}
    )
    assert result.ignored['decode_head.conv_seg.bias'] == 'only the backbone is asked for'


def test_exports_use_the_authors_names():
    model, target = small_network()
    state = to_torch(filled(target), 'authors', SETTINGS)
    names = {block: set(below(golden(f'authors_{block}'), 'state/')) for block in ('apnb', 'afnb')}
    for block, prefix in (('apnb', 'context.2.'), ('afnb', 'fusion.')):
        keys = {key.removeprefix(prefix) for key in state if key.startswith(prefix)}
        assert {key for key in keys if not key.endswith('tracked')} == names[block]


SETTINGS = {'variant': 'full', 'sampling': 'average', 'share': 'query_key', 'stem_widths': (2, 2, 4)}
SETTINGS |= {'depth': 50, 'output_stride': 8, 'multi_grid': (1, 1, 1), 'avg_down': False, 'decoder': 'none'}


@pytest.mark.parametrize('layout', ['authors', 'mmsegmentation'])
@pytest.mark.parametrize(('conv_bias', 'out_norm'), [(True, False), (False, False), (True, True)])
def test_a_round_trip_evaluates_equal(layout, conv_bias, out_norm):
    both = layout == 'authors'
    options = {'depth': 10, 'conv_bias': conv_bias, 'out_norm': out_norm}
    build = lambda **o: ANN(
        3,
        ResNet(o.pop('depth'), 4, (2, 2, 4), dilate_second_conv=both),
        key_channels=4,
        head_channels=8,
        aux_channels=6,
        sizes=(1, 2),
        **o,
    )
    model = build(**options)
    image = normal(2, 65, 49, 3)
    variables = random_variables(model, 0, image)
    before = traverse_util.flatten_dict(jax.tree.map(np.copy, variables))
    state = to_torch(variables, layout, SETTINGS | {'depth': 10, 'dilate_second_conv': both})
    found = recognize(state)
    assert found.model['dilate_second_conv'] == both
    other = build(depth=10, conv_bias=found.model['conv_bias'])
    assert found.model['conv_bias'] == (layout == 'authors')
    back = convert(state, abstract(other)).variables
    for ours, theirs in zip(
        quick(model.apply)(variables, image), quick(other.apply)(back, image), strict=True
    ):
        assert_close(theirs, ours)
    if not out_norm and conv_bias == (layout == 'authors'):
        assert_same(back, variables)
    assert_same(variables, traverse_util.unflatten_dict(before))  # folding works on a copy


@pytest.mark.parametrize(('key', 'value'), [('variant', 'apnb'), ('sampling', 'max'), ('share', 'none')])
def test_only_their_networks_are_exported(network, key, value):
    with pytest.raises(DataError, match=f'model.{key}='):
        to_torch(network[1], 'authors', {**SETTINGS, key: value})


def test_errors_list_every_problem(network):
    target, variables = network
    state = state_dict(variables, MMSEG)
    del state['decode_head.bottleneck.conv.weight']
    del state['backbone.stem.1.running_var']
    state['backbone.fc.weight'] = np.zeros((5, 4), np.float32)
    state['decode_head.conv_seg.weight'] = np.zeros((7, 8, 1, 1), np.float32)
    state['backbone.stem.1.bias'] = np.full(2, np.nan, np.float32)
    state['backbone.stem.4.running_var'] = np.full(2, -1, np.float32)
    layout = recognize(state_dict(variables, MMSEG)).layout
    with pytest.raises(DataError) as caught:
        from_torch(state, target, layout)
    lines = {line.strip() for line in str(caught.value).splitlines()[1:]}
    assert lines == {
        'backbone.fc.weight (5, 4): no place for it',
        'params/bottleneck/conv/kernel (3, 3, 128, 8): no tensor decode_head.bottleneck.conv.weight',
        'batch_stats/backbone/stem/bn1/var (2,): no tensor backbone.stem.1.running_var',
        'params/classifier/kernel: shape (1, 1, 8, 3), but decode_head.conv_seg.weight gives (1, 1, 8, 7)',
        'backbone.stem.1.bias: holds numbers that are not finite; the file is damaged',
        'backbone.stem.4.running_var: holds negative variances; the file is damaged',
    }


def test_a_query_that_differs_from_its_key_is_an_error(network):
    target, variables = network
    state = state_dict(variables, MMSEG)
    key = 'decode_head.context.stages.0.key_project.conv.weight'
    query = key.replace('key', 'query')
    with pytest.raises(DataError, match=rf'{query} \(4, 8, 1, 1\): no place for it'):
        convert({**state, query: state[key] + 1}, target)


def test_other_networks_are_refused():
    with pytest.raises(DataError, match='not a known network.*features.0.weight'):
        recognize({'features.0.weight': np.zeros((64, 3, 11, 11))})
    resnet = state_dict(filled(backbone_target(ResNet(50, 4, (4,)))), [(r'^backbone\.', ''), *TORCHVISION])
    short = {key: value for key, value in resnet.items() if not key.startswith('layer3.4')}
    with pytest.raises(DataError, match=r'no supported ResNet has \(3, 4, 5, 3\) bottleneck blocks'):
        recognize(short)
    # One tensor less, or of an odd shape, is no other network.
    for block, problem in (('layer3.4', 'kernel .*: no tensor layer3.4'), ('layer1.0', 'no tensor layer1.0')):
        lacking = {key: value for key, value in resnet.items() if key != f'{block}.conv1.weight'}
        with pytest.raises(DataError, match=f'cannot convert it: params/.*{problem}.conv1.weight$'):
            convert(lacking, backbone_target(ResNet(50, 4, (4,))))
    for shape in ((), (0,), (4, 0, 1, 1), (4, 4)):
        with pytest.raises(
            DataError, match='layer1.0.conv1.weight has the shape .* which no convolution has'
        ):
            recognize({**resnet, 'layer1.0.conv1.weight': np.zeros(shape)})
    wide = {**resnet, 'layer1.1.se.conv.weight': np.zeros((4, 4, 1, 1))}
    with pytest.raises(DataError, match='has channel attention, as seresnet'):
        convert(wide, backbone_target(ResNet(50, 4, (4,))))


def test_facts_beside_the_weights_of_mmsegmentation():
    text = """
    norm_cfg = dict(type='SyncBN')
    data_preprocessor = dict(mean=[1.5, 2, 3], std=[4, 5.5, 6], bgr_to_rgb=True)
    model = dict(decode_head=dict(type='ANNHead', key_pool_scales=(1, 2, 4), align_corners=True))
    """
    expected = {
        'align_corners': True,
        'sizes': (1, 2, 4),
        'mean': (1.5, 2, 3),
        'std': (4, 5.5, 6),
        'bgr': False,
    }
    names = {'classes': ['a', 'b'], 'colors': [[1, 2, 3], [4, 5, 6]]}
    palette = [[1, 2, 3], [4, 5, 6]]
    assert (
        read_meta({'cfg': text, 'dataset_meta': {'classes': ('a', 'b'), 'palette': palette}})
        == expected | names
    )
    assert read_meta({'config': text, 'CLASSES': ('a', 'b'), 'PALETTE': palette}) == expected | names
    assert read_meta({}) == {}
