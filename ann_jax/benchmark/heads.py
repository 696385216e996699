"""What follows the network in a training step: resizing the logits to the labels, and the loss."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ann_jax import build
from ann_jax.benchmark.contest import Row, compiled, contest
from ann_jax.kernels.resizing import linear_matrix, resize_bilinear


def loss(config: ConfigDict, rates: Sequence[Row]) -> list[Row]:
    """One crop: resizing the logits, and the loss of the config, each with its gradient."""
    height, width = config.augment.crop
    classes = len(config.loss.class_weights) or 19
    stride = config.model.output_stride if config.model.decoder == 'none' else 4  # of Stage2
    low_size = [(n - 1) // stride + 1 for n in (height, width)]
    rng = np.random.default_rng(0)
    low = jnp.asarray(rng.standard_normal((1, *low_size, classes), np.float32))
    full = jnp.asarray(rng.standard_normal((1, height, width, classes), np.float32))
    label = jnp.asarray(rng.integers(0, classes, (1, height, width)), jnp.uint8)
    align = config.model.align_corners

    def products(x):
        rows, columns = (linear_matrix(n, m, align) for n, m in zip(low_size, (height, width), strict=True))
        x = jnp.einsum('oh,bhwc->bowc', rows, x, precision='highest')
        return jnp.einsum('pw,bowc->bopc', columns, x, precision='highest')

    def pull(resize):
        return lambda x, gradient: jax.vjp(resize, x)[1](gradient)

    ours = lambda x: resize_bilinear(x, (height, width), align)
    rows = contest(
        {'resize, two products': compiled(products, low), 'resize, ours': compiled(ours, low)},
        config.benchmark.rounds,
        rates,
    )
    rows += contest(
        {
            'its gradient, two products': compiled(pull(products), low, full),
            'its gradient, ours': compiled(pull(ours), low, full),
        },
        config.benchmark.rounds,
        rates,
    )

    def entropy(logits, label):
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), label[..., None].astype(int), -1).mean()

    function = build.loss(config, classes)
    total = lambda logits, label: function(logits, logits, label).total
    name = 'OHEM and auxiliary loss' if config.loss.ohem else 'main and auxiliary loss'
    return rows + contest(
        {
            'cross entropy, with gradient': compiled(jax.grad(entropy), full, label),
            f'{name}, with gradient': compiled(jax.grad(total), full, label),
        },
        config.benchmark.rounds,
        rates,
    )
