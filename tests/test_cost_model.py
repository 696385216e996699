"""FLOPs, bytes and exchanges of programs by definition, and what the page on scaling says of them."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from test_space import NORMALIZE, mesh_of, network

from ann_jax.benchmark.counting import count_flops
from ann_jax.kernels.convolution import direct
from ann_jax.kernels.forms import with_forms_of
from ann_jax.kernels.resizing import HALO
from ann_jax.models.ann import ANN
from ann_jax.models.feature_map import FeatureMap
from ann_jax.models.initializers import shape_variables
from ann_jax.models.layers import BatchNorm, Conv
from ann_jax.models.resnet import ResNet, Stem
from ann_jax.tools import cost_model
from ann_jax.training.losses import segmentation_loss
from ann_jax.training.optimizers import sgd
from ann_jax.training.schedules import poly_schedule
from ann_jax.training.step import make_train_step

ROOT = Path(__file__).parent.parent


def with_gradients(function):
    """The function, and the gradients of all its arguments."""

    def run(*args):
        y, pull = jax.vjp(function, *args)
        return y, pull(y)

    return run


@pytest.mark.parametrize(
    ('size', 'stride', 'dilation'), [(3, 1, 1), (3, 1, 2), (3, 2, 1), (7, 2, 1), (3, 1, 4), (1, 1, 1)]
)
def test_convolutions_count_their_taps_and_each_gradient_as_many(size, stride, dilation):
    x, kernel = jnp.ones((2, 9, 12, 3)), jnp.ones((size, size, 3, 5))
    convolve = functools.partial(direct, stride=stride, dilation=dilation)
    # Of ones, each term is one.
    terms = int(convolve(x, kernel).sum())
    assert count_flops(convolve, x, kernel) == 2 * terms
    assert count_flops(with_gradients(convolve), x, kernel) == 3 * 2 * terms


def test_products_count_and_so_do_loops_branches_and_what_is_computed_again():
    x, kernel = jnp.ones((2, 4, 8)), jnp.ones((8, 8))
    product = lambda x, kernel: x @ kernel
    once = 2 * 2 * 4 * 8 * 8
    assert count_flops(product, x, kernel) == once
    assert count_flops(with_gradients(product), x, kernel) == 3 * once
    assert count_flops(lambda x, k: jax.lax.fori_loop(0, 5, lambda _, x: x @ k, x), x, kernel) == 5 * once
    # What is left of two arrays at the end takes both on the way.
    turn = lambda _, pair: (pair[1] @ pair[1], pair[0] @ pair[0])
    assert count_flops(lambda k: jax.lax.fori_loop(0, 5, turn, (k, k))[0], kernel) == 10 * 2 * 8**3
    branch = lambda x, k: jax.lax.cond(x[0, 0, 0] > 0, product, lambda x, k: x @ k @ k, x, k)
    assert count_flops(branch, x, kernel) == 2 * once
    assert count_flops(jax.jit(lambda x, k: (x @ k, (x @ k @ k) * 0)[0]), x, kernel) == once
    # Sines keep what they are of, which is computed again: twice forward, and two gradients.
    again = with_gradients(jax.checkpoint(lambda x, k: jnp.sin(x @ k)))
    assert count_flops(again, x, kernel) == 4 * once
    with jax.set_mesh(mesh_of(1, 4)):
        shares = jax.shard_map(product, in_specs=(P(None, 'space'), P()), out_specs=P(None, 'space'))
        assert count_flops(shares, x, kernel) == once


def test_a_network_counts_as_the_compiler_says():
    """XLA counts additions, maxima and the like as well: of a network of this width they are few."""
    model = ANN(5, ResNet(10), key_channels=64, head_channels=128, aux_channels=128)
    forward = model.apply
    args = shape_variables(model), jax.ShapeDtypeStruct((1, 129, 97, 3), jnp.float32)
    theirs = jax.jit(with_forms_of('any', forward)).lower(*args).cost_analysis()['flops']
    assert 0.97 * theirs < count_flops(forward, *args) < theirs


def test_chains_of_exchanges():
    mesh = mesh_of(2, 4)

    def function(x):
        first, other = jax.lax.psum(x, 'space'), jax.lax.psum(jnp.sin(x), 'space')
        shifted = jax.lax.ppermute(jnp.cos(first), 'space', [(0, 1), (1, 2)])
        # Sums along both axes are one sum.
        return jax.lax.psum(jax.lax.psum(shifted * x, 'space'), 'data') + other.sum()

    shares = jax.shard_map(function, in_specs=P('data', 'space'), out_specs=P(), check_vma=False)
    found = cost_model.collectives(cost_model.partitioned(shares, mesh, jnp.ones((4, 8))))
    share = 4 * 2 * 2
    assert cost_model.exchanges(found) == cost_model.Exchanges(3 * share, share, 2, 1)


def step_of(model):
    tx = sgd(poly_schedule(0.05, 10))
    loss = functools.partial(segmentation_loss, min_kept=500)
    return cost_model.Step(make_train_step(model, tx, loss=loss, normalize=NORMALIZE, seed=3), model, tx)


def of_dtype(dtype):
    model = network(dtype=jnp.dtype(dtype))
    return model.clone(backbone=model.backbone.clone(dtype=jnp.dtype(dtype)))


def exchanged(model, data, space, images, height):
    """The collectives of a step over images 33 wide."""
    step, mesh = step_of(model), mesh_of(data, space)
    args = step.arguments(mesh, images, height, 33)
    return cost_model.collectives(cost_model.partitioned(step.function, mesh, *args))


def gradients(model):
    """Numbers that the devices of a step sum: gradients in the dtype of the network, and those in float32."""
    params = shape_variables(model)['params']
    of_network = of_float32 = 0
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        in_float32 = 'classifier' in names[0] or names[-2].startswith(('bn', 'downsample_1'))
        of_float32 += x.size * in_float32
        of_network += x.size * (not in_float32)
    for name in ('fusion', 'context'):
        # W_o and its half of the kernel behind it are multiplied first: the gradient is that of the product.
        *_, width, channels = params[name]['attention_0']['out']['kernel'].shape
        features = params[name]['project']['conv']['kernel'].shape[-1]
        of_network += (width + 1) * features - (width + 1) * channels - channels * features
    return of_network, of_float32


def of_products(model):
    """Bytes by which sums for normalised products exceed those over the products, which others take."""
    more = []

    def record(call, args, kwargs, context):
        conv = kwargs.get('conv')
        if isinstance(context.module, BatchNorm) and conv is not None and conv.widens(FeatureMap.of(args[0])):
            inputs, outputs = FeatureMap.of(args[0]).channels, conv.features
            # Mean and products of the input, for mean and variance; gradients of bias and kernel in float32,
            # for those of scale, bias and kernel in bfloat16.
            more.append(4 * (inputs + inputs**2 - 2 * outputs))
            more.append(4 * (outputs + inputs * outputs - 2 * outputs) - 2 * inputs * outputs)
        return call(*args, **kwargs)

    image = jax.ShapeDtypeStruct((1, 65, 33, 3), jnp.float32)
    with nn.intercept_methods(record):
        jax.eval_shape(model.apply, shape_variables(model), image)
    return sum(more)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gradients_and_statistics_of_a_step(dtype):
    model = of_dtype(dtype)
    found = exchanged(model, 8, 1, images=8, height=65)
    assert {each.kind for each in found} == {'all-reduce'}
    of_network, of_float32 = gradients(model)
    statistics = sum(x.size for x in jax.tree.leaves(shape_variables(model)['batch_stats']))
    counted = jnp.dtype(dtype).itemsize * of_network + 4 * (of_float32 + statistics) + of_products(model)
    scalars = cost_model.exchanges(found).sums - counted  # the loss, and the counts of its pixels
    assert 0 <= scalars <= 64
    # The longest way leads through 14 of the 19 norms: the statistics and, on the way back, the gradients of
    # scale and bias. At its end lies the gradient of the first kernel.
    assert cost_model.exchanges(found).sum_messages == 2 * 14 + 1


def halos(model, width):
    """Numbers that a device exchanges for an image: rows of feature maps, and rows of logits."""
    total = 0

    def record(call, args, kwargs, context):
        nonlocal total
        y, module = call(*args, **kwargs), context.module
        if isinstance(module, Conv) and context.method_name == '__call__' and module.kernel_size > 1:
            x, out = FeatureMap.of(args[0]).array, y.array
            above = module.dilation * (module.kernel_size - 1) // 2
            rows = above + max(above - module.stride + 1, 0)
            # Forward, and again for the gradient of the kernel; that of the input takes rows of the gradient.
            total += 2 * rows * x.shape[2] * x.shape[3]
            if x.shape[3] > 3:
                total += (1 if module.stride > 1 else rows) * out.shape[2] * out.shape[3]
        if isinstance(module, Stem):
            total += y.array.shape[2] * y.array.shape[3]  # the max pooling behind it, forward
        return y

    variables, image = shape_variables(model), jax.ShapeDtypeStruct((1, 33, width, 3), jnp.float32)
    with nn.intercept_methods(record):
        logits = jax.eval_shape(model.apply, variables, image)
    return total, sum(4 * HALO * x.shape[2] * x.shape[3] for x in logits)  # to and fro


def test_halos_of_a_step():
    model = of_dtype('bfloat16')
    found = exchanged(model, 1, 8, images=2, height=193)
    assert {each.kind for each in found} == {'all-reduce', 'collective-permute'}
    permutes = [each for each in found if each.kind == 'collective-permute']
    # The gradient of the max pooling is cut and put together by XLA, which exchanges some rows more for it.
    rows = [each.bytes for each in permutes if not re.search('select_and_scatter|slice|pad$', each.operation)]
    of_features, of_logits = halos(model, 33)
    assert sum(rows) == 2 * (2 * of_features + 4 * of_logits)
    assert sum(rows) < cost_model.exchanges(found).halos < 1.25 * sum(rows)
    # Keys and values of two blocks are summed in float32.
    anchors = [each.bytes for each in found if each.operation.startswith('psum')]
    assert anchors == 4 * [4 * 2 * 110 * 8]


def test_all_reduce_over_rings_and_domains():
    model = cost_model
    chip = model.CHIPS[2]._replace(link=100.0, network=10.0, domain=8)
    assert model.all_reduce(800, chip, 1) == 0
    assert model.all_reduce(800, chip, 8) == pytest.approx(2 * 7 / 8 * 8, rel=1e-4)
    assert model.all_reduce(800, chip, 16) == pytest.approx(2 * 7 / 8 * 8 + 2 * 1 / 2 * 100 / 10, rel=1e-4)
