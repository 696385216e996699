"""Convolution, batch normalisation, max pooling and dropout against torch's functional operators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import (
    assert_close,
    hwio,
    nchw,
    nhwc,
    normal,
    oihw,
    quick,
    shapes,
    torch_gradients,
    with_gradient,
)

from ann_jax.errors import ConfigError
from ann_jax.kernels.forms import with_forms_of
from ann_jax.models.layers import BatchNorm, Conv, ConvBN, Dropout2d, max_pool

# kernel size, stride, dilation, height, width, bias
CONVS = [
    (1, 1, 1, 6, 7, True),
    (1, 2, 1, 6, 7, False),
    (3, 1, 1, 6, 7, False),
    (3, 2, 1, 6, 7, True),
    (3, 1, 2, 9, 8, True),
    (3, 1, 4, 9, 8, False),
    (3, 2, 2, 9, 8, False),
    (7, 2, 1, 12, 15, False),
]


@pytest.mark.parametrize(('kernel_size', 'stride', 'dilation', 'height', 'width', 'bias'), CONVS)
def test_conv_equals_conv2d(kernel_size, stride, dilation, height, width, bias):
    torch = pytest.importorskip('torch')
    x = normal(2, height, width, 5)
    params = {'kernel': normal(kernel_size, kernel_size, 5, 4, seed=1), 'bias': normal(4, seed=2)}
    if not bias:
        del params['bias']
    options = {'stride': stride, 'dilation': dilation, 'padding': dilation * (kernel_size // 2)}
    size = [(n - 1) // stride + 1 for n in (height, width)]
    cotangent = normal(2, *size, 4, seed=3)
    output, gradients = torch_gradients(
        lambda *inputs: torch.conv2d(*inputs, **options),
        nchw(cotangent),
        nchw(x),
        oihw(params['kernel']),
        *([params['bias']] if bias else []),
    )

    module = Conv(4, kernel_size, stride, dilation, bias)

    @quick
    def run(params, x):
        y, pull = jax.vjp(lambda params, x: module.apply({'params': params}, x).array, params, x)
        return y, *pull(cotangent)

    ours, grad_params, grad_x = run(params, x)
    assert_close(ours, nhwc(output))
    assert_close(grad_x, nhwc(gradients[0]))
    assert_close(grad_params['kernel'], hwio(gradients[1]))
    if bias:
        assert_close(grad_params['bias'], gradients[2])


def test_a_kernel_without_a_middle_is_refused():
    with pytest.raises(ConfigError, match='kernel_size=4: symmetric padding takes an odd one'):
        shapes(lambda: Conv(4, 4, 4).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))


def test_conv_computes_in_its_dtype_and_keeps_float32_parameters():
    module = Conv(4, 3, bias=True, dtype=jnp.bfloat16)
    x = jnp.ones((1, 5, 5, 3))
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    assert jax.eval_shape(module.apply, variables, x).array.dtype == jnp.bfloat16


def norm_variables(channels):
    params = {'scale': normal(channels, seed=1), 'bias': normal(channels, seed=2)}
    # The variance is not the square of anything the batch holds, the mean is not 0.
    stats = {'mean': normal(channels, seed=3) + 2, 'var': np.exp(normal(channels, seed=4))}
    return {'params': params, 'batch_stats': stats}


# The third has a mean that a variance as E[x^2] - E[x]^2 would not survive.
@pytest.mark.parametrize(('shape', 'offset'), [((2, 5, 7, 3), 0), ((3, 1, 1, 4), 1), ((2, 6, 5, 3), 300)])
@pytest.mark.parametrize(('train', 'platform'), [(True, 'cpu'), (True, 'any'), (False, 'any')])
def test_batch_norm_equals_torch(shape, offset, train, platform):
    torch = pytest.importorskip('torch')
    x, cotangent = normal(*shape) + offset, normal(*shape, seed=5)
    variables = norm_variables(shape[-1])
    if platform == 'any':  # accelerators sum about the running mean
        variables['batch_stats']['mean'] += offset
    mean, var = (torch.tensor(variables['batch_stats'][name]) for name in ('mean', 'var'))
    output, gradients = torch_gradients(
        lambda x, scale, bias: torch.nn.functional.batch_norm(x, mean, var, scale, bias, train, 0.1, 1e-5),
        nchw(cotangent),
        nchw(x),
        variables['params']['scale'],
        variables['params']['bias'],
    )

    def run(params, x):
        def apply(params, x):
            y, stats = BatchNorm().apply({**variables, 'params': params}, x, train, mutable=['batch_stats'])
            return y.array, stats

        y, pull, updates = jax.vjp(apply, params, x, has_aux=True)
        return y, updates['batch_stats'], *pull(cotangent)

    ours, stats, grad_params, grad_x = quick(with_forms_of(platform, run))(variables['params'], x)
    # Numbers around 300 have 1.5e-5 of room between them, whoever subtracts their mean.
    bound = 1e-5 if offset < 100 else 1e-4
    assert_close(ours, nhwc(output), bound)
    assert_close(grad_x, nhwc(gradients[0]), bound)
    assert_close(grad_params['scale'], gradients[1], bound)
    assert_close(grad_params['bias'], gradients[2], bound)
    # torch wrote the new running statistics in place.
    assert_close(stats['mean'], mean)
    assert_close(stats['var'], var)


def test_statistics_of_a_single_pixel_are_refused_as_by_torch():
    run = lambda x, train: BatchNorm().apply(norm_variables(3), x, train, mutable=['batch_stats'])[0].array
    with pytest.raises(ConfigError, match=r'^BatchNorm: a batch of a single pixel .*train.batch_size'):
        run(normal(1, 1, 1, 3), True)
    assert run(normal(1, 1, 1, 3), False).shape == (1, 1, 1, 3)
    assert run(normal(2, 1, 1, 3), True).shape == (2, 1, 1, 3)


def test_batch_norm_takes_bfloat16_statistics_in_float32():
    x = jnp.asarray(normal(4, 16, 16, 2) + 8, jnp.bfloat16)
    y, updates = BatchNorm().apply(norm_variables(2), x, True, mutable=['batch_stats'])
    exact = np.asarray(x, np.float64).mean((0, 1, 2))
    assert y.array.dtype == jnp.bfloat16
    assert_close(updates['batch_stats']['mean'], 0.9 * norm_variables(2)['batch_stats']['mean'] + 0.1 * exact)


def test_conv_bn_is_convolution_norm_and_relu():
    x = normal(2, 5, 6, 3)
    variables = norm_variables(4)
    variables = {name: {'bn': tree} for name, tree in variables.items()}
    variables['params']['conv'] = {'kernel': normal(3, 3, 3, 4, seed=6)}
    y = Conv(4, 3, 2).apply({'params': variables['params']['conv']}, x)
    y = BatchNorm().apply({name: tree['bn'] for name, tree in variables.items()}, y, False)
    assert (y.array < 0).any()
    assert_close(ConvBN(4, 3, 2, relu=False).apply(variables, x, False).array, y.array)
    assert_close(ConvBN(4, 3, 2).apply(variables, x, False).array, jnp.maximum(y.array, 0))


@pytest.mark.parametrize('platform', ['any', 'tpu'])
@pytest.mark.parametrize('ceil', [False, True])
@pytest.mark.parametrize('height', range(1, 11))
def test_max_pool_equals_max_pool2d(height, ceil, platform):
    torch = pytest.importorskip('torch')
    # Every size from 1 to 20, one side odd and one even; all below 0, where padding with 0 would show.
    x = normal(1, height, 21 - height, 2) - 5
    pool = lambda x: torch.nn.functional.max_pool2d(x, 3, 2, 1, ceil_mode=ceil)
    cotangent = normal(*jax.eval_shape(lambda x: max_pool(x, ceil).array, x).shape, seed=1)
    ours, gradient = with_gradient(lambda x: max_pool(x, ceil).array, x, cotangent, platform)
    output, (expected,) = torch_gradients(pool, nchw(cotangent), nchw(x))
    np.testing.assert_array_equal(ours, nhwc(output))
    assert_close(gradient, nhwc(expected))


@pytest.mark.parametrize('platform', ['any', 'tpu'])
def test_max_pool_sends_the_gradient_to_the_first_of_equals(platform):
    torch = pytest.importorskip('torch')
    x = np.maximum(normal(2, 11, 12, 3).round(), 0)  # as behind a ReLU: mostly zeros and other equals
    pool = lambda x: torch.nn.functional.max_pool2d(x, 3, 2, 1, ceil_mode=True)
    cotangent = normal(2, 6, 7, 3, seed=1)
    _, gradient = with_gradient(lambda x: max_pool(x, True).array, x, cotangent, platform)
    _, (expected,) = torch_gradients(pool, nchw(cotangent), nchw(x))
    assert_close(gradient, nhwc(expected))


def test_max_pool_has_the_gradient_of_its_form_where_that_is_taken_later():
    torch = pytest.importorskip('torch')
    x, cotangent = normal(2, 11, 12, 3), normal(2, 6, 7, 3, seed=1)
    pool = lambda x: torch.nn.functional.max_pool2d(x, 3, 2, 1, ceil_mode=True)
    _, pull = jax.vjp(with_forms_of('tpu', lambda x: max_pool(x, True).array), x)
    _, (expected,) = torch_gradients(pool, nchw(cotangent), nchw(x))
    assert_close(pull(cotangent)[0], nhwc(expected))


def test_dropout_drops_whole_channels_and_keeps_the_expectation():
    x = np.ones((4, 3, 5, 1000), np.float32)
    y = np.asarray(Dropout2d(0.3).apply({}, x, True, rngs={'dropout': jax.random.key(0)}).array)
    channels = y[:, :1, :1]
    np.testing.assert_array_equal(y, np.broadcast_to(channels, y.shape))
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.7], rtol=1e-6)
    assert abs(y.mean() - 1) < 0.04  # 4000 draws: four standard deviations
    assert (channels[0] != channels[1]).any()  # each image its own
    np.testing.assert_array_equal(Dropout2d(0.3).apply({}, x, False).array, x)


@pytest.mark.parametrize('rate', [2.0, -1.0, 1.0])
def test_a_rate_of_dropout_out_of_range_is_refused(rate):
    """In training, 2 dropped all features, and -1 halved them."""
    with pytest.raises(ConfigError, match='model.dropout=.*: must be a number from 0 to 0.99'):
        Dropout2d(rate).apply({}, np.ones((1, 2, 2, 3), np.float32), False)
