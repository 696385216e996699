"""Table 1: the attention of each block on ResNet-101's maps."""

import functools
import logging
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ann_jax.benchmark.contest import Row, compiled, contest, random
from ann_jax.errors import ConfigError
from ann_jax.models.blocks import Attention
from ann_jax.models.feature_map import FeatureMap

logger = logging.getLogger(__name__)

# Stage4 and Stage5 channels of ResNet-101, and C^ (Sec. 4.2).
LOW, HIGH, CHANNELS = 1024, 2048, 256
BLOCKS = {  # name -> share, sampling, channels of the low map
    'NB': ('query_key', 'all', HIGH),
    'APNB': ('query_key', 'average', HIGH),
    'FNB': ('none', 'all', LOW),
    'AFNB': ('none', 'average', LOW),
}
# (height, width) -> multiply-accumulates in 1e9, as in Table 1.
PAPER_GMACS = {(96, 96): {'NB': 58.0, 'APNB': 15.5}, (256, 128): {'NB': 601.4, 'APNB': 43.5}}


def blocks(config: ConfigDict, rates: Sequence[Row]) -> list[Row]:
    """Forward, and forward with gradients, at each size of `benchmark.block_sizes`.

    'NB library' is NB with the best available form of `jax.nn.dot_product_attention`: fused by cuDNN on GPUs,
    if it has a kernel for the dtype.

    Raises:
        ConfigError: a size is not HEIGHTxWIDTH.
    """
    rows = []
    for size in parse_sizes(config.benchmark.block_sizes, 'benchmark.block_sizes'):
        for backward in (False, True) if config.benchmark.backward else (False,):
            for names in (('NB', 'NB library', 'APNB'), ('FNB', 'AFNB')):
                contestants = {name: _block(name, size, backward, config.model.dtype) for name in names}
                for name, row in zip(
                    names, contest(contestants, config.benchmark.rounds, rates), strict=True
                ):
                    kind = 'forward and backward' if backward else 'forward'
                    row['contestant'] = f'{name} {size[0]}x{size[1]} {kind}'
                    row['GMAC as the paper counts'] = _gmacs(name, size)
                    row['paper'] = PAPER_GMACS.get(size, {}).get(name.split()[0])
                    rows.append(row)
    return rows


def parse_sizes(text: str, key: str) -> list[tuple[int, int]]:
    """'96x96,256x128' -> [(96, 96), (256, 128)]."""
    sizes = []
    try:
        for size in text.split(','):
            height, width = map(int, size.split('x'))
            if min(height, width) < 1:
                raise ValueError
            sizes.append((height, width))
    except ValueError:
        raise ConfigError(f'{key}={text}: give sizes as HEIGHTxWIDTH, such as 96x96,256x128') from None
    return sizes


def _gmacs(name, size):
    """Three 1x1 convolutions and two products, as the paper counts."""
    anchors = 110 if name in ('APNB', 'AFNB') else size[0] * size[1]
    return (3 * HIGH * CHANNELS + 2 * CHANNELS * anchors) * size[0] * size[1] / 1e9


def _block(name, size, backward, dtype):
    share, sampling, channels = BLOCKS[name.split()[0]]
    same, dtype = channels == HIGH, jnp.dtype(dtype)
    module = Attention(HIGH, CHANNELS, sampling, share=share, dtype=dtype)
    low, high = (random((1, *size, c), dtype) for c in (channels, HIGH))

    def apply(call, first, low, high):
        low, high = FeatureMap(low), FeatureMap(high)
        # `query_key` needs the same object for both inputs.
        return call(first, low, low if same else high, False, method='response')

    variables = jax.eval_shape(functools.partial(apply, module.init, jax.random.key(0)), low, high)
    variables = jax.tree.map(lambda x: 0.01 * (1 + abs(random(x.shape, x.dtype))), variables)

    def contestant(forward):
        if not backward:
            return compiled(forward, variables, low, high)
        loss = lambda *inputs: forward(*inputs).astype(jnp.float32).sum()
        return compiled(jax.grad(loss, (0, 1, 2)), variables, low, high)

    if name != 'NB library':
        return contestant(lambda *inputs: apply(module.apply, *inputs).array)
    library = lambda form: contestant(lambda variables, low, high: _library(variables['params'], high, form))
    if jax.local_devices()[0].platform == 'gpu':
        try:
            # What cuDNN does is not in the program; it is what XLA's form does.
            return library('cudnn')._replace(flops=library('xla').flops)
        except (RuntimeError, ValueError) as error:
            logger.warning('no fused kernel for NB in %s: %s', dtype, error)
    return library('xla')


def _library(params, x, implementation):
    """NB on the parameters of `Attention`; batch normalisation is left out, which favours it."""
    project = lambda layer: x @ layer['kernel'][0, 0].astype(x.dtype) + layer['bias'].astype(x.dtype)
    rows = lambda x: x.reshape(x.shape[0], -1, 1, x.shape[-1])
    key = jax.nn.relu(project(params['key']['conv']))
    value = project(params['value'])
    attended = jax.nn.dot_product_attention(rows(key), rows(key), rows(value), implementation=implementation)
    out = params['out']
    y = attended.reshape(key.shape) @ out['kernel'][0, 0].astype(x.dtype) + out['bias'].astype(x.dtype)
    return y
