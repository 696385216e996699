"""3x3 convolutions and their gradients against torch, sums against float64, options of the compiler."""

import jax
import numpy as np
import pytest
from reference import assert_close, nchw, nhwc, normal, oihw, quick

from ann_jax.kernels import convolution, forms
from ann_jax.kernels.convolution import batch_to_space, convolve, direct, space_to_batch
from ann_jax.kernels.products import product
from ann_jax.kernels.reductions import global_norm, sum_of_squares, sum_pixels
from ann_jax.kernels.winograd import tiles, winograd
from ann_jax.parallel.mesh import make_mesh
from ann_jax.parallel.programs import compiler_options, jit, known


@pytest.fixture
def bounds(monkeypatch):
    """Sets the channels from which forms are used; what was traced with others is forgotten."""

    def change(**values):
        for name, value in values.items():
            monkeypatch.setattr(convolution, name, value)
        forms.with_static.cache_clear()

    yield change
    forms.with_static.cache_clear()


def assert_equals_torch(size, dilation, channels, platform='cpu', width=3, stride=1):
    """The convolution of two maps and both gradients against torch's."""
    torch = pytest.importorskip('torch')
    x, kernel = normal(2, *size, 6), normal(width, width, 6, channels, seed=1)
    gradient = normal(2, *((n - 1) // stride + 1 for n in size), channels, seed=2)
    arrays = [torch.from_numpy(a).requires_grad_() for a in (nchw(x), oihw(kernel))]
    options = {'stride': stride, 'dilation': dilation}
    expected = torch.conv2d(*arrays, padding=width // 2 * dilation, **options)
    expected.backward(torch.from_numpy(nchw(gradient)))

    def ours(x, kernel, gradient):
        y, pull = jax.vjp(lambda x, k: convolve(x, k, **options), x, kernel)
        return y, *pull(gradient)

    y, of_input, of_kernel = quick(forms.with_forms_of(platform, ours))(x, kernel, gradient)
    assert_close(y, nhwc(expected.detach().numpy()))
    assert_close(of_input, nhwc(arrays[0].grad.numpy()))
    assert_close(of_kernel, arrays[1].grad.numpy().transpose(2, 3, 1, 0))


SIZES = [(1, 1), (3, 2), (8, 16), (9, 13), (17, 5), (40, 31)]


@pytest.mark.parametrize('dilation', [1, 2, 4, 5])
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('widest', [6, 7])
def test_wide_convolution_and_its_gradients_equal_torch(bounds, widest, size, dilation):
    bounds(WIDE=6, WIDEST=widest)
    assert_equals_torch(size, dilation, 300)


# Rows of x, inputs and features, so that both forms of each gradient are used.
@pytest.mark.parametrize('platform', ['cpu', 'cuda', 'any'])
@pytest.mark.parametrize('sizes', [(7, 40, 30), (7, 30, 40), (300, 12, 9), (300, 9, 12), (1, 1, 1)])
def test_product_and_its_gradients_equal_their_definition(sizes, platform):
    rows, inputs, features = sizes
    x, kernel, gradient = (
        normal(rows, inputs),
        normal(inputs, features, seed=1),
        normal(rows, features, seed=2),
    )

    def ours(x, kernel, gradient):
        y, pull = jax.vjp(product, x.reshape(1, rows, 1, inputs), kernel)
        alone, vectors = product(x.reshape(1, rows, 1, inputs), kernel), product(x, kernel)
        return y, *pull(gradient.reshape(y.shape)), alone, vectors

    picked = forms.with_forms_of(platform, ours)
    y, of_input, of_kernel, alone, vectors = quick(picked)(x, kernel, gradient)
    assert y.shape == alone.shape == (1, rows, 1, features)
    x, kernel, gradient = (a.astype(np.float64) for a in (x, kernel, gradient))
    for each in (y[0, :, 0], alone[0, :, 0], vectors):
        assert_close(each, x @ kernel)
    assert_close(of_input[0, :, 0], gradient @ kernel.T)
    assert_close(of_kernel, x.T @ gradient)


@pytest.mark.parametrize('dilation', [2, 4, 5])
@pytest.mark.parametrize('size', SIZES)
def test_dilated_convolution_on_gpus_and_its_gradients_equal_torch(size, dilation):
    assert_equals_torch(size, dilation, 5, 'cuda')


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('width', [3, 5, 7])
def test_strided_convolution_of_images_on_tpus_equals_torch(size, width):
    assert_equals_torch(size, 1, 5, 'tpu', width, stride=2)


def test_no_kernel_on_gpus_is_as_large_as_the_map():
    """Which cuDNN would get as a convolution of few channels by a huge kernel."""

    def gradient(convolution):
        loss = lambda k: (convolution(x, k) ** 2).sum()
        return jax.jit(jax.grad(loss)).trace(kernel).lower(lowering_platforms=('cuda',)).as_text()

    x, kernel = np.ones((2, 16, 24, 4), np.float32), np.ones((3, 3, 4, 4), np.float32)
    assert 'stride = [2, 2]' in gradient(lambda x, k: direct(x, k, 1, 2))
    assert 'stride = [2, 2]' not in gradient(lambda x, k: convolve(x, k, dilation=2))


@pytest.mark.parametrize('rate', [2, 4])
def test_space_to_batch_equals_a_dilated_convolution(rate):
    torch = pytest.importorskip('torch')
    x, kernel = normal(2, 13, 10, 5), normal(3, 3, 5, 4, seed=1)
    x_torch, kernel_torch = torch.tensor(nchw(x)), torch.tensor(oihw(kernel))
    expected = torch.nn.functional.conv2d(x_torch, kernel_torch, padding=rate, dilation=rate)
    plain = direct(space_to_batch(x, rate), kernel, 1, 1)
    assert_close(batch_to_space(plain, rate, 13, 10), nhwc(expected))


def test_a_step_takes_fewer_products_for_wide_kernels():
    def flops(convolution):
        loss = lambda x, k: (convolution(x, k) ** 2).sum()
        program = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile()
        return program.cost_analysis()['flops']

    for n, share in (convolution.WIDE, 0.85), (convolution.WIDEST, 0.55):
        x, kernel = np.ones((1, 32, 32, n), np.float32), np.ones((3, 3, n, n), np.float32)
        assert flops(convolve) < share * flops(lambda x, k: direct(x, k, 1, 1))


@pytest.mark.parametrize('dilation', [1, 2, 4])
def test_winograd_takes_no_tile_beyond_the_map(dilation):
    """Along an axis of 17 pixels, pairs of neighbours `dilation` apart: 9, none begun twice."""
    assert tiles((1, 17, 16, 1), dilation) == (9, 8)


@pytest.mark.parametrize('activated', [True, False])
def test_winograd_loses_no_more_than_a_digit_to_the_plain_form(activated):
    torch = pytest.importorskip('torch')
    x, kernel = normal(1, 17, 17, 256), normal(3, 3, 256, 64, seed=1)
    x = np.maximum(x, 0) if activated else x
    exact = torch.conv2d(
        *(torch.from_numpy(a).double() for a in (nchw(x), oihw(kernel))), padding=2, dilation=2
    )
    exact = nhwc(exact)
    plain, ours = (
        np.linalg.norm(quick(form)(x, kernel) - exact) / np.linalg.norm(exact)
        for form in (lambda x, k: direct(x, k, 1, 2), lambda x, k: winograd(x, k, 2))
    )
    assert ours <= 2.5 * plain, (ours, plain)


def test_winograd_takes_fewer_products():
    x, kernel = np.ones((1, 32, 32, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)
    flops = [
        jax.jit(function).lower(x, kernel).compile().cost_analysis()['flops']
        for function in (lambda x, k: direct(x, k, 1, 1), winograd)
    ]
    assert flops[1] < 0.6 * flops[0]


def test_inference_takes_winograds_products_earlier_than_training(bounds):
    """Without gradients they take less time to compile."""
    bounds(WIDER=64, WIDEST=128)
    x, kernel = np.ones((1, 32, 32, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)
    forward = jax.jit(convolve).lower(x, kernel).compile().cost_analysis()['flops']
    plain = jax.jit(lambda x, k: direct(x, k, 1, 1)).lower(x, kernel).compile().cost_analysis()['flops']
    kept = jax.jit(lambda x, k: jax.vjp(convolve, x, k)[0]).lower(x, kernel).compile()
    assert forward < 0.6 * plain
    assert kept.cost_analysis()['flops'] > 0.9 * plain


def test_the_compiler_knows_its_options():
    options = compiler_options(jax.devices()[0])
    assert len(options) == 2
    assert known({'xla_no_such_option': True}, jax.devices()[0]) == {}
    x = np.ones((256, 256), np.float32)
    program = jit(lambda x: x @ x, make_mesh(jax.devices()[:1])).lower(x).compile()
    assert 'ynn' not in program.as_text()


@pytest.mark.parametrize('size', [(1, 1), (9, 31), (32, 33), (7, 97)])
def test_sum_pixels_is_the_sum_in_float64(size):
    x = normal(2, *size, 5) + 3
    assert_close(jax.jit(sum_pixels)(x), x.astype(np.float64).sum((0, 1, 2)), 1e-6)


@pytest.mark.parametrize('shape', [(), (19,), (1, 1, 7, 27), (3, 3, 3, 64), (3, 3, 256, 512)])
def test_sum_of_squares_is_the_sum_in_float64(shape):
    x = normal(*shape)
    assert_close(jax.jit(sum_of_squares)(x), np.square(x, dtype=np.float64).sum(), 1e-6)


def test_global_norm_is_the_norm_in_float64():
    tree = {'scale': normal(19), 'bias': normal(64, seed=1), 'kernel': normal(3, 3, 8, 16, seed=2)}
    expected = np.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in tree.values()))
    assert_close(jax.jit(global_norm)(tree), expected, 1e-6)


def test_sums_do_not_put_their_terms_into_memory():
    x = normal(2, 64, 97, 64)
    for function in sum_of_squares, lambda x: sum_pixels(x * x):
        program = jit(function, make_mesh(jax.devices()[:1])).lower(x).compile()
        assert program.memory_analysis().temp_size_in_bytes < x.nbytes / 16
