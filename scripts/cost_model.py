"""What a step of training costs from one chip to 256: counted from the network, not measured.

    python scripts/cost_model.py --config=configs/cityscapes.py --config.model.dtype=bfloat16

prints the tables of docs/scaling.md, which says what is counted and what is assumed. The bytes are those of
the compiled program: `tests/test_cost_model.py` compares.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType
from ml_collections import config_flags

from ann_jax import build
from ann_jax.models.ann import ANN
from ann_jax.models.blocks import Attention, Projection
from ann_jax.models.layers import BatchNorm, Conv
from ann_jax.models.resnet import Stem
from ann_jax.rows import HALO


class Chip(NamedTuple):
    """Figures of the makers for one chip; rates per second, of a link in one direction."""

    name: str
    flops: float  # bfloat16, dense
    memory: float  # bytes
    link: float  # bytes to the chips of its domain, over all its links
    domain: int  # chips that these links connect
    network: float  # bytes to all others


CHIPS = (
    Chip('TPU v5e', 197e12, 819e9, 200e9, 256, 0),
    Chip('TPU v5p', 459e12, 2765e9, 600e9, 8960, 0),
    Chip('H100 SXM', 989e12, 3350e9, 450e9, 8, 50e9),
    Chip('H200 SXM', 989e12, 4800e9, 450e9, 8, 50e9),
)
COUNTS = 1, 8, 64, 256
MESHES = (8, 1), (4, 2), (1, 8)
LATENCY = 10e-6  # seconds of a message of any size before its first byte: assumed


class Counts(NamedTuple):
    """Of a step, per device; bytes are those that a device takes part with in each collective."""

    flops: float
    traffic: float  # bytes of feature maps that convolutions and norms read and write
    gradients: int  # bytes
    statistics: int  # bytes
    halos: int  # bytes of convolutions and resizing
    anchors: int  # bytes
    norms: int  # batch normalisations
    exchanges: int  # messages of halos


def count(model: ANN, height: int, width: int, images: int, space: int = 1) -> Counts:
    """Counts a step of `images` crops, whose rows `space` devices share.

    Gradients and statistics are float32; halos are of the model's dtype.
    """
    mesh = AbstractMesh((1, space), ('data', 'space'), axis_types=(AxisType.Auto,) * 2)
    forward = merged = traffic = parameters = halos = anchors = channels = norms = exchanges = 0

    def record(call, args, kwargs, context):
        nonlocal forward, merged, traffic, parameters, halos, anchors, channels, norms, exchanges
        y = call(*args, **kwargs)
        module = context.module
        if context.method_name != '__call__':
            return y
        match module:
            case Conv():
                x, k = args[0], module.kernel_size
                forward += 2 * k * k * x.shape[-1] * y.size
                traffic += (x.size + y.size) * y.dtype.itemsize
                above, below = _halo(module)
                there = (above + below) * x.shape[2] * x.shape[3]
                # The gradient of the kernel needs the same rows again, that of the input rows of the output.
                back = 0 if x.shape[-1] == 3 else (1 if module.stride > 1 else above + below)
                back = back * y.shape[2] * y.shape[3] if k > 1 else 0
                halos += images * (2 * there + back) * y.dtype.itemsize
                exchanges += 2 * ((above > 0) + (below > 0)) + (back > 0) * (3 - module.stride)
            case BatchNorm():
                x = args[0]
                channels, norms = channels + x.shape[-1], norms + 1
                traffic += 4 * x.size * x.dtype.itemsize  # twice for statistics, once more, and written
            case Attention():
                low, high = args[:2]
                keys = sum(n * n for n in module.sizes) if module.sampling != 'all' else low[..., 0].size
                pixels, width, features = high[..., 0].size, high.shape[-1], y.shape[-1]
                response = width if module.out_norm else features
                # Similarities, then the cheaper order of weighted sums and W_o, as in `attend`.
                forward += 2 * keys * module.channels * pixels
                if keys < module.channels:
                    forward += 2 * keys * response * (module.channels + pixels)
                else:
                    forward += 2 * module.channels * pixels * (keys + response)
                traffic += (pixels * min(keys, module.channels) + y.size) * y.dtype.itemsize
                if module.out_norm:
                    forward += 2 * width * y.size
                else:
                    # W_o and the kernel behind it are multiplied; devices sum the gradients of the product
                    # and of one bias for both, which may be there already.
                    merged += 2 * module.channels * width * features
                    parameters += (module.channels + (not module.conv_bias)) * features
                    parameters -= (module.channels + 1) * width
                # Keys and values, and the gradients of both.
                anchors += images * 4 * keys * module.channels * jnp.dtype(module.dtype).itemsize
            case Projection():
                high = args[1]
                forward += 2 * high.shape[-1] * y.size
                parameters -= 0 if model.out_norm else high.shape[-1] * y.shape[-1]
                traffic += (high.size + y.size) * y.dtype.itemsize
            case Stem():
                halos += images * y.shape[2] * y.shape[3] * y.dtype.itemsize  # of the max pooling, forward
                exchanges += 1
            case ANN():
                # Both logits, to and fro.
                halos += sum(images * 4 * HALO * x.shape[2] * x.shape[3] * 4 for x in y)
                exchanges += 8
        return y

    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    with nn.intercept_methods(record):
        variables = jax.eval_shape(
            lambda image: model.init(jax.random.key(0), image, mesh=mesh if space > 1 else None), image
        )
    parameters += sum(math.prod(x.shape) for x in jax.tree.leaves(variables['params']))
    return Counts(
        # The gradients of kernels and inputs cost a forward pass each.
        flops=3 * (forward * images / space + merged),
        traffic=3 * traffic * images / space,
        gradients=4 * parameters,
        statistics=4
        * 2
        * channels,  # mean and variance; what their gradients sum are those of scale and bias
        halos=halos if space > 1 else 0,
        anchors=anchors if space > 1 else 0,
        norms=norms,
        exchanges=exchanges if space > 1 else 0,
    )


def _halo(conv):
    """Rows that a shard needs of the one above and the one below."""
    pad = conv.dilation * (conv.kernel_size - 1) // 2
    return pad, max(pad - conv.stride + 1, 0)


class Times(NamedTuple):
    """Seconds of a step: lower bounds, each part on its own."""

    compute: float
    memory: float
    gradients: float
    statistics: float
    halos: float
    anchors: float

    @property
    def step(self) -> float:
        """Nothing of the exchanges hidden behind the computation."""
        return max(self.compute, self.memory) + self.gradients + self.statistics + self.halos + self.anchors


def predict(counts: Counts, chip: Chip, data: int, space: int = 1) -> Times:
    """Times of a step on `data` x `space` chips."""
    chips = data * space
    return Times(
        compute=counts.flops / chip.flops,
        memory=counts.traffic / chip.memory,
        gradients=all_reduce(counts.gradients, chip, chips),
        # Mean, then variance; then the gradients of scale and bias: each waits for the one before.
        statistics=all_reduce(counts.statistics, chip, chips, messages=3 * counts.norms),
        halos=counts.halos / chip.link + counts.exchanges * LATENCY,
        anchors=all_reduce(counts.anchors, chip, space, messages=8 if space > 1 else 0),
    )


def all_reduce(size: float, chip: Chip, chips: int, messages: int = 1) -> float:
    """Seconds to sum `size` bytes over chips: rings in a domain, then each chip its share between domains."""
    near = min(chips, chip.domain)
    far = chips // near
    time = 2 * (near - 1) / near * size / chip.link
    if far > 1:
        time += 2 * (far - 1) / far * size / near / chip.network
    return time + (messages * LATENCY if chips > 1 else 0)


def tables(model: ANN, height: int, width: int) -> str:
    """Both tables of docs/scaling.md, in Markdown."""
    counts = count(model, height, width, 1)
    lines = [
        f'{counts.flops / 1e12:.2f} TFLOP and {counts.traffic / 1e9:.1f} GB of feature maps per image of '
        f'{height} x {width}; {counts.gradients / 1e6:.0f} MB of gradients, '
        f'{counts.statistics / 1e3:.0f} kB of statistics in {counts.norms} batch normalisations.',
        '',
        '| chip | chips | compute | memory | gradients | statistics | step | images/s |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for chip in CHIPS:
        for chips in COUNTS:
            times = predict(counts, chip, chips)
            cells = [times.compute, times.memory, times.gradients, times.statistics, times.step]
            cells = ' | '.join(f'{1e3 * cell:.1f}' for cell in cells)
            lines.append(f'| {chip.name} | {chips} | {cells} | {chips / times.step:.0f} |')
    lines += [
        '',
        '| data x space | chip | compute | memory | halos | anchors | step | MB of halos | MB of anchors |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for data, space in MESHES:
        counts = count(model, height, width, 8 // data, space)
        for chip in CHIPS:
            times = predict(counts, chip, data, space)
            cells = [times.compute, times.memory, times.halos, times.anchors, times.step]
            cells = ' | '.join(f'{1e3 * cell:.1f}' for cell in cells)
            sizes = f'{counts.halos / 1e6:.1f} | {counts.anchors / 1e6:.1f}'
            lines.append(f'| {data} x {space} | {chip.name} | {cells} | {sizes} |')
    return '\n'.join(lines)


def main(argv):
    """Prints the tables for the network and crop of a config."""
    config = _CONFIG.value
    print(tables(build.model(config, _CLASSES.value), *config.augment.crop))


if __name__ == '__main__':
    _CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file of the run.')
    _CLASSES = flags.DEFINE_integer('classes', 19, 'Classes of the dataset.')
    flags.mark_flag_as_required('config')
    app.run(main)
