"""Optimizers against torch's, and by name."""

import jax
import numpy as np
import optax
import pytest
from reference import assert_close, error, normal, quick

from ann_jax.errors import ConfigError
from ann_jax.training import optimizers
from ann_jax.training.optimizers import arguments, make_optimizer, sgd
from ann_jax.training.schedules import poly_schedule

STEPS = 10
SGD = ('sgd', '', 0.5)


def first_params():
    return {
        'conv': {'kernel': normal(1, 1, 5, 4), 'bias': normal(4, seed=1)},
        'bn': {'scale': normal(4, seed=2), 'bias': normal(4, seed=3)},
    }


def loss(params, x, library):
    """A small problem with a gradient for everything, in jax or torch."""
    y = x @ params['conv']['kernel'][0, 0] + params['conv']['bias']
    y = library.tanh(y * params['bn']['scale'] + params['bn']['bias'])
    return (y * y).mean()


def our_trajectory(name, text, rate, **settings):
    args = arguments(name, text)
    tx = make_optimizer(poly_schedule(rate, STEPS), name, args, weight_decay=5e-2, **settings)
    params = first_params()
    state = tx.init(params)

    @quick
    def step(params, state, x):
        gradients = jax.grad(loss)(params, x, jax.numpy)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for i in range(STEPS):
        params, state = step(params, state, normal(8, 5, seed=10 + i))
        yield params


def torch_trajectory(create, rate, *, kernels=1.0, others=1.0):
    """With factors on the weight decay of the kernel and of the rest."""
    import torch

    params = jax.tree.map(lambda x: torch.tensor(x, requires_grad=True), first_params())
    rest = [params['conv']['bias'], params['bn']['scale'], params['bn']['bias']]
    groups = [
        {'params': [params['conv']['kernel']], 'weight_decay': 5e-2 * kernels},
        {'params': rest, 'weight_decay': 5e-2 * others},
    ]
    optimizer = create(torch.optim)(groups, rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: (1 - i / STEPS) ** 0.9)
    for i in range(STEPS):
        optimizer.zero_grad()
        loss(params, torch.tensor(normal(8, 5, seed=10 + i)), torch).backward()
        optimizer.step()
        schedule.step()
        yield jax.tree.map(lambda x: x.detach().numpy().copy(), params)


SGDS = lambda optim: lambda groups, rate: optim.SGD(groups, rate, momentum=0.9)
NESTEROV = lambda optim: lambda groups, rate: optim.SGD(groups, rate, momentum=0.9, nesterov=True)
ADAMW = lambda optim: lambda groups, rate: optim.AdamW(groups, rate, betas=(0.8, 0.95))
ADAM = lambda optim: lambda groups, rate: optim.Adam(groups, rate)


@pytest.mark.parametrize(
    ('ours', 'settings', 'create', 'factors'),
    [
        (SGD, {}, SGDS, {}),
        (SGD, {'decay': 'kernels'}, SGDS, {'others': 0.0}),
        (SGD, {'decay_factors': {'conv/kernel': 0.5, 'all': 2.0}}, SGDS, {'kernels': 0.5, 'others': 2.0}),
        (('sgd', 'nesterov=True', 0.5), {}, NESTEROV, {}),
        (('adamw', 'b1=0.8, b2=0.95', 0.1), {}, ADAMW, {}),
        (
            ('adamw', 'b1=0.8,b2=0.95', 0.1),
            {'decay': 'kernels', 'decay_factors': {'conv': 3.0}},
            ADAMW,
            {'kernels': 3.0, 'others': 0.0},
        ),
        (('adam', '', 0.1), {'decay': 'kernels'}, ADAM, {'others': 0.0}),
    ],
)
def test_trajectory_equals_torch(ours, settings, create, factors):
    pytest.importorskip('torch')
    # Adam divides by the root of a mean square, which is small for some.
    bound = 1e-6 if ours[0] == 'sgd' else 1e-5
    pairs = zip(our_trajectory(*ours, **settings), torch_trajectory(create, ours[2], **factors), strict=True)
    for mine, theirs in pairs:
        jax.tree.map(lambda a, b: assert_close(a, b, bound), mine, theirs)


def test_every_plain_optimizer_of_optax_takes_a_step():
    names = sorted(optimizers._factories())
    assert {'adamw', 'lamb', 'lion', 'lars', 'adafactor', 'sm3', 'nadam', 'rmsprop'} <= set(names)
    params = first_params()
    for name in names:

        def step(params, name=name):
            tx = make_optimizer(
                poly_schedule(0.1, 10), name, arguments(name, ''), weight_decay=0.1, decay='kernels'
            )
            return optax.apply_updates(params, tx.update(params, tx.init(params), params)[0])

        assert jax.tree.structure(jax.eval_shape(step, params)) == jax.tree.structure(params), name


def test_sm3_has_the_schedule():
    params, tx = first_params(), make_optimizer(lambda count: 0.5 / (1 + count), 'sm3')
    reference = [optax.sm3(rate) for rate in (0.5, 0.25)]
    state, other = tx.init(params), reference[0].init(params)
    for each in reference:
        updates, state = quick(tx.update)(params, state, params)
        expected, other = quick(each.update)(params, other, params)
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), updates, expected)


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        (
            'adamv',
            '',
            "unknown optim.name 'adamv'; did you mean 'adam'. known: adabelief, .*lamb, lars, lion",
        ),
        ('lbfgs', '', 'optim.name=lbfgs: its line search computes the loss several times a step'),
        ('sam', '', 'optim.name=sam: it computes the gradients twice a step'),
        ('muon', '', r'optim.name=muon: it is in optax.contrib, .* optimizer=optax.contrib.muon\('),
        (
            'adamw',
            'beta2=0.9',
            "unknown argument of adamw 'beta2'; did you mean 'b2'. it takes b1=0.9, b2=0.999, eps=1e-08",
        ),
        ('adamw', 'eps_rot=1', "unknown argument of adamw 'eps_rot'; did you mean 'eps_root'. it takes b1"),
        ('adamw', 'nesterov', "unknown argument of adamw 'nesterov'.*; .*it takes .*nesterov=False"),
        ('sgd', 'b1=0.9', "unknown argument of sgd 'b1'; it takes nesterov=False"),
        ('sgd', 'momentum=0.8', 'the momentum of sgd is set by optim.momentum'),
        ('sgd', 'nesterov=no', "optim.args='nesterov=no': nesterov must be True or False"),
        ('lamb', 'weight_decay=0.1', 'weight_decay is set by optim.weight_decay'),
        ('lamb', 'mask=1', 'mask is set by optim.decay and optim.decay_factors'),
        ('adamw', 'b1=high', r"optim.args='b1=high': adamw cannot be used with it \("),
        ('adamw', 'b2=5', "optim.args='b2=5': b2 must be at least 0 and less than 1"),
        ('rmsprop', 'momentum=-0.1', 'momentum must be at least 0 and less than 1'),
        ('adamw', 'b1=0.8,b1=0.9', "optim.args='b1=0.8,b1=0.9': b1 is given twice"),
        ('AdamW', '', "unknown optim.name 'AdamW'; did you mean 'adamw'"),
        ('adamw', 'mu_dtype=float17', 'adamw cannot be used with it .*float17'),
    ],
)
def test_what_an_optimizer_cannot_be_is_told_in_one_line(name, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        arguments(name, text)
    assert '\n' not in str(error.value)


def test_arguments_are_the_optimizers_own():
    assert arguments('sgd', 'nesterov=false') == {'nesterov': False}
    assert arguments('rmsprop', 'decay=0.5, nesterov=True') == {'decay': 0.5, 'nesterov': True}


def test_kernels_decay_alone():
    tx = sgd(lambda step: 1.0, weight_decay=0.1, decay='kernels')
    params = first_params()
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    assert_close(updates['conv']['kernel'], -0.1 * params['conv']['kernel'], 1e-6)
    assert error(updates['conv']['bias'], 0 * params['conv']['bias']) == 0
    for update in updates['bn'].values():
        assert error(update, np.zeros(4)) == 0


def test_unknown_decay():
    with pytest.raises(ValueError, match="unknown decay 'norms'; known: all, kernels"):
        sgd(poly_schedule(0.1, 10), decay='norms')
