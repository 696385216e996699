"""The inference network: the function of `ANN` in evaluation, with less to compute and for padded images.

Batch normalisation is folded into the convolutions. W_o is merged into the 1x1 convolution behind its
concatenation, for no non-linearity lies between: project(cat[W_o(O), X]) = project_1(W_o(O)) + project_2(X).
This spares AFNB half of its 4096 -> 2048 convolution.

An image may lie at the top left of a larger canvas, so that images of many sizes share one compiled program.
The result is that of the image alone: convolutions pad with zeros, so what lies outside of the image is set
to zero before every convolution and pooling that would see it, and anchors are pooled over the image only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh

from ann_jax import pooling
from ann_jax.convolution import WIDEST, computed_once, convolve
from ann_jax.models.ann import ANN, VARIANTS
from ann_jax.models.blocks import attend
from ann_jax.models.layers import max_pool
from ann_jax.models.resnet import blocks_of
from ann_jax.ops import average_rows, resize_images, sample_anchors
from ann_jax.rows import Rows, anchors, average_anchors, is_split, resize, split_rows
from ann_jax.winograd import winograd_kernel

Params = dict[str, dict[str, Any]]
EPSILON = 1e-5  # of every `BatchNorm`
NARROW = 128  # channels below which Winograd's passes over memory cost more than it spares


def fold(model: ANN, variables: Mapping[str, Any], winograd: bool = False) -> Params:
    """Weights of the inference network: name of a convolution -> kernel (height, width, in, out) and bias.

    The auxiliary head is left out. Computed in float64 on the host, then rounded to the model's dtype; the
    classifier stays float32.

    Args:
        model: the trained network.
        variables: its parameters and running statistics.
        winograd: transform the wide 3x3 kernels of stride 1 of a float32 network, which is for CPUs: fewer
            products, more passes over memory.
    """
    flat = traverse_util.flatten_dict(dict(variables))
    layers = {}
    for path, kernel in flat.items():
        if path[-1] != 'kernel' or path[1].startswith('aux_'):
            continue
        *parents, name = path[1:-1]
        kernel = np.asarray(kernel, np.float64)
        bias = np.asarray(flat.get((*path[:-1], 'bias'), np.zeros(kernel.shape[-1])), np.float64)
        norm = name.replace('conv', 'bn').replace('downsample_0', 'downsample_1').replace('out', 'out_bn')
        if norm != name and ('params', *parents, norm, 'scale') in flat:
            scale, shift = (np.float64(flat['params', *parents, norm, key]) for key in ('scale', 'bias'))
            mean, var = (np.float64(flat['batch_stats', *parents, norm, key]) for key in ('mean', 'var'))
            gain = scale / np.sqrt(var + EPSILON)
            kernel, bias = kernel * gain, (bias - mean) * gain + shift
        layers['/'.join([*parents, name])] = kernel, bias

    for block in ('fusion', 'context'):
        outs = [name for name in layers if name.startswith(block) and name.endswith('/out')]
        if outs:
            kernel, bias = layers.pop(f'{block}/project/conv')
            response, passed = np.split(kernel[0, 0], [layers[outs[0]][0].shape[-1]])
            for name in outs:
                out, out_bias = layers[name]
                layers[name] = out @ response, np.zeros(response.shape[1])
                bias = bias + out_bias @ response
            layers[f'{block}/project/conv'] = passed[None, None], bias

    if winograd and model.dtype == jnp.float32:
        for name in _plain_3x3(model.backbone):
            kernel, bias = layers[name]
            if min(kernel.shape[2:]) >= NARROW:
                # Large kernels are transformed as they are used: 16 matrices take more memory than 9.
                large = kernel.shape[2] >= WIDEST
                layers[name] = tuple(map(tuple, kernel)) if large else winograd_kernel(kernel), bias

    def rounded(name, arrays):
        dtype = jnp.float32 if name == 'classifier' else model.dtype
        return jax.tree.map(lambda array: jnp.asarray(array, dtype), arrays)

    return {name: {'kernel': rounded(name, k), 'bias': rounded(name, b)} for name, (k, b) in layers.items()}


def _plain_3x3(backbone):
    """Names of the 3x3 convolutions behind the stem with stride 1."""
    for layer in (1, 2, 3, 4):
        for i, block in enumerate(blocks_of(backbone, layer)):
            for j, (_, size, stride, _) in enumerate(block.convolutions(), 1):
                if size == 3 and stride == 1:
                    yield f'backbone/layer{layer}_{i}/conv{j}'
    yield 'bottleneck/conv'


@dataclass(frozen=True)
class InferenceNetwork:
    """Computes the main logits of `model` from folded weights.

    Attributes:
        model: the network whose weights were folded; hashable, so that it can be a static argument of a jit.
    """

    model: ANN

    @property
    def takes_canvas(self) -> bool:
        """Whether images may be smaller than their array; max pooled and random anchors need exact sizes."""
        attends = VARIANTS[self.model.variant] != ('none', 'none')
        return not attends or self.model.sampling in ('average', 'all')

    def __call__(
        self, params: Params, image: jax.Array, size: jax.Array | None = None, mesh: Mesh | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Runs the network.

        Args:
            params: what `fold` made.
            image: (B, H, W, 3) normalised images, each at the top left of its canvas.
            size: (B, 2) int32 heights and widths of the images; None: they fill the array.
            mesh: its `space` axis splits the rows of each image over devices.

        Returns:
            (B, h, w, classes) float32 logits at the resolution of Stage5, and (B, 2) their valid sizes, None
            without `size` where rows are not split.
        """
        model, backbone = self.model, self.model.backbone
        rows = None
        if is_split(mesh):
            rows = Rows(mesh, image.shape[1])
            if size is None:
                size = jnp.broadcast_to(jnp.asarray(image.shape[1:3]), (image.shape[0], 2))
            image = split_rows(image, backbone.canvas_height(rows.height, mesh.shape['space']), mesh)
        x = _Map(image.astype(model.dtype), size, rows)
        for i in range(1, len(backbone.stem_widths) + 1):
            x = _conv(params[f'backbone/stem/conv{i}'], x, stride=2 if i == 1 else 1)
        x = _pool(x, backbone.ceil_pool)
        stages = []
        for layer in (1, 2, 3, 4):
            for i, block in enumerate(blocks_of(backbone, layer)):
                x = _residual(params, f'backbone/layer{layer}_{i}', x, block)
            stages.append(x)

        fusion, context = VARIANTS[model.variant]
        lows = [stages[stage - 2] for stage in model.fuse_stages]
        if fusion == 'common':
            for i, low in enumerate(lows):
                x = x.with_array(x.array + _like(_conv(params[f'fusion/fuse_{i}/conv'], low), x))
        elif fusion != 'none':
            x = self._block(params, 'fusion', lows, x, relu=False, dense=fusion == 'fnb', share='none')
        x = _conv(params['bottleneck/conv'], x)
        if context != 'none':
            x = self._block(params, 'context', [x], x, relu=True, dense=context == 'nb', share=model.share)
        x = _conv(params['classifier'], x.with_array(x.array.astype(jnp.float32)), relu=False)
        return x.array, x.size

    def _block(self, params, name, lows, high, *, relu, dense, share):
        sampling = 'all' if dense else self.model.sampling
        response = 0
        for i, low in enumerate(lows):
            layer = lambda part, x, i=i, **o: _conv(params[f'{name}/attention_{i}/{part}'], x, **o)
            key = layer('key/conv', low)
            query = key if share == 'query_key' else layer('query/conv', high)
            sample = lambda x: _anchors(x, sampling, self.model.sizes)
            keys, seen = sample(key)
            if share == 'key_value':
                values = keys
            elif sampling == 'average' and not low.rows:
                # The projection of a mean is the mean of projections, and there are fewer means.
                means = low.with_array(sample(low)[0][:, None])
                values = layer('value', means, relu=False).array[:, 0]
            else:
                values, _ = sample(layer('value', low, relu=False))
            query = query.array.reshape(query.array.shape[0], -1, query.array.shape[-1])
            out = params[f'{name}/attention_{i}/out']['kernel'][0, 0]
            response = response + attend(query, keys, values, out, seen=seen)
        x = _conv(params[f'{name}/project/conv'], high, relu=False)
        y = x.array + response.reshape(x.array.shape)
        # Fused with the padding for the next convolution, it would need memory for a map more.
        return x.with_array(computed_once(nn.relu(y) if relu else y))


class _Map(NamedTuple):
    """A feature map, with all that tells the images on it from what lies outside."""

    array: jax.Array  # (B, H, W, C)
    size: jax.Array | None  # (B, 2) valid sizes, None where the images fill it
    rows: Rows | None  # of an image as large as the array that came in, where rows are split over devices

    def with_array(self, array):
        return self._replace(array=array)

    def clean(self):
        """The array with zeros outside of the images."""
        if self.size is None:
            return self.array
        rows, columns = (jnp.arange(n) < self.size[:, i, None] for i, n in enumerate(self.array.shape[1:3]))
        return jnp.where((rows[:, :, None] & columns[:, None])[..., None], self.array, 0)


def _conv(params, x, *, stride=1, dilation=1, relu=True):
    kernel = params['kernel']
    # A 1x1 convolution sees nothing beside its pixel.
    point = not isinstance(kernel, tuple) and kernel.shape[0] == 1
    y = convolve(x.array if point else x.clean(), kernel, stride=stride, dilation=dilation)
    y = y + params['bias']
    size = x.size if x.size is None or stride == 1 else (x.size - 1) // stride + 1
    return _Map(nn.relu(y) if relu else y, size, x.rows and x.rows.strided(stride))


def _pool(x, ceil):
    """3x3 max pooling of stride 2, as `layers.max_pool`."""
    size = None if x.size is None else (x.size - 1 + int(ceil)) // 2 + 1
    if x.rows:
        rows = replace(x.rows, height=(x.rows.height - 1 + int(ceil)) // 2 + 1)
        return _Map(max_pool(x.clean(), ceil, rows), size, rows)
    # Zeros outside of the image do no harm: behind a ReLU no maximum is below them.
    return _Map(pooling.max_pool(x.clean(), ceil), size, None)


def _residual(params, name, x, block):
    y = x
    convolutions = block.convolutions()
    for i, (_, _, stride, dilation) in enumerate(convolutions, 1):
        last = i == len(convolutions)
        y = _conv(params[f'{name}/conv{i}'], y, stride=stride, dilation=dilation, relu=not last)
    if f'{name}/downsample_0' in params:
        x = _conv(params[f'{name}/downsample_0'], x, stride=block.stride, relu=False)
    return y.with_array(computed_once(nn.relu(x.array + y.array)))


def _anchors(x, sampling, sizes):
    """(B, S, C) anchors, and (B, S) which of them lie in the image, None if all do."""
    array, size, rows = x
    if size is None:
        return sample_anchors(array, sampling, sizes, jax.random.key(0)), None
    height, width = array.shape[1:3]
    if sampling == 'all':
        seen = x.with_array(jnp.ones((*array.shape[:3], 1), bool)).clean()
        return array.reshape(array.shape[0], -1, array.shape[-1]), seen.reshape(array.shape[0], -1)
    if rows:
        if sampling == 'average':
            return average_anchors(array, sizes, size, rows.mesh), None
        return anchors(array, sampling, sizes, jax.random.key(0), rows), None
    if sampling != 'average':
        raise ValueError(f'{sampling} anchors need images that fill their arrays, see takes_canvas')
    array = array.astype(jnp.float32)
    rows = jnp.concatenate([average_rows(height, n, size[:, 0]) for n in sizes], 1)
    pooled = jnp.einsum('bnh,bhwc->bnwc', rows, array, precision='highest')
    levels, first = [], 0
    for n in sizes:
        columns = average_rows(width, n, size[:, 1])
        level = jnp.einsum('bmw,bnwc->bnmc', columns, pooled[:, first : first + n], precision='highest')
        levels.append(level.reshape(array.shape[0], n * n, -1))
        first += n
    return jnp.concatenate(levels, 1).astype(x.array.dtype), None


def _like(low, high):
    """A map resized to another's size."""
    target = high.array.shape[1:3]
    if low.array.shape[1:3] == target:
        return low.array
    sizes = [
        jnp.broadcast_to(jnp.array(x.array.shape[1:3]), (x.array.shape[0], 2)) if x.size is None else x.size
        for x in (low, high)
    ]
    if low.rows:
        return resize(low.array, sizes[0], target, sizes[1], True, low.rows.mesh).astype(high.array.dtype)
    return resize_images(low.array, sizes[0], target, sizes[1], True).astype(high.array.dtype)
