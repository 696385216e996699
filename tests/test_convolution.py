"""Winograd's form of 3x3 convolutions against torch, and the options of the compiler."""

import jax
import numpy as np
import pytest
from reference import assert_close, nchw, nhwc, normal, oihw, quick

from ann_jax.convolution import compiler_options, convolve, winograd_kernel


@pytest.mark.parametrize('dilation', [1, 2, 4, 5])
@pytest.mark.parametrize('size', [(1, 1), (3, 2), (8, 16), (9, 13), (17, 5), (33, 31)])
def test_winograd_equals_conv2d(size, dilation):
    torch = pytest.importorskip('torch')
    x, kernel = normal(2, *size, 6), normal(3, 3, 6, 5, seed=1)
    arrays = map(torch.from_numpy, (nchw(x), oihw(kernel)))
    expected = torch.conv2d(*arrays, padding=dilation, dilation=dilation)
    ours = quick(lambda x, k: convolve(x, k, dilation=dilation))(x, winograd_kernel(kernel))
    assert_close(ours, nhwc(expected.numpy()))


def test_winograd_takes_fewer_products():
    x, kernel = np.ones((1, 32, 32, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)
    flops = [
        jax.jit(convolve).lower(x, k).compile().cost_analysis()['flops']
        for k in (kernel, winograd_kernel(kernel))
    ]
    assert flops[1] < 0.6 * flops[0]


def test_the_compiler_knows_its_options():
    options = compiler_options()
    if jax.default_backend() == 'cpu':
        assert options
    x = np.ones((256, 256), np.float32)
    program = jax.jit(lambda x: x @ x, compiler_options=options).lower(x).compile()
    assert 'ynn' not in program.as_text()
