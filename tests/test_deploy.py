"""The inference network equals the trained one, alone and on a larger canvas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import assert_close, error, normal, quick, random_variables

from ann_jax.models import deploy
from ann_jax.models.ann import ANN, VARIANTS
from ann_jax.models.deploy import InferenceNetwork, fold
from ann_jax.models.resnet import ResNet


def network(variant='full', depth=10, ceil_pool=True, stem_widths=(4, 4, 8), dtype=jnp.float32, **options):
    options = {'key_channels': 4, 'head_channels': 12, 'aux_channels': 8, 'sizes': (1, 3), **options}
    backbone = ResNet(depth, 8, stem_widths, ceil_pool=ceil_pool, dtype=dtype)
    return ANN(5, backbone, variant, dtype=dtype, **options)


def smooth_variables(model, seed, image):
    """Random variables with small queries and keys: a steep softmax would multiply rounding errors."""

    def tame(path, leaf):
        names = {key.key for key in path}
        return leaf * 0.1 if names & {'query', 'key'} and names & {'scale', 'bias'} else leaf

    return jax.tree_util.tree_map_with_path(tame, random_variables(model, seed, image))


def both(model, size, canvas=None, seed=0):
    """Logits of the inference network on an image, or on a canvas that holds it, and of the trained one."""
    image = normal(2, *size, 3, seed=seed)
    variables = smooth_variables(model, seed, image)
    expected = quick(model.apply)(variables, image).main
    inference, params = InferenceNetwork(model), fold(model, variables)
    if canvas is None:
        return quick(inference)(params, image)[0], expected
    padded = np.full((2, *canvas, 3), 7, np.float32)  # no zeros: what lies outside must not matter
    padded[:, : size[0], : size[1]] = image
    logits, sizes = quick(inference)(params, padded, np.array([size] * 2))
    assert sizes.tolist() == [list(expected.shape[1:3])] * 2
    return logits[:, : expected.shape[1], : expected.shape[2]], expected


@pytest.mark.parametrize('fuse_stages', [(4,), (2, 4)])
@pytest.mark.parametrize('variant', VARIANTS)
def test_every_variant(variant, fuse_stages):
    model = network(variant, fuse_stages=fuse_stages)
    assert_close(*both(model, (65, 49)))
    assert_close(*both(model, (65, 49), (80, 96)))


@pytest.mark.parametrize(('widest', 'matrices'), [(1000, 4), (8, 3)])
def test_winograd(monkeypatch, widest, matrices):
    monkeypatch.setattr(deploy, 'NARROW', 8)
    monkeypatch.setattr(deploy, 'WIDEST', widest)
    model = network(depth=18)
    image = normal(2, 65, 49, 3)
    variables = smooth_variables(model, 0, image)
    params = fold(model, variables, winograd=True)
    assert [len(row) for row in params['bottleneck/conv']['kernel']] == [matrices] * matrices
    assert params['backbone/layer2_0/conv1']['kernel'].shape[:2] == (3, 3)  # of stride 2
    expected = quick(model.apply)(variables, image).main
    assert_close(quick(InferenceNetwork(model))(params, image)[0], expected)
    canvas = np.pad(image, ((0, 0), (0, 15), (0, 31), (0, 0)), constant_values=7)
    logits, _ = quick(InferenceNetwork(model))(params, canvas, np.array([(65, 49)] * 2))
    assert_close(logits[:, : expected.shape[1], : expected.shape[2]], expected)


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
    ],
)
def test_settings(options):
    assert_close(*both(network(**options), (50, 65)))
    assert_close(*both(network(**options), (50, 65), (64, 65)))


@pytest.mark.parametrize('sampling', ['max', 'random'])
def test_samplings_that_need_exact_sizes(sampling):
    model = network(sampling=sampling)
    assert not InferenceNetwork(model).takes_canvas
    assert_close(*both(model, (50, 65)))
    with pytest.raises(ValueError, match='need images that fill their arrays'):
        both(model, (50, 65), (64, 65))


@pytest.mark.parametrize('ceil_pool', [True, False])
@pytest.mark.parametrize('size', [(1, 1), (2, 33), (17, 96), (64, 64), (79, 30)])
def test_awkward_sizes_on_a_canvas(size, ceil_pool):
    assert_close(*both(network(ceil_pool=ceil_pool), size, (80, 97)))


def test_images_of_several_sizes_share_a_canvas():
    model = network()
    images = [normal(1, *size, 3, seed=i) for i, size in enumerate([(40, 64), (64, 33)])]
    variables = smooth_variables(model, 0, images[0])
    canvas = np.zeros((2, 64, 64, 3), np.float32)
    for i, image in enumerate(images):
        canvas[i, : image.shape[1], : image.shape[2]] = image[0]
    sizes = np.array([image.shape[1:3] for image in images])
    logits, _ = quick(InferenceNetwork(model))(fold(model, variables), canvas, sizes)
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
    params = fold(model, variables)
    assert params['fusion/project/conv']['kernel'].shape == (1, 1, 64, 64)
    assert params['fusion/attention_0/out']['kernel'].shape == (1, 1, 2, 64)
    assert not any('aux' in name or 'bn' in name for name in params)
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    assert count(params) < count(variables['params'])
