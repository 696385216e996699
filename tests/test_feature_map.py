"""Images on canvases: every layer gives what it gives for each image alone, in training too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import assert_close, nchw, nhwc, normal, quick, random_variables, torch_gradients

from ann_jax.kernels.forms import with_forms_of
from ann_jax.models.feature_map import FeatureMap
from ann_jax.models.layers import BatchNorm, Conv, average_pool, max_pool

SIZES = [(9, 7), (4, 11), (12, 11)]
INSIDE = np.zeros((3, 12, 11, 1), bool)
for number, (rows, columns) in enumerate(SIZES):
    INSIDE[number, :rows, :columns] = True


def canvases(channels, seed=0):
    """Images of several sizes, alone and on canvases that hold 7 elsewhere."""
    x = normal(3, 12, 11, channels, seed=seed)
    images = [x[i : i + 1, :rows, :columns] for i, (rows, columns) in enumerate(SIZES)]
    return images, FeatureMap.of(np.where(INSIDE, x, np.float32(7)), jnp.array(SIZES))


@pytest.mark.parametrize(
    ('kernel', 'stride', 'dilation'), [(3, 1, 1), (3, 2, 1), (3, 1, 2), (1, 2, 1), (7, 2, 1)]
)
def test_a_convolution_sees_zeros_outside(kernel, stride, dilation):
    images, maps = canvases(3)
    module = Conv(4, kernel, stride, dilation, bias=True)
    variables = random_variables(module, 0, images[0])
    result = quick(module.apply)(variables, maps)
    for i, image in enumerate(images):
        alone = module.apply(variables, image).array[0]
        assert (int(result.size[0][i]), int(result.size[1][i])) == alone.shape[:2]
        assert_close(result.array[i, : alone.shape[0], : alone.shape[1]], alone)


@pytest.mark.parametrize('ceil', [False, True])
def test_max_pooling(ceil):
    images, maps = canvases(2)
    positive = FeatureMap(jnp.maximum(maps.array, 0), maps.size)  # as behind a ReLU
    result = max_pool(positive, ceil)
    for i, image in enumerate(images):
        alone = max_pool(np.maximum(image, 0), ceil).array[0]
        assert (int(result.size[0][i]), int(result.size[1][i])) == alone.shape[:2]
        assert_close(result.array[i, : alone.shape[0], : alone.shape[1]], alone)


def test_average_pooling_counts_what_is_real():
    """Against torch on each image alone: values, and gradients, none of them outside."""
    torch = pytest.importorskip('torch')
    images, maps = canvases(2)
    pool = torch.nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
    cotangent = normal(3, 6, 6, 2, seed=1)
    result, pull = jax.vjp(lambda array: average_pool(FeatureMap(array, maps.size)).clean(), maps.array)
    of_input = np.asarray(pull(jnp.asarray(cotangent))[0])
    sizes = average_pool(maps).size
    for i, image in enumerate(images):
        rows, columns = int(sizes[0][i]), int(sizes[1][i])
        part = cotangent[i : i + 1, :rows, :columns]
        expected, (gradient,) = torch_gradients(pool, nchw(part), nchw(image))
        assert_close(result[i : i + 1, :rows, :columns], nhwc(expected))
        assert_close(of_input[i : i + 1, : image.shape[1], : image.shape[2]], nhwc(gradient))
        assert_close(average_pool(image).array, nhwc(expected))
    assert not of_input[~INSIDE[..., 0]].any()


@pytest.mark.parametrize('platform', ['cpu', 'any'])
def test_batch_normalisation_counts_what_is_real(platform):
    """Against torch on the real pixels, in a row: outputs, running statistics and gradients."""
    torch = pytest.importorskip('torch')
    images, maps = canvases(3)
    cotangents, _ = canvases(3, seed=1)
    row = lambda parts: np.concatenate([part.reshape(-1, 3) for part in parts]).T[None]  # (1, C, pixels)
    module = BatchNorm()
    variables = random_variables(module, 2, images[0], False)
    stats = variables['batch_stats']
    mean, var = torch.tensor(stats['mean']), torch.tensor(stats['var'])
    output, gradients = torch_gradients(
        lambda x, scale, bias: torch.nn.functional.batch_norm(x, mean, var, scale, bias, True, 0.1, 1e-5),
        row(cotangents),
        row(images),
        variables['params']['scale'],
        variables['params']['bias'],
    )
    cotangent = normal(3, 12, 11, 3, seed=1)  # not zero outside: what lies there must not matter

    def run(params, array):
        def apply(params, array):
            y, updates = module.apply(
                {'params': params, 'batch_stats': stats},
                FeatureMap(array, maps.size),
                True,
                mutable=['batch_stats'],
            )
            return y.clean(), updates['batch_stats']

        y, pull, updates = jax.vjp(apply, params, array, has_aux=True)
        return y, updates, *pull(jnp.asarray(cotangent))

    ours, updates, of_params, of_input = quick(with_forms_of(platform, run))(variables['params'], maps.array)
    inside = lambda x: row([x[i, :h, :w] for i, (h, w) in enumerate(SIZES)])
    assert_close(inside(np.asarray(ours)), output)
    assert_close(inside(np.asarray(of_input)), gradients[0])
    assert not np.asarray(of_input)[~INSIDE[..., 0]].any()
    assert_close(of_params['scale'], gradients[1])
    assert_close(of_params['bias'], gradients[2])
    assert_close(updates['mean'], mean)
    assert_close(updates['var'], var)


def test_images_that_fill_their_array_have_no_size():
    x = jnp.zeros((2, 5, 6, 1))
    assert FeatureMap.of(x).size is None
    assert FeatureMap.of(x, (5, 6)).size is None
    assert FeatureMap.of(x, (4, 6)).size == (4, 6)
    text = str(jax.make_jaxpr(lambda x: FeatureMap.of(x, (5, 6)).clean())(x))
    assert 'select' not in text and 'iota' not in text
    half = FeatureMap.of(x, (4, 6))
    again = jax.tree.map(lambda leaf: leaf, half)
    assert again.size == (4, 6) and jax.tree.structure(half) != jax.tree.structure(FeatureMap.of(x))
    assert not half.with_array(x + 1).clean()[:, 4:].any()
