"""The optimizer against torch's SGD under a polynomial schedule."""

import jax
import numpy as np
import optax
import pytest
from reference import assert_close, error, normal, quick

from ann_jax.training.optimizers import poly_schedule, sgd

STEPS = 10


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


def our_trajectory(decay, weight_decay=5e-2):
    tx = sgd(poly_schedule(0.5, STEPS), weight_decay=weight_decay, decay=decay)
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


def torch_trajectory(decay, weight_decay=5e-2):
    import torch

    params = jax.tree.map(lambda x: torch.tensor(x, requires_grad=True), first_params())
    kernels = [params['conv']['kernel']]
    others = [params['conv']['bias'], params['bn']['scale'], params['bn']['bias']]
    groups = [
        {'params': kernels, 'weight_decay': weight_decay},
        {'params': others, 'weight_decay': weight_decay if decay == 'all' else 0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.5, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: (1 - i / STEPS) ** 0.9)
    for i in range(STEPS):
        optimizer.zero_grad()
        loss(params, torch.tensor(normal(8, 5, seed=10 + i)), torch).backward()
        optimizer.step()
        schedule.step()
        yield jax.tree.map(lambda x: x.detach().numpy().copy(), params)


@pytest.mark.parametrize('decay', ['all', 'kernels'])
def test_trajectory_equals_torch(decay):
    pytest.importorskip('torch')
    for ours, torchs in zip(our_trajectory(decay), torch_trajectory(decay), strict=True):
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), ours, torchs)


def test_kernels_decay_alone():
    tx = sgd(lambda step: 1.0, weight_decay=0.1, decay='kernels')
    params = first_params()
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    assert_close(updates['conv']['kernel'], -0.1 * params['conv']['kernel'], 1e-6)
    assert error(updates['conv']['bias'], 0 * params['conv']['bias']) == 0
    for update in updates['bn'].values():
        assert error(update, np.zeros(4)) == 0


def test_poly_schedule():
    schedule = poly_schedule(0.01, 60_000)
    steps = np.array([0, 1, 30_000, 59_999, 60_000])
    np.testing.assert_allclose(schedule(steps), 0.01 * (1 - steps / 60_000) ** 0.9, rtol=1e-5, atol=1e-9)


def test_unknown_decay():
    with pytest.raises(ValueError, match="unknown decay 'norms'; known: all, kernels"):
        sgd(poly_schedule(0.1, 10), decay='norms')
