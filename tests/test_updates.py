"""What a step does around the optimizer: clipping, factors, frozen parts, the moving average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from reference import assert_close, normal, quick, random_variables

from ann_jax.errors import ConfigError
from ann_jax.models.layers import ConvBN
from ann_jax.training import groups
from ann_jax.training.losses import Loss
from ann_jax.training.state import create_state
from ann_jax.training.step import StepOutput, make_step_parts


class Backbone(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = ConvBN(3, name='stem')(x, train)
        x = nn.remat(ConvBN.__call__, static_argnums=(2,))(ConvBN(3, name='layer1_0'), x, train)
        x = ConvBN(3, name='layer2_0')(x, train).array
        return nn.BatchNorm(use_running_average=not train, name='norm')(x)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = Backbone(name='backbone')(x, train)
        return nn.Dense(2, name='classifier')(nn.BatchNorm(name='norm')(x, use_running_average=not train))


def mean_loss(main, auxiliary, labels):
    value = (main**2).mean()
    return Loss(value, value, value, value)


def parts_of(tx, model=None, **settings):
    return make_step_parts(model or Net(), tx, loss=mean_loss, normalize=lambda x: x, seed=0, **settings)


BATCH = {'image': normal(2, 5, 6, 3), 'label': np.zeros((2, 5, 6), np.uint8)}


def steps(count, tx, **settings):
    """The state before and after some steps, the last output, and its metrics."""
    parts = parts_of(tx, **settings)
    variables = random_variables(Net(), 0, BATCH['image'])
    first = state = create_state(variables, tx, factors=settings.get('factors'))

    def step(state):
        output = parts.forward_backward(state, BATCH)
        return parts.update(state, output), output

    step = quick(step)
    for _ in range(count):
        (state, _), output = step(state)
    return first, state, output


def moved(first, last):
    """Paths of the arrays of which any bit changed."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(last), strict=True)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
    return {name(path) for (path, a), b in pairs if np.asarray(a).tobytes() != np.asarray(b).tobytes()}


def test_frozen_parts_keep_parameters_and_statistics():
    """The stem has factor 0; of the stage after it, and of Flax's own norms, only statistics are kept."""
    norm = 'stage2', 'backbone/norm', 'norm'
    first, last, output = steps(3, optax.adamw(0.1), factors={'stem': 0, 'all': 2.0}, frozen_norm=norm)
    params, stats = (moved(getattr(first, kind), getattr(last, kind)) for kind in ('params', 'batch_stats'))
    assert not {path for path in params if 'stem' in path}
    for path in (
        'backbone/layer1_0/bn/scale',
        'backbone/layer2_0/conv/kernel',
        'norm/bias',
        'classifier/kernel',
    ):
        assert path in params
    assert stats == {'backbone/layer2_0/bn/mean', 'backbone/layer2_0/bn/var'}
    # No gradient and no state of the optimizer either.
    for tree in (output.gradients, last.opt_state[0].mu):
        assert 'stem' not in tree['backbone'] and 'layer1_0' in tree['backbone']


def test_frozen_norms_compute_as_in_evaluation():
    first, _, output = steps(1, optax.sgd(0.1), frozen_norm=('all',))
    logits = quick(lambda variables: Net().apply(variables, BATCH['image']))(first.variables)
    assert_close(output.metrics['main_loss'], (np.asarray(logits) ** 2).mean())
    assert not moved(first.batch_stats, output.batch_stats)


def test_the_backward_pass_ends_where_frozen_stages_begin():
    variables = random_variables(Net(), 0, BATCH['image'])

    def products(factors):
        tx = optax.sgd(0.1)
        state = create_state(variables, tx, factors=factors)
        jaxpr = str(jax.make_jaxpr(parts_of(tx, factors=factors).forward_backward)(state, BATCH))
        return jaxpr.count('dot_general') + jaxpr.count('conv_general_dilated')

    trained, frozen = products({}), products({'backbone': 0})
    assert frozen <= 4 + 3 < trained  # the convolutions in their forms; the classifier and its gradients


class Free(nn.Module):
    """Any parameters and statistics, to which outputs are made up."""

    @nn.compact
    def __call__(self, x, train=False):
        raise NotImplementedError


def updates(gradients, statistics, tx, params, **settings):
    """States after updates by given gradients, from some parameters on."""
    ema = settings.get('ema_decay', 0) > 0
    update = parts_of(tx, Free(), **settings).update
    state = create_state(
        {'params': params, 'batch_stats': statistics[0]}, tx, factors=settings.get('factors'), ema=ema
    )
    for gradient, stats in zip(gradients, statistics, strict=True):
        loss = jnp.where(jnp.isfinite(gradient['head']['kernel']).all(), 1.0, jnp.nan)
        state, metrics = update(state, StepOutput(gradient, stats, {'loss': loss}))
        yield state, metrics


def tree(seed, scale=1.0):
    return {
        'backbone': {'stem': {'kernel': scale * normal(3, 2, seed=seed)}},
        'head': {'kernel': scale * normal(4, seed=seed + 1)},
    }


def torch_parameters(params):
    torch = pytest.importorskip('torch')
    return [torch.nn.Parameter(torch.tensor(np.asarray(x))) for x in jax.tree.leaves(params)]


def test_clipping_equals_torch():
    torch = pytest.importorskip('torch')
    for scale in (0.01, 1.0, 30.0):
        gradient, params = tree(0, scale), tree(5)
        ((state, metrics),) = updates([gradient], [{}], optax.sgd(1.0), params, clip_norm=0.7)
        theirs = torch_parameters(params)
        for x, g in zip(theirs, jax.tree.leaves(gradient), strict=True):
            x.grad = torch.tensor(g)
        norm = torch.nn.utils.clip_grad_norm_(theirs, 0.7)
        torch.optim.SGD(theirs, 1.0).step()
        assert_close(metrics['gradient_norm'], norm.numpy(), 1e-6)
        for ours, x in zip(jax.tree.leaves(state.params), theirs, strict=True):
            assert_close(ours, x.detach().numpy(), 1e-6)


def test_what_is_frozen_does_not_count_in_the_norm():
    gradient = {'head': tree(0, 9.0)['head']}
    ((state, metrics),) = updates(
        [gradient], [{}], optax.sgd(1.0), tree(5), clip_norm=0.7, factors={'backbone': 0}
    )
    assert_close(metrics['gradient_norm'], np.linalg.norm(gradient['head']['kernel']), 1e-6)
    assert moved(tree(5), state.params) == {'head/kernel'}


def test_frozen_statistics_do_not_take_the_mean_over_the_parts_of_a_batch():
    before, after = (
        {'backbone': {'mean': normal(3, seed=s)}, 'norm': {'mean': normal(3, seed=s)}} for s in (0, 1)
    )
    *_, (state, _) = updates(
        [tree(0)] * 2, [before, after], optax.sgd(1.0), tree(5), frozen_norm=['backbone']
    )
    np.testing.assert_array_equal(state.batch_stats['backbone']['mean'], before['backbone']['mean'])
    np.testing.assert_array_equal(state.batch_stats['norm']['mean'], after['norm']['mean'])


def test_the_moving_average_equals_torch_and_numpy():
    """AveragedModel with get_ema_multi_avg_fn, which takes over the first step and corrects no bias."""
    torch = pytest.importorskip('torch')
    from torch.optim import swa_utils

    gradients, statistics = [tree(i) for i in range(5)], [{'mean': normal(3, seed=20 + i)} for i in range(5)]
    network = torch.nn.Module()
    network.w = torch.nn.ParameterList(torch_parameters(tree(9)))
    network.register_buffer('mean', torch.zeros(3))
    average = swa_utils.AveragedModel(
        network, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.8), use_buffers=True
    )
    by_hand = None
    for state, _ in updates(gradients, statistics, optax.sgd(0.1), tree(9), ema_decay=0.8):
        leaves = jax.tree.leaves(state.params)
        with torch.no_grad():
            for theirs, x in zip(network.w, leaves, strict=True):
                theirs.copy_(torch.tensor(np.asarray(x)))
            network.mean.copy_(torch.tensor(np.asarray(state.batch_stats['mean'])))
        average.update_parameters(network)
        for theirs, x in zip(average.module.w, jax.tree.leaves(state.averaged['params']), strict=True):
            assert_close(x, theirs.detach().numpy(), 1e-6)
        assert_close(state.averaged['batch_stats']['mean'], average.module.mean.numpy(), 1e-6)
        kernel = np.asarray(state.params['head']['kernel'], np.float64)
        by_hand = kernel if by_hand is None else 0.8 * by_hand + 0.2 * kernel
        assert_close(state.ema['params']['head']['kernel'], by_hand, 1e-6)


def test_the_moving_average_of_optax_begins_at_zero():
    """What separates ours from it, where neither corrects a bias, is the first step in place of that zero."""
    states = [
        state
        for state, _ in updates([tree(i) for i in range(3)], [{}] * 3, optax.sgd(0.1), tree(9), ema_decay=0.8)
    ]
    ema = optax.ema(0.8, debias=False)
    theirs = ema.init(tree(9))
    for number, state in enumerate(states, 1):
        _, theirs = ema.update(state.params, theirs)
        expected = jax.tree.map(lambda x, first, n=number: x + 0.8**n * first, theirs.ema, states[0].params)
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), state.averaged['params'], expected)


def test_a_skipped_step_moves_neither_the_average_nor_the_schedule():
    bad = tree(1)
    bad['head']['kernel'] = bad['head']['kernel'] * np.nan
    tx = optax.adamw(optax.linear_schedule(1.0, 0.0, 9))
    settings = {'ema_decay': 0.9, 'skip_not_finite': True, 'clip_norm': 1.0}
    run = lambda gradients: [
        state for state, _ in updates(gradients, [{}] * len(gradients), tx, tree(9), **settings)
    ]
    for gradients in ([tree(0), bad, tree(2)], [bad, tree(0), tree(2)]):
        *_, last = run(gradients)
        *_, expected = run([tree(0), tree(2)])
        assert last.step == 3 and last.ema['count'] == 2
        assert moved(expected, last.replace(step=expected.step)) == set()


def test_factors_scale_what_the_optimizer_wants():
    factors = {'backbone': 0.5, 'stem': 0.25}
    tx = optax.adamw(0.1, weight_decay=0.1)
    plain, scaled = (
        [state.params for state, _ in updates([tree(0)], [{}], tx, tree(9), **more)][0]
        for more in ({}, {'factors': factors})
    )
    before = tree(9)
    change = lambda after: after['backbone']['stem']['kernel'] - before['backbone']['stem']['kernel']
    assert_close(change(scaled), 0.25 * np.asarray(change(plain)), 1e-5)
    np.testing.assert_array_equal(scaled['head']['kernel'], plain['head']['kernel'])


def test_names_of_parts():
    path = 'backbone/layer1_0/conv1/kernel'
    for name in ('all', 'backbone', 'stage2', 'backbone/layer1', 'backbone/layer1_0', path):
        assert groups.belongs(path, name)
    for name in ('stage3', 'backbone/layer', 'back', 'layer1', 'head'):
        assert not groups.belongs(path, name)
    assert groups.factor_of(path, {'backbone': 0.1, 'stage2': 0.0, 'all': 3.0}) == 0
    assert groups.factor_of('classifier/bias', {'backbone': 0.1}) == 1
    assert groups.parse_factors(' backbone = 0.1, stem=0,', 'x') == {'backbone': 0.1, 'stem': 0}
    for text in (
        'backbone',
        'backbone=',
        'backbone=-1',
        'backbone=nan',
        'a=1,a=2',
        'stem=1,backbone/stem=2',
        '=1',
        'a=1e9',
    ):
        with pytest.raises(ConfigError, match=r'optim.factors=.* must be NAME=FACTOR, each part once'):
            groups.parse_factors(text, 'optim.factors')
    with pytest.raises(
        ConfigError, match="train.frozen_norm: unknown part 'bakbone'; did you mean 'backbone'"
    ):
        steps(1, optax.sgd(0.1), frozen_norm=('bakbone',))
    with pytest.raises(ConfigError, match='nothing would be trained'):
        groups.trained(tree(0), {'all': 0.0})


def test_decay_of_what_is_frozen_does_not_matter():
    decay = {'stem': 0.5, 'backbone': 0.1, 'stage5': 0.2, 'head': 0.0}
    left = lambda **factors: [*groups.of_trained(decay, factors)]
    assert left() == left(head=0.1) == [*decay]
    assert left(stem=0) == ['backbone', 'stage5', 'head']
    assert left(backbone=0) == ['head']
    assert left(backbone=0, stage5=1) == ['backbone', 'stage5', 'head']
    assert left(backbone=0, stage4=0, head=0) == []


def test_a_state_and_a_step_agree_about_the_average():
    tx = optax.sgd(0.1)
    update = parts_of(tx, Free(), ema_decay=0.9).update
    with pytest.raises(ConfigError, match=r'ema_decay=0.9 takes a state of create_state\(..., ema=True\)'):
        update(create_state({'params': tree(0)}, tx), StepOutput(tree(1), {}, {'loss': 1.0}))
