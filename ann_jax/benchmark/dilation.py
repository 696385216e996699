"""Dilated 3x3 convolutions of the backbone beside plain ones: XLA has run them many times slower on GPUs.

See openxla/xla#32231.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ann_jax.benchmark.contest import Row, compiled, contest
from ann_jax.convolution import convolve

PASSES = {
    'forward': lambda run, x, kernel, gradient: run(x, kernel),
    'gradient of input': lambda run, x, kernel, gradient: jax.vjp(lambda x: run(x, kernel), x)[1](gradient),
    'gradient of kernel': lambda run, x, kernel, gradient: jax.vjp(lambda k: run(x, k), kernel)[1](gradient),
}


def dilation(config: ConfigDict, rates: Sequence[Row]) -> list[Row]:
    """A batch of crops in Stage4 (dilation 2) and Stage5 (4): plain, dilated, and dilated by space-to-batch.

    Each forward, for the gradient of the input and for that of the kernel, in `model.dtype`.
    """
    size = [(n - 1) // config.model.output_stride + 1 for n in config.augment.crop]
    rng = np.random.default_rng(0)
    rows = []
    for stage, rate in ((4, 2), (5, 4)):
        channels = config.model.width * 2 ** (stage - 2)
        draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32), config.model.dtype)
        x, gradient = (draw(config.train.batch_size, *size, channels) for _ in range(2))
        kernel = draw(3, 3, channels, channels)
        forms = {
            'plain': convolve,
            'dilated': functools.partial(convolve, dilation=rate),
            'space-to-batch': functools.partial(space_to_batch, rate=rate),
        }
        for name, function in PASSES.items():
            contestants = {
                f'{form}, {name}, Stage{stage}': compiled(
                    functools.partial(function, run), x, kernel, gradient
                )
                for form, run in forms.items()
            }
            rows += contest(contestants, config.benchmark.rounds, rates)
    return rows


def space_to_batch(x: jax.Array, kernel: jax.Array, rate: int) -> jax.Array:
    """The convolution dilated by `rate` as a plain one of rate^2 times as many images.

    (B, H, W, C), (3, 3, C, D) -> (B, H, W, D), equal but for rounding.
    """
    batch, height, width, channels = x.shape
    rows, columns = -(-height // rate), -(-width // rate)
    x = jnp.pad(x, ((0, 0), (0, rows * rate - height), (0, columns * rate - width), (0, 0)))
    x = x.reshape(batch, rows, rate, columns, rate, channels).transpose(0, 2, 4, 1, 3, 5)
    y = convolve(x.reshape(-1, rows, columns, channels), kernel)
    y = y.reshape(batch, rate, rate, rows, columns, -1).transpose(0, 3, 1, 4, 2, 5)
    return y.reshape(batch, rows * rate, columns * rate, -1)[:, :height, :width]
