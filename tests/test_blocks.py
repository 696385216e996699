"""The attention blocks against the authors' outputs and against the paper's equations in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import traverse_util
from reference import (
    assert_close,
    below,
    error,
    golden,
    hwio,
    nhwc,
    normal,
    quick,
    random_variables,
    shapes,
)

from ann_jax.errors import ConfigError
from ann_jax.kernels.anchors import sample_anchors
from ann_jax.kernels.resizing import resize_bilinear
from ann_jax.models.ann import ANN
from ann_jax.models.blocks import AFNB, APNB, FNB, NB, SHARES, Attention, CommonFusion
from ann_jax.models.feature_map import FeatureMap
from ann_jax.models.initializers import shape_variables
from ann_jax.models.resnet import ResNet
from ann_jax.weights.layouts import Layout
from ann_jax.weights.torch_state import from_torch

RELEASED = {
    'apnb': APNB(40, channels=16, dropout=0.0),
    'afnb': AFNB(40, channels=16, dropout=0.0),
}


def flat(tree):
    return {path: np.asarray(leaf, np.float64) for path, leaf in traverse_util.flatten_dict(tree).items()}


# Where the block lies in our network and in the authors'.
PLACES = {'apnb': ('context', 'context.2.'), 'afnb': ('fusion', 'fusion.')}
AUTHORS = Layout('authors', 'plain', 'backbone.')


def from_golden(name, arrays, prefix, known):
    """{path: array} of the tensors below `prefix`, for the known paths."""
    place, root = PLACES[name]
    keys = {path: AUTHORS.key((path[0], place, *path[1:])).removeprefix(root) for path in known}
    tensors = {path: arrays[prefix + key] for path, key in keys.items() if prefix + key in arrays}
    return {path: hwio(x) if x.ndim == 4 else x for path, x in tensors.items()}


@functools.partial(quick, static_argnums=(0, 4))
def run(module, variables, inputs, cotangent, train):
    """Output, running statistics, gradients of the parameters and gradients of the inputs."""

    def apply(params, inputs):
        variables_ = {**variables, 'params': params}
        return module.apply(variables_, *inputs, train, mutable=['batch_stats'])

    output, pull, updates = jax.vjp(apply, variables['params'], inputs, has_aux=True)
    return output, updates, *pull(cotangent)


@functools.cache
def released(name):
    """The module, the variables before the training pass, inputs and the golden arrays."""
    module, arrays = RELEASED[name], golden(f'authors_{name}')
    inputs = [nhwc(arrays[key]) for key in ('input0', 'input1') if key in arrays]
    target = jax.eval_shape(lambda inputs: module.init(jax.random.key(0), *inputs), inputs)
    place, root = PLACES[name]
    state = {root + key: array for key, array in below(arrays, 'state/').items()}
    target = {group: {place: tree} for group, tree in target.items()}
    converted = from_torch(state, target, AUTHORS).variables
    variables = {group: tree[place] for group, tree in converted.items()}
    stats = {'batch_stats': variables['batch_stats']}
    after = from_golden(name, arrays, 'train/state/', traverse_util.flatten_dict(stats))
    if all(np.array_equal(after[path], leaf) for path, leaf in traverse_util.flatten_dict(stats).items()):
        # The file holds the statistics after the training pass, and its evaluation used those before
        # it. The update is new = keep * old + drift; taking it back as our module defines it lets the
        # evaluation fail where the variance or the momentum is another one.
        cotangent = nhwc(arrays['cotangent'])
        update = lambda value: flat(
            run(module, {**variables, **jax.tree.map(value, stats)}, inputs, cotangent, True)[1]
        )
        drift, ones = update(np.zeros_like), update(np.ones_like)
        before = {
            path: ((after[path] - drift[path]) / np.round(ones[path] - drift[path], 4)).astype(np.float32)
            for path in after
        }
        variables = {**variables, **traverse_util.unflatten_dict(before)}
    return module, variables, inputs, arrays


@pytest.mark.parametrize('name', RELEASED)
def test_evaluation_equals_the_authors(name):
    module, variables, inputs, arrays = released(name)
    output, _, params, grad_inputs = run(module, variables, inputs, nhwc(arrays['cotangent']), False)
    assert_close(output, nhwc(arrays['eval/output']))
    for i, gradient in enumerate(grad_inputs):
        assert_close(gradient, nhwc(arrays[f'eval/grad_input{i}']))
    params = flat({'params': params})
    expected = from_golden(name, arrays, 'eval/grad/', params)
    assert expected.keys() == params.keys()
    for path in params:
        assert error(params[path], expected[path]) < 1e-5, path


@pytest.mark.parametrize('name', RELEASED)
def test_training_equals_the_authors(name):
    module, variables, inputs, arrays = released(name)
    output, stats, _, grad_inputs = run(module, variables, inputs, nhwc(arrays['cotangent']), True)
    assert_close(output, nhwc(arrays['train/output']))
    for i, gradient in enumerate(grad_inputs):
        assert_close(gradient, nhwc(arrays[f'train/grad_input{i}']))
    stats = flat(stats)
    expected = from_golden(name, arrays, 'train/state/', stats)
    assert expected.keys() == stats.keys()
    for path in stats:
        assert error(stats[path], expected[path]) < 1e-5, path


def evaluate(module, variables, *inputs):
    # The inputs stay outside the jit: `low is high` must hold inside.
    return quick(lambda variables: module.apply(variables, *inputs, False))(variables)


def respond(module, variables, low, high, train=False, **options):
    """W_o(O) of an `Attention`."""
    low_map = FeatureMap(low)
    high_map = low_map if low is high else FeatureMap(high)
    return module.apply(variables, low_map, high_map, train, method='response', **options)


def response(module, variables, low, high):
    return quick(lambda variables: respond(module, variables, low, high).array)(variables)


def attention_variables(module, seed, low, high):
    low_map = FeatureMap(low)
    high_map = low_map if low is high else FeatureMap(high)
    return random_variables(module, seed, low_map, high_map, False, method='response')


def conv1x1(params, x):
    return x @ params['kernel'][0, 0] + params['bias']


def conv_bn(variables, name, x):
    params, stats = variables['params'][name], variables['batch_stats'][name]['bn']
    y = (conv1x1(params['conv'], x) - stats['mean']) / np.sqrt(stats['var'] + 1e-5)
    return y * params['bn']['scale'] + params['bn']['bias']


def relu(x):
    return np.maximum(x, 0)


def anchors_by_definition(x, sampling, sizes):
    """(B, H, W, C) -> (B, S, C)."""
    batch, height, width, channels = x.shape
    if sampling == 'all':
        return x.reshape(batch, -1, channels)
    if sampling == 'random':
        return np.asarray(sample_anchors(x, 'random', sizes, jax.random.key(0)))
    reduce = {'average': np.mean, 'max': np.max}[sampling]
    bins = lambda n, size: [slice(i * size // n, -(-(i + 1) * size // n)) for i in range(n)]
    return np.stack(
        [
            reduce(x[:, rows, columns], (1, 2))
            for n in sizes
            for rows in bins(n, height)
            for columns in bins(n, width)
        ],
        1,
    )


def attention_by_definition(variables, low, high, *, share, sampling, sizes):
    """Equations 8 to 10, pixel by pixel."""
    params = variables['params']
    query = relu(conv_bn(variables, 'key' if share == 'query_key' else 'query', high))
    key = relu(conv_bn(variables, 'key', low))
    value = key if share == 'key_value' else conv1x1(params['value'], low)
    key, value = (anchors_by_definition(x, sampling, sizes) for x in (key, value))
    attended = np.empty(query.shape)
    for place in np.ndindex(query.shape[:3]):
        similarity = key[place[0]] @ query[place] / np.sqrt(query.shape[-1])
        weights = np.exp(similarity - similarity.max())
        attended[place] = weights / weights.sum() @ value[place[0]]
    return conv1x1(params['out'], attended)


@pytest.mark.parametrize(
    ('share', 'sampling'),
    [
        *((share, sampling) for share in SHARES for sampling in ('average', 'all')),
        ('query_key', 'random'),
        ('key_value', 'max'),
        ('none', 'max'),
    ],
)
@pytest.mark.parametrize('sizes', [(1, 2, 3), (1, 2)])
def test_attention_by_definition(share, sampling, sizes):
    """With more anchors than channels, and with fewer."""
    high = normal(2, 5, 6, 7)
    low = high if share == 'query_key' else normal(2, 7, 4, 6, seed=1)
    module = Attention(7, 8, sampling, sizes, share)
    variables = attention_variables(module, 2, low, high)
    expected = attention_by_definition(variables, low, high, share=share, sampling=sampling, sizes=sizes)
    assert_close(response(module, variables, low, high), expected)


@pytest.mark.parametrize('out_norm', [False, True])
@pytest.mark.parametrize('channels', [3, 8])
def test_what_the_block_merges_is_the_convolution_of_the_concatenation(channels, out_norm):
    """With more anchors than channels, and with fewer."""
    x = normal(2, 5, 6, 7)
    module = AFNB(3, channels=channels, sizes=(1, 2), out_norm=out_norm)
    variables = random_variables(module, 2, x, x, False)
    attention = Attention(7, channels, sizes=(1, 2), out_norm=out_norm)
    inner = {kind: tree['attention_0'] for kind, tree in variables.items()}
    whole = np.concatenate([response(attention, inner, x, x), x], -1)
    assert_close(evaluate(module, variables, x, x), conv_bn(variables, 'project', whole))


def test_shared_projections_have_no_second_copy():
    x = normal(1, 5, 5, 6)
    names = lambda share: set(attention_variables(Attention(6, 4, share=share), 0, x, x)['params'])
    assert names('none') == {'query', 'key', 'value', 'out'}
    assert names('query_key') == {'key', 'value', 'out'}
    assert names('key_value') == {'query', 'key', 'out'}


def test_pooling_to_the_size_of_the_map_is_the_standard_block():
    x = normal(2, 6, 6, 5)
    samplings = 'average', 'max', 'random', 'all'
    modules = [Attention(5, 4, sampling, (6,), 'query_key') for sampling in samplings]
    variables = attention_variables(modules[0], 0, x, x)
    *pooled, standard = (response(module, variables, x, x) for module in modules)
    for output in pooled:
        assert_close(output, standard)


def test_random_anchors_are_drawn_anew_in_training_only():
    x = jnp.asarray(normal(1, 6, 6, 5))
    module = Attention(5, 4, 'random', (2,), 'none')
    variables = attention_variables(module, 0, x, x)

    @quick
    def train(key):
        options = {'rngs': {'sampling': key}, 'mutable': ['batch_stats']}
        return respond(module, variables, x, x, True, **options)[0].array

    assert_close(train(jax.random.key(1)), train(jax.random.key(1)), 0)
    assert error(train(jax.random.key(1)), train(jax.random.key(2))) > 1e-3
    assert_close(response(module, variables, x, x), response(module, variables, x, x), 0)


@pytest.mark.parametrize('relu_after', [True, False])
def test_block_by_definition_with_two_low_maps(relu_after):
    lows, high = [normal(2, 9, 8, 3), normal(2, 5, 6, 4, seed=1)], normal(2, 5, 6, 7, seed=2)
    module = AFNB(10, relu=relu_after, channels=8, sizes=(1, 2))
    variables = random_variables(module, 3, lows, high, False)
    responses = [
        attention_by_definition(
            {name: tree[f'attention_{i}'] for name, tree in variables.items()},
            low,
            high,
            share='none',
            sampling='average',
            sizes=(1, 2),
        )
        for i, low in enumerate(lows)
    ]
    expected = conv_bn(variables, 'project', np.concatenate([responses[0] + responses[1], high], -1))
    assert (expected < 0).any()
    assert_close(evaluate(module, variables, lows, high), relu(expected) if relu_after else expected)


def test_block_drops_channels_at_its_end():
    x = normal(2, 4, 4, 5)
    module = AFNB(64, channels=4, sizes=(1,), dropout=0.5)
    variables = random_variables(module, 0, x, x, False)

    @quick
    def train(key):
        return module.apply(variables, x, x, True, rngs={'dropout': key}, mutable=['batch_stats'])[0]

    output = np.asarray(train(jax.random.key(0)))
    dropped = (output == 0).all((1, 2))
    assert 0.3 < dropped.mean() < 0.7
    assert (output != 0).all((1, 2))[~dropped].all()


def test_a_new_block_ignores_its_low_maps():
    low, high = normal(2, 9, 8, 3), normal(2, 5, 6, 4, seed=1)
    module = AFNB(10, channels=8, sizes=(1, 2))
    variables = quick(lambda: module.init(jax.random.key(0), low, high))()
    expected = conv_bn(
        jax.tree.map(np.asarray, variables), 'project', np.concatenate([np.zeros_like(high), high], -1)
    )
    assert_close(evaluate(module, variables, low, high), expected)


@pytest.mark.parametrize('block', [APNB, NB, AFNB, FNB])
def test_blocks_take_and_return_arrays_or_maps(block):
    """Sampling and projections are those of the paper's block; of a canvas only the images count."""
    high = normal(2, 6, 7, 12)
    inputs = [high] if issubclass(block, APNB) else [normal(2, 11, 9, 5, seed=1), high]
    module = block(channels=8, sizes=(1, 3))
    variables = random_variables(module, 0, *inputs)
    output = evaluate(module, variables, *inputs)
    definition = attention_by_definition(
        {name: tree['attention_0'] for name, tree in variables.items()},
        inputs[0],
        high,
        share='query_key' if issubclass(block, APNB) else 'none',
        sampling='all' if block in (NB, FNB) else 'average',
        sizes=(1, 3),
    )
    expected = conv_bn(variables, 'project', np.concatenate([definition, high], -1))
    assert_close(output, relu(expected) if issubclass(block, APNB) else expected)

    canvases = [np.pad(x, ((0, 0), (0, 2), (0, 3), (0, 0)), constant_values=9) for x in inputs]
    maps = [FeatureMap.of(canvas, x.shape[1:3]) for canvas, x in zip(canvases, inputs, strict=True)]
    mapped = evaluate(module, variables, *maps)
    assert mapped.size == (6, 7)
    assert_close(mapped.array[:, :6, :7], expected if block in (AFNB, FNB) else relu(expected))


def test_a_network_of_anybody_trains_with_a_block():
    """In plain Flax: initialised, differentiated, its parameters those of `context` in ANN."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
            x = APNB(channels=4, sizes=(1, 2), name='context')(x, train)
            return nn.Dense(3)(x)

    x, labels = normal(2, 13, 9, 3), np.random.default_rng(0).integers(0, 3, (2, 7, 5))
    net = Net()
    variables = quick(lambda: net.init(jax.random.key(0), x, False))()

    @quick
    def gradient(params, stats):
        def loss(params):
            rngs = {'dropout': jax.random.key(1)}
            logits, _ = net.apply({'params': params, **stats}, x, True, rngs=rngs, mutable=['batch_stats'])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return jax.grad(loss)(params)

    gradients = gradient(variables['params'], {'batch_stats': variables['batch_stats']})
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    # W_o starts at zero: it alone of the attention has a gradient at first.
    assert np.abs(gradients['context']['attention_0']['out']['kernel']).max() > 0
    ann = shape_variables(ANN(3, ResNet(10, 2, (2,)), head_channels=8, key_channels=4, sizes=(1, 2)))
    assert jax.tree.map(jnp.shape, variables['params']['context']) == jax.tree.map(
        jnp.shape, ann['params']['context']
    )


def test_common_fusion_by_definition():
    lows, high = [normal(2, 5, 6, 3), normal(2, 9, 11, 4, seed=1)], normal(2, 5, 6, 7, seed=2)
    module = CommonFusion()
    variables = random_variables(module, 3, lows, high, False)
    same, larger = (relu(conv_bn(variables, f'fuse_{i}', low)) for i, low in enumerate(lows))
    expected = high + same + np.asarray(resize_bilinear(jnp.asarray(larger), (5, 6), True))
    assert_close(evaluate(module, variables, lows, high), expected)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'share': 'all'}, "unknown share 'all'; known: query_key, key_value, none"),
        ({'share': 'query_key'}, "needs one input; a fusion block has two: use 'none'"),
        ({'sampling': 'median'}, "unknown sampling 'median'"),
    ],
)
def test_unknown_options(options, message):
    low, high = jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 4, 4, 5))
    with pytest.raises(ValueError, match=message):
        shapes(lambda: attention_variables(Attention(5, 4, **options), 0, low, high))


def test_out_norm_normalises_the_response():
    """Appendix C: batch normalisation between W_o and the concatenation."""
    x = jnp.asarray(normal(2, 5, 6, 8))
    block = Attention(8, 4, sizes=(1, 3), out_norm=True)
    variables = attention_variables(block, 0, x, x)
    plain = {
        kind: {name: leaf for name, leaf in tree.items() if name != 'out_bn'}
        for kind, tree in variables.items()
    }
    bare = Attention(8, 4, sizes=(1, 3))
    unscaled = respond(bare, plain, x, x, True, mutable=['batch_stats'])[0].array
    centred = unscaled - unscaled.mean((0, 1, 2))
    expected = centred / np.sqrt(np.square(centred).mean((0, 1, 2)) + 1e-5)
    norm = variables['params']['out_bn']
    ours, _ = respond(block, variables, x, x, True, mutable=['batch_stats'])
    assert_close(ours.array, expected * norm['scale'] + norm['bias'])


@pytest.mark.parametrize('count', [0, 1, 3])
def test_maps_of_other_images_are_refused(count):
    """One image's keys and values were those of all."""
    lows = [normal(count, 5, 6, 4)] if count else []
    block = AFNB(channels=4, sizes=(1, 2))
    with pytest.raises(ConfigError, match='for queries of 2: give one map or more, of the same images'):
        jax.eval_shape(block.init, jax.random.key(0), lows, normal(2, 5, 6, 8))


@pytest.mark.parametrize(
    ('sampling', 'sizes', 'message'),
    [('average', (-1,), r'sizes=\(-1,\): must be'), ('max', (), 'sizes='), ('random', (2,), 'give rng')],
)
def test_anchors_that_cannot_be_sampled_are_refused(sampling, sizes, message):
    with pytest.raises(ConfigError, match=message):
        sample_anchors(normal(1, 5, 6, 4), sampling, sizes)
