"""The folded network equals the trained one, alone and on a larger canvas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from reference import assert_close, error, normal, quick, random_variables, tame

from ann_jax.errors import ConfigError, DataError
from ann_jax.kernels import convolution, forms
from ann_jax.models.ann import ANN, VARIANTS
from ann_jax.models.blocks import AFNB, APNB
from ann_jax.models.feature_map import FeatureMap
from ann_jax.models.fold import fold
from ann_jax.models.resnet import ResNet


def network(
    variant='full',
    depth=10,
    ceil_pool=True,
    stem_widths=(4, 4, 8),
    dtype=jnp.float32,
    avg_down=False,
    output_stride=8,
    **options,
):
    options = {'key_channels': 4, 'head_channels': 12, 'aux_channels': 8, 'sizes': (1, 3), **options}
    backbone = ResNet(
        depth, 8, stem_widths, output_stride, ceil_pool=ceil_pool, avg_down=avg_down, dtype=dtype
    )
    return ANN(5, backbone, variant, dtype=dtype, **options)


@functools.cache
def smooth_variables(model):
    return tame(random_variables(model, 0, np.zeros((1, 33, 33, 3), np.float32)))


@functools.cache
def program(model):
    """Compiled once for each size of a canvas, whatever the size of the image."""
    apply = lambda variables, image, size: model.apply(variables, FeatureMap.of(image, size)).main
    return quick(apply)


def run(model, variables, image, size=None):
    """The main logits of the folded network."""
    return program(model.clone(folded=True))(fold(model, variables), image, size)


@functools.cache
def trained(model, size):
    """An image, and the logits of the network as it was trained."""
    image = normal(2, *size, 3)
    return image, quick(model.apply)(smooth_variables(model), image).main


def both(model, size, canvas=None):
    """Logits of the folded network on an image, or on a canvas that holds it, and of the trained one."""
    variables, (image, expected) = smooth_variables(model), trained(model, size)
    if canvas is None:
        return run(model, variables, image).array, expected
    padded = np.full((2, *canvas, 3), 7, np.float32)  # no zeros: what lies outside must not matter
    padded[:, : size[0], : size[1]] = image
    logits = run(model, variables, padded, np.array([size] * 2))
    assert np.stack(logits.size, 1).tolist() == [list(expected.shape[1:3])] * 2
    return logits.array[:, : expected.shape[1], : expected.shape[2]], expected


@pytest.mark.parametrize(
    ('variant', 'fuse_stages'),
    [
        (variant, stages)
        for variant, (fusion, _) in VARIANTS.items()
        for stages in ((4,), (2, 4))[: 1 if fusion is None else 2]
    ],
)
def test_every_variant(variant, fuse_stages):
    model = network(variant, fuse_stages=fuse_stages)
    assert_close(*both(model, (65, 49)))
    assert_close(*both(model, (65, 49), (80, 96)))


def test_winograd(monkeypatch):
    for name in ('WIDE', 'WIDER', 'WIDEST'):
        monkeypatch.setattr(convolution, name, 8)
    forms.with_static.cache_clear()  # what was traced with other bounds is of no use here
    program.cache_clear()
    model = network()
    image = normal(2, 65, 49, 3)
    variables = smooth_variables(model)
    expected = quick(model.apply)(variables, image).main
    assert_close(run(model, variables, image).array, expected)
    canvas = np.pad(image, ((0, 0), (0, 15), (0, 31), (0, 0)), constant_values=7)
    logits = run(model, variables, canvas, np.array([(65, 49)] * 2)).array
    assert_close(logits[:, : expected.shape[1], : expected.shape[2]], expected)
    forms.with_static.cache_clear()
    program.cache_clear()


@pytest.mark.parametrize(
    'options',
    [
        {'depth': 50},
        {'out_norm': True},
        {'conv_bias': False},
        {'share': 'key_value'},
        {'share': 'none'},
        {'key_channels': 16},  # more than there are anchors
        {'stem_widths': (8,), 'ceil_pool': False},
        {'avg_down': True, 'ceil_pool': False},
        {'output_stride': 4},
        {'decoder': 'stage2', 'decoder_channels': 10},
    ],
)
def test_settings(options):
    assert_close(*both(network(**options), (50, 65)))
    assert_close(*both(network(**options), (50, 65), (64, 65)))


@pytest.mark.parametrize('variant', VARIANTS)
def test_only_variants_that_sample_need_exact_sizes(variant):
    samples = not {APNB, AFNB}.isdisjoint(VARIANTS[variant])
    assert network(variant=variant, sampling='max').takes_canvas is not samples
    assert network(variant=variant).takes_canvas


@pytest.mark.parametrize('sampling', ['max', 'random'])
def test_samplings_that_need_exact_sizes(sampling):
    model = network(sampling=sampling)
    assert not model.takes_canvas
    assert_close(*both(model, (50, 65)))
    with pytest.raises(ConfigError, match='need images that fill their arrays'):
        both(model, (50, 65), (64, 65))


@pytest.mark.parametrize('ceil_pool', [True, False])
@pytest.mark.parametrize('size', [(1, 1), (2, 33), (17, 96), (64, 64), (79, 30)])
def test_awkward_sizes_on_a_canvas(size, ceil_pool):
    assert_close(*both(network(ceil_pool=ceil_pool), size, (80, 97)))
    assert_close(*both(network(ceil_pool=ceil_pool, avg_down=True), size, (80, 97)))


def test_images_of_several_sizes_share_a_canvas():
    model = network()
    images = [normal(1, *size, 3, seed=i) for i, size in enumerate([(40, 64), (64, 33)])]
    variables = smooth_variables(model)
    canvas = np.zeros((2, 64, 64, 3), np.float32)
    for i, image in enumerate(images):
        canvas[i, : image.shape[1], : image.shape[2]] = image[0]
    sizes = np.array([image.shape[1:3] for image in images])
    logits = run(model, variables, canvas, sizes).array
    for i, image in enumerate(images):
        expected = quick(model.apply)(variables, image).main[0]
        assert_close(logits[i, : expected.shape[0], : expected.shape[1]], expected)


def test_bfloat16():
    logits, expected = both(network(dtype=jnp.bfloat16), (65, 65))
    assert logits.dtype == jnp.float32
    exact = both(network(), (65, 65))[1]
    assert error(expected, exact) < 5e-2 and 1e-5 < error(logits, exact) < 5e-2


def test_the_merged_weights_are_smaller():
    model = network(key_channels=2)
    variables = random_variables(model, 0, normal(1, 33, 33, 3))
    folded = fold(model, variables)
    params = folded['params']
    assert params['fusion']['project']['conv']['kernel'].shape == (1, 1, 64, 64)
    assert params['fusion']['attention_0']['out']['kernel'].shape == (1, 1, 2, 64)
    assert set(folded) == {'params'}
    names = {'/'.join(path) for path in traverse_util.flatten_dict(params)}
    assert not any('aux' in name or 'scale' in name for name in names)
    assert 'backbone/layer1_0/bn1/bias' in names and 'bottleneck/conv/bias' not in names
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    assert count(params) < count(variables['params'])


def test_folding_twice_changes_nothing():
    model = network()
    once = fold(model, random_variables(model, 0, normal(1, 33, 33, 3)))
    again = fold(model.clone(folded=True), once)
    jax.tree.map(np.testing.assert_array_equal, once, again)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda v: v['params']['bottleneck'].update(gamma=np.ones(3)),
            r'bottleneck/gamma: \(3,\), .*no place',
        ),
        (lambda v: v.pop('batch_stats'), 'backbone/layer1_0/bn1/scale'),
        (lambda v: v['params']['backbone'].update(gate={'kernel': np.ones(3)}), 'gate/kernel'),
        (lambda v: v['params']['classifier'].pop('bias'), r'classifier/bias: absent, the network has \(5,\)'),
        (
            lambda v: v['params']['context']['project'].update(
                norm=v['params']['context']['project'].pop('bn')
            ),
            'context/project/norm/scale',
        ),
    ],
)
def test_a_variable_that_has_no_place_is_refused(change, message):
    model = network()
    variables = random_variables(model, 0, normal(1, 33, 33, 3))
    change(variables)
    with pytest.raises(DataError, match=message):
        fold(model, variables)


def test_a_folded_network_refuses_variables_that_are_not_folded():
    model, image = network(), normal(1, 33, 33, 3)
    variables = random_variables(model, 0, image)
    with pytest.raises(ConfigError, match='backbone/stem/bn1 is not folded'):
        quick(model.clone(folded=True).apply)(variables, image)
