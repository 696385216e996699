"""Sampling of anchors and resizing against torch's operators."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import assert_close, nchw, nhwc, normal, quick, torch_gradients, with_gradient

from ann_jax.kernels.anchors import sample_anchors
from ann_jax.kernels.resizing import resize_bilinear


def torch_anchors(x, kind, sizes):
    import torch

    pool = getattr(torch.nn.functional, f'adaptive_{kind}_pool2d')
    return torch.cat([pool(x, n).flatten(2) for n in sizes], 2)


SHAPES = [(1, 1, (1, 3)), (5, 2, (1, 3, 6, 8)), (40, 37, (1, 3, 6, 8)), (8, 16, (8,)), (7, 7, (14,))] + [
    (int(h), int(w), sizes)
    for (h, w), sizes in zip(
        np.random.default_rng(0).integers(1, 41, (8, 2)),
        [(1, 3, 6, 8), (2, 4), (5,), (1, 2, 3, 6), (7, 9), (1, 3, 6, 8), (4, 8, 11), (3,)],
        strict=True,
    )
]


@pytest.mark.parametrize(('height', 'width', 'sizes'), SHAPES)
def test_average_anchors_equal_adaptive_average_pooling(height, width, sizes):
    x = normal(2, height, width, 3)
    cotangent = normal(2, sum(n * n for n in sizes), 3, seed=1)
    output, (gradient,) = torch_gradients(
        lambda x: torch_anchors(x, 'avg', sizes), cotangent.transpose(0, 2, 1), nchw(x)
    )
    ours, ours_gradient = with_gradient(lambda x: sample_anchors(x, 'average', sizes), x, cotangent)
    assert_close(ours, output.transpose(0, 2, 1))
    assert_close(ours_gradient, nhwc(gradient))


@pytest.mark.parametrize(('height', 'width', 'sizes'), SHAPES[:8])
def test_max_anchors_equal_adaptive_max_pooling(height, width, sizes):
    x = normal(2, height, width, 3)
    cotangent = normal(2, sum(n * n for n in sizes), 3, seed=1)
    output, (gradient,) = torch_gradients(
        lambda x: torch_anchors(x, 'max', sizes), cotangent.transpose(0, 2, 1), nchw(x)
    )
    ours, ours_gradient = with_gradient(lambda x: sample_anchors(x, 'max', sizes), x, cotangent)
    np.testing.assert_array_equal(ours, output.transpose(0, 2, 1))
    assert_close(ours_gradient, nhwc(gradient))


@pytest.mark.parametrize(('height', 'width', 'sizes'), SHAPES[:8])
def test_of_equal_pixels_the_first_gets_the_gradient_of_a_max_anchor(height, width, sizes):
    """As after ReLU, where most are zero."""
    x = np.maximum(normal(2, height, width, 3), 0).round()
    cotangent = normal(2, sum(n * n for n in sizes), 3, seed=1)
    _, (gradient,) = torch_gradients(
        lambda x: torch_anchors(x, 'max', sizes), cotangent.transpose(0, 2, 1), nchw(x)
    )
    _, ours = with_gradient(lambda x: sample_anchors(x, 'max', sizes), x, cotangent)
    assert_close(ours, nhwc(gradient))


def test_the_gradient_of_max_anchors_is_finite_where_pixels_are_computed_twice():
    """XLA computes x * a + b again for the gradient and, with these options, rounds it otherwise."""
    x, a, b = normal(2, 9, 9, 8), normal(8, seed=1), normal(8, seed=2)
    loss = lambda x, a, b: jnp.square(sample_anchors(jax.nn.relu(x * a + b), 'max', (1, 3, 6))).sum()
    for gradient in quick(jax.grad(loss, (0, 1, 2)))(x, a, b):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize('sampling', ['average', 'max', 'random', 'all'])
def test_sampling_keeps_bfloat16(sampling):
    x = jax.ShapeDtypeStruct((1, 6, 7, 2), jnp.bfloat16)
    anchors = jax.eval_shape(lambda x: sample_anchors(x, sampling, (1, 3), jax.random.key(0)), x)
    assert anchors.dtype == jnp.bfloat16


def numbered(batch, height, width):
    """A map whose pixels hold their own row-major number, and the number of the image."""
    number = np.broadcast_to(np.arange(height * width, dtype=np.float32), (batch, height * width))
    image = np.broadcast_to(np.arange(batch, dtype=np.float32)[:, None], number.shape)
    return jnp.asarray(np.stack([number, image], -1).reshape(batch, height, width, 2))


def test_random_anchors_are_pixels_the_same_in_each_image_and_call():
    x, sizes = numbered(3, 9, 11), (1, 3, 6, 8)
    sample = quick(lambda key: sample_anchors(x, 'random', sizes, key))
    first, again, other = (np.asarray(sample(jax.random.key(seed))) for seed in (3, 3, 4))
    assert first.shape == (3, 110, 2)
    assert set(first[0, :, 0]) <= set(range(99))
    np.testing.assert_array_equal(first[:, :, 1], np.arange(3)[:, None].repeat(110, 1))
    np.testing.assert_array_equal(first[1:, :, 0], first[:1, :, 0].repeat(2, 0))
    np.testing.assert_array_equal(again, first)
    assert (other != first).any()


def test_random_anchors_of_a_level_do_not_repeat():
    level = quick(lambda: sample_anchors(numbered(1, 8, 8), 'random', (8,), jax.random.key(0)))()[0, :, 0]
    np.testing.assert_array_equal(np.sort(level), np.arange(64))


def test_random_anchors_from_fewer_pixels_than_anchors():
    anchors = quick(lambda: sample_anchors(numbered(1, 2, 3), 'random', (1, 8), jax.random.key(0)))()
    assert anchors.shape == (1, 65, 2)
    assert set(np.asarray(anchors)[0, :, 0]) == set(range(6))


def test_all_keeps_every_pixel_in_row_major_order():
    anchors = sample_anchors(numbered(2, 3, 5), 'all', (1, 3))
    np.testing.assert_array_equal(anchors[0, :, 0], np.arange(15))
    assert anchors.shape == (2, 15, 2)


def test_unknown_sampling_names_the_known_ones():
    with pytest.raises(ValueError, match="'median'.*average, max, random, all"):
        sample_anchors(jnp.zeros((1, 4, 4, 1)), 'median', (1,))


RESIZES = [((7, 9), (7, 9)), ((5, 6), (1, 1)), ((1, 1), (4, 7)), ((1, 8), (6, 1)), ((9, 13), (65, 97))] + [
    (tuple(map(int, a)), tuple(map(int, b))) for a, b in np.random.default_rng(1).integers(1, 50, (5, 2, 2))
]


@pytest.mark.parametrize('platform', ['any', 'cuda', 'tpu'])
@pytest.mark.parametrize('align_corners', [True, False])
@pytest.mark.parametrize(('size', 'new_size'), RESIZES)
def test_resize_equals_interpolate(size, new_size, align_corners, platform):
    torch = pytest.importorskip('torch')
    x, cotangent = normal(2, *size, 3), normal(2, *new_size, 3, seed=1)
    interpolate = functools.partial(
        torch.nn.functional.interpolate, size=new_size, mode='bilinear', align_corners=align_corners
    )
    output, (gradient,) = torch_gradients(interpolate, nchw(cotangent), nchw(x))
    resize = lambda x: resize_bilinear(x, new_size, align_corners)
    ours, ours_gradient = with_gradient(resize, x, cotangent, platform)
    assert_close(ours, nhwc(output))
    assert_close(ours_gradient, nhwc(gradient))


def test_resize_keeps_bfloat16_and_rounds_once():
    x = jnp.asarray(normal(1, 5, 6, 2), jnp.bfloat16)
    output, pull = jax.vjp(lambda x: resize_bilinear(x, (11, 13), True), x)
    exact = resize_bilinear(x.astype(jnp.float32), (11, 13), True)
    assert output.dtype == jnp.bfloat16
    np.testing.assert_array_equal(output, exact.astype(jnp.bfloat16))
    assert pull(output)[0].dtype == jnp.bfloat16
