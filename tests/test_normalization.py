"""The statistics of batch normalisation on several devices: by definition, in one exchange."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from reference import FAST, assert_close, normal

from ann_jax.kernels.forms import with_forms_of
from ann_jax.kernels.normalization import normalize
from ann_jax.parallel.mesh import make_mesh

CHANNELS = 5


def compiled(mesh, x, size, platform='any'):
    """The program of a mesh for x, which gives the output, the mean and the variance."""
    scale, bias = normal(CHANNELS, seed=1), normal(CHANNELS, seed=2)
    function = with_forms_of(platform, lambda x: normalize(x, scale, bias, 1e-5, size))
    sharding = NamedSharding(mesh, P('data', 'space'))
    with jax.set_mesh(mesh):
        lowered = jax.jit(function, in_shardings=sharding).lower(x)
        return lowered.compile(compiler_options=FAST), jax.device_put(x, sharding)


def collectives(program):
    return re.findall(r' (all-[a-z]+|collective-[a-z]+|reduce-scatter)(?:-start)?\(', program.as_text())


@pytest.mark.parametrize(('data', 'space'), [(1, 1), (8, 1), (4, 2), (1, 8)])
@pytest.mark.parametrize('rows', [16, 11, 3])
def test_statistics_by_definition(data, space, rows):
    """Images of `rows` rows on canvases of 16, far from 0; some devices have none of them."""
    x = normal(8, 16, 3, CHANNELS) * np.arange(1, CHANNELS + 1) + 100
    x += 10 * np.arange(8)[:, None, None, None]  # the devices differ
    x = x.astype(np.float32)
    canvas = x.copy()
    canvas[:, rows:] = np.nan
    mesh = make_mesh(jax.devices()[: data * space], data=data, space=space)
    program, placed = compiled(mesh, canvas, (rows, 3) if rows < 16 else None)
    y, mean, var = program(placed)
    real = x[:, :rows].astype(np.float64)
    assert_close(mean, real.mean((0, 1, 2)))
    assert_close(var, real.var((0, 1, 2)))
    exact = (real - real.mean((0, 1, 2))) / np.sqrt(real.var((0, 1, 2)) + 1e-5)
    assert_close(np.asarray(y)[:, :rows], exact * normal(CHANNELS, seed=1) + normal(CHANNELS, seed=2))


@pytest.mark.parametrize(('data', 'space'), [(8, 1), (4, 2)])
def test_devices_exchange_once(data, space):
    x = normal(8, 16, 3, CHANNELS)
    mesh = make_mesh(data=data, space=space)
    assert collectives(compiled(mesh, x, None)[0]) == ['all-gather']
    assert len(collectives(compiled(mesh, x, None, 'cpu')[0])) >= 2  # what two passes take


@pytest.mark.parametrize('shape', [(6, 16, 3, CHANNELS), (8, 9, 3, CHANNELS)])
def test_what_does_not_divide_is_normalised_too(shape):
    x = normal(*shape) + 10
    mesh = make_mesh(data=4, space=2)
    with jax.set_mesh(mesh):
        function = with_forms_of('any', lambda x: normalize(x, np.ones(CHANNELS), np.zeros(CHANNELS), 1e-5))
        _, mean, var = jax.jit(function)(x)
    assert_close(mean, x.mean((0, 1, 2), dtype=np.float64))
    assert_close(var, x.var((0, 1, 2), dtype=np.float64))


def test_equal_pixels_have_no_variance():
    mesh = make_mesh(jax.devices()[:2])
    program, placed = compiled(mesh, np.full((2, 4, 4, CHANNELS), 1000.1, np.float32), None)
    y, _, var = program(placed)
    assert not np.asarray(var).any()
    assert_close(y, np.broadcast_to(normal(CHANNELS, seed=2), y.shape))
