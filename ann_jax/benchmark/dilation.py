"""The backbone's dilated 3x3 convolutions against plain ones, since XLA ran them many times slower on GPUs.

See openxla/xla#32231.
"""

import functools
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from ann_jax.benchmark.contest import Row, compiled, contest, random
from ann_jax.kernels.convolution import batch_to_space, convolve, direct, space_to_batch
from ann_jax.models.resnet import PLANS

PASSES = {
    'forward': lambda run, x, kernel, gradient: run(x, kernel),
    'gradient of input': lambda run, x, kernel, gradient: jax.vjp(lambda x: run(x, kernel), x)[1](gradient),
    'gradient of kernel': lambda run, x, kernel, gradient: jax.vjp(lambda k: run(x, k), kernel)[1](gradient),
}


def dilation(config: ConfigDict, rates: Sequence[Row]) -> list[Row]:
    """A batch of crops in Stage4 and Stage5, in `model.dtype`.

    XLA's plain and dilated convolutions, dilation by space-to-batch, and dilation as in the network; each
    forward, for the gradient of the input, and for that of the kernel.
    """
    size = [(n - 1) // config.model.output_stride + 1 for n in config.augment.crop]
    rows = []
    for stage in (4, 5):
        _, rate = PLANS[config.model.output_stride][stage - 2]
        channels = config.model.width * 2 ** (stage - 2)
        x, gradient = (
            random((config.train.batch_size, *size, channels), config.model.dtype, seed) for seed in range(2)
        )
        kernel = random((3, 3, channels, channels), config.model.dtype)
        forms = {
            'plain': functools.partial(direct, stride=1, dilation=1),
            'dilated': functools.partial(direct, stride=1, dilation=rate),
            'space-to-batch': functools.partial(_space_to_batch, rate=rate),
            'ann_jax': functools.partial(convolve, dilation=rate),
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


def _space_to_batch(x, kernel, rate):
    y = direct(space_to_batch(x, rate), kernel, 1, 1)
    return batch_to_space(y, rate, *x.shape[1:3])
