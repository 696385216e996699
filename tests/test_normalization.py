"""The statistics of batch normalisation in the forms for CPUs and for accelerators, on several devices."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from reference import FAST, assert_close, normal, quick, torch_gradients

from ann_jax.kernels.forms import with_forms_of
from ann_jax.kernels.normalization import normalize
from ann_jax.parallel.mesh import make_mesh

CHANNELS = 5
SCALE, BIAS = normal(CHANNELS, seed=1), normal(CHANNELS, seed=2)


def compiled(mesh, x, size=None, about=0.0, platform='any'):
    """The program of a mesh for x, which gives the output, the mean and the variance; and x on the mesh."""
    function = with_forms_of(platform, lambda x: normalize(x, SCALE, BIAS, 1e-5, size, about))
    sharding = NamedSharding(mesh, P('data', 'space'))
    with jax.set_mesh(mesh):
        lowered = jax.jit(function, in_shardings=sharding).lower(x)
        return lowered.compile(compiler_options=FAST), jax.device_put(x, sharding)


@pytest.mark.parametrize(('data', 'space'), [(1, 1), (8, 1), (4, 2)])
@pytest.mark.parametrize('rows', [16, 11])
@pytest.mark.parametrize(('platform', 'about'), [('any', 100.0), ('cpu', 0.0)])
def test_statistics_by_definition(data, space, rows, platform, about):
    """Images of `rows` rows on canvases of 16; their mean is far from 0."""
    x = (normal(8, 16, 3, CHANNELS) * np.arange(1, CHANNELS + 1) + 100).astype(np.float32)
    canvas = x.copy()
    canvas[:, rows:] = np.nan
    mesh = make_mesh(jax.devices()[: data * space], data=data, space=space)
    program, placed = compiled(mesh, canvas, (rows, 3) if rows < 16 else None, about, platform)
    y, mean, var = program(placed)
    real = x[:, :rows].astype(np.float64)
    assert_close(mean, real.mean((0, 1, 2)))
    assert_close(var, real.var((0, 1, 2)))
    exact = (real - real.mean((0, 1, 2))) / np.sqrt(real.var((0, 1, 2)) + 1e-5)
    assert_close(np.asarray(y)[:, :rows], exact * SCALE + BIAS)


@pytest.mark.parametrize('distance', [0, 1, 10, 100])
def test_a_guess_costs_the_digits_of_its_squared_distance(distance):
    x = normal(4, 16, 16, CHANNELS) + distance
    program, placed = compiled(make_mesh(jax.devices()[:1]), x)
    _, mean, var = program(placed)
    assert_close(mean, x.mean((0, 1, 2), dtype=np.float64))
    assert_close(var, x.var((0, 1, 2), dtype=np.float64), 1e-6 + 2.5e-7 * distance**2)


def test_equal_pixels_are_not_blown_up():
    program, placed = compiled(make_mesh(jax.devices()[:1]), np.full((2, 4, 4, CHANNELS), 3000.1, np.float32))
    y, *_ = program(placed)
    assert np.abs(np.asarray(y) - BIAS).max() < 1e-2


@pytest.mark.parametrize('platform', ['any', 'cpu', 'cuda'])
@pytest.mark.parametrize('relu', [False, True])
def test_gradients_of_every_form(platform, relu):
    torch = pytest.importorskip('torch', reason='the reference is torch, which is not installed')
    x, cotangent = normal(2, 9, 7, CHANNELS) + 1, normal(2, 9, 7, CHANNELS, seed=3) + 0.3

    def reference(x, scale, bias):
        y = torch.nn.functional.batch_norm(
            x.reshape(-1, CHANNELS), None, None, scale, bias, training=True, eps=1e-5
        ).reshape(x.shape)
        return torch.relu(y) if relu else y

    y, gradients = torch_gradients(reference, cotangent, x, SCALE, BIAS)

    def ours(x, scale, bias):
        y, pull = jax.vjp(lambda *args: normalize(*args, 1e-5, None, 1.0, relu)[0], x, scale, bias)
        return y, *pull(cotangent)

    found = quick(with_forms_of(platform, ours))(x, SCALE, BIAS)
    for each, expected in zip(found, (y, *gradients), strict=True):
        assert_close(each, expected)


def test_devices_sum_once():
    program, _ = compiled(make_mesh(), normal(8, 16, 3, CHANNELS))
    assert re.findall(r' all-reduce(?:-start)?\(', program.as_text()) == [' all-reduce(']
