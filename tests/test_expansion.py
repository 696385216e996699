"""Normalised products without the map in between, against torch in float64 and against the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from reference import FAST, assert_close, error, normal, quick, random_variables

from ann_jax.kernels.expansion import normalize_product
from ann_jax.kernels.forms import with_forms_of
from ann_jax.kernels.normalization import normalize
from ann_jax.models.feature_map import FeatureMap
from ann_jax.models.layers import Conv
from ann_jax.models.resnet import Block
from ann_jax.parallel.mesh import make_mesh

EPSILON = 1e-5
INPUTS, FEATURES = 6, 20


def arguments(shape=(8, 16, 5), seed=0):
    """A map after a ReLU, a kernel, scale, bias, a shortcut and a cotangent, in float32."""
    x = np.maximum(normal(*shape, INPUTS, seed=seed) + 0.5, 0)
    kernel = normal(INPUTS, FEATURES, seed=seed + 1)
    scale, bias = normal(FEATURES, seed=seed + 2) + 1, normal(FEATURES, seed=seed + 3)
    # Their means are not 0: what is left of a constant would show.
    return x, kernel, scale, bias, *(normal(*shape, FEATURES, seed=seed + i) + 0.3 for i in (4, 5))


def exact(x, kernel, scale, bias, shortcut, cotangent, relu):
    """The map, the statistics and the gradients in float64; without the shortcut if it is None."""
    torch = pytest.importorskip('torch', reason='the reference is torch, which is not installed')
    given = [x, kernel, scale, bias, *([] if shortcut is None else [shortcut])]
    leaves = [torch.tensor(np.asarray(value, np.float64), requires_grad=True) for value in given]
    product = leaves[0] @ leaves[1]
    y = torch.nn.functional.batch_norm(
        product.reshape(-1, product.shape[-1]), None, None, *leaves[2:4], training=True, eps=EPSILON
    ).reshape(product.shape)
    y = y if shortcut is None else y + leaves[4]
    y = torch.relu(y) if relu else y
    gradients = torch.autograd.grad(y, leaves, torch.tensor(np.asarray(cotangent, np.float64)))
    flat = product.detach().reshape(-1, product.shape[-1])
    return [each.numpy() for each in (y.detach(), flat.mean(0), flat.var(0, unbiased=False), *gradients)]


def found(x, kernel, scale, bias, shortcut, cotangent, relu, size=None, normalizes=normalize_product):
    """The same by `normalize_product`."""

    def run(*args):
        y, *statistics = normalizes(*args[:4], EPSILON, size, args[4] if len(args) > 4 else None, relu)
        return y, statistics

    given = (x, kernel, scale, bias, *([] if shortcut is None else [shortcut]))
    y, pull, statistics = jax.vjp(run, *given, has_aux=True)
    return [y, *statistics, *pull(cotangent)]


def plain(x, kernel, scale, bias, epsilon, size, shortcut, relu):
    """The map in between is there, and rounded as x is."""
    y, *statistics = normalize(x @ kernel, scale, bias, epsilon, size)
    y = y if shortcut is None else y + shortcut
    return jnp.maximum(y, 0) if relu else y, *statistics


@pytest.mark.parametrize(('adds', 'relu'), [(False, False), (False, True), (True, True), (True, False)])
@pytest.mark.parametrize(
    ('data', 'space', 'platform'),
    [(1, 1, 'any'), (8, 1, 'any'), (4, 2, 'any'), (1, 1, 'cuda'), (4, 2, 'cuda')],
)
def test_by_definition(adds, relu, data, space, platform):
    *given, shortcut, cotangent = arguments()
    shortcut = shortcut if adds else None
    mesh = make_mesh(jax.devices()[: data * space], data=data, space=space)
    pixels, whole = NamedSharding(mesh, P('data', 'space')), NamedSharding(mesh, P())
    split = (pixels, whole, whole, whole, pixels if adds else None, pixels)
    with jax.set_mesh(mesh):
        program = jax.jit(with_forms_of(platform, lambda *args: found(*args, relu)), in_shardings=split)
        ours = program.lower(*given, shortcut, cotangent).compile(compiler_options=FAST)(
            *jax.device_put((*given, shortcut, cotangent), split)
        )
    for each, reference in zip(ours, exact(*given, shortcut, cotangent, relu), strict=True):
        assert_close(each, reference)


def test_images_that_do_not_fill_their_canvas():
    """Canvases of 16 rows, of which 11 are valid; the rest is not a number."""
    x, *given, shortcut, cotangent = arguments()
    canvas = np.where(np.arange(16)[:, None, None] < 11, x, np.nan).astype(np.float32)
    cut = lambda x: x[:, :11]
    ours = quick(lambda *args: found(*args, True, (11, 5)))(canvas, *given, shortcut, cotangent)
    reference = exact(cut(x), *given, cut(shortcut), cut(cotangent), True)
    for i, (each, expected) in enumerate(zip(ours, reference, strict=True)):
        assert_close(each if each.ndim < 3 else cut(each), expected)
        if i == 3:
            assert not np.asarray(each)[:, 11:].any()


@pytest.mark.parametrize('platform', ['any', 'cuda'])
def test_bfloat16_is_as_exact_as_with_the_map(platform):
    given = arguments((4, 24, 24))
    rounded = [jnp.asarray(x, jnp.float32 if x.ndim == 1 else jnp.bfloat16) for x in given]
    reference = exact(*(np.asarray(x, np.float32) for x in rounded), False)
    ours = quick(with_forms_of(platform, lambda *args: found(*args, False)))(*rounded)
    theirs = quick(lambda *args: found(*args, False, normalizes=plain))(*rounded)
    for each, with_map, expected in zip(ours, theirs, reference, strict=True):
        norm = lambda x, expected=expected: np.linalg.norm(np.asarray(x, np.float64) - expected)
        assert norm(each) <= 1.6 * norm(with_map) + 1e-6 * np.linalg.norm(expected)


def test_equal_pixels_are_not_blown_up():
    _, kernel, scale, bias, *_ = arguments()
    run = quick(lambda x: normalize_product(x, kernel, scale, bias, EPSILON))
    for seed in range(5):
        y, *_ = run(np.broadcast_to(1000 * normal(INPUTS, seed=seed), (2, 7, 9, INPUTS)))
        # The mean is as exact as a sum of numbers of this size, and is not divided by less than its error.
        assert np.abs(np.asarray(y) - bias).max() < 10


@pytest.mark.parametrize('inputs', [16, 64])
def test_blocks_in_bfloat16(inputs):
    """With and without a convolution in the shortcut."""
    x = np.maximum(normal(2, 9, 7, inputs), 0)
    variables = random_variables(Block(16, True), 0, x, False)
    run = lambda dtype: quick(
        lambda variables, x: Block(16, True, dtype=dtype).apply(variables, x, True, mutable=['batch_stats'])
    )(variables, jnp.asarray(x, dtype))
    (y, updates), (reference, expected) = run(jnp.bfloat16), run(jnp.float32)
    assert y.array.dtype == jnp.bfloat16
    assert error(y.array, reference.array) < 0.03
    assert jax.tree.structure(updates) == jax.tree.structure(expected)
    for each, other in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
        assert error(each, other) < 0.02


@pytest.mark.parametrize(
    ('widens', 'conv'),
    [
        (True, Conv(8, dtype=jnp.bfloat16)),
        (False, Conv(8)),
        (False, Conv(7, dtype=jnp.bfloat16)),
        (False, Conv(8, 3, dtype=jnp.bfloat16)),
        (False, Conv(8, stride=2, dtype=jnp.bfloat16)),
        (False, Conv(8, bias=True, dtype=jnp.bfloat16)),
    ],
)
def test_where_it_is_used(widens, conv):
    assert conv.widens(FeatureMap.of(np.zeros((1, 4, 4, 8), np.float32))) == widens
