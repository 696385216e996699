"""Merges batch normalisation into convolutions: the same network with less to compute.

    model, variables = model.clone(folded=True), fold(model, variables)
    logits = model.apply(variables, image).main

Every variable must have its place in the folded network. Your own backbone is folded if it passes `folded` on
to this package's layers; without that field, it runs unchanged.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ann_jax.errors import DataError, refuse_others
from ann_jax.models.ann import ANN
from ann_jax.models.initializers import shape_variables
from ann_jax.models.layers import EPSILON

AUXILIARY = ('aux_bottleneck', 'aux_classifier')
# Convolution -> the normalisation after it, in `ConvBN`, `Attention` and the blocks of `ResNet`.
NORMS = {'conv': 'bn', 'out': 'out_bn', 'downsample_0': 'downsample_1'}
NORMS |= {f'conv{i}': f'bn{i}' for i in (1, 2, 3)}


def fold(model: ANN, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a network for inference with `folded=True`.

    Each kernel absorbs the scale of the batch normalisation after it, of which only a bias remains. W_o
    absorbs its half of the kernel after it, since there is no non-linearity between them; AFNB loses half of
    its 4096 -> 2048 convolution. The auxiliary head is dropped.

    Computed in float64 on the host, then rounded to the model's dtype; the classifier stays float32.

    Args:
        model: the trained network, folded or not.
        variables: its parameters and running statistics.

    Raises:
        DataError: a variable has no place in the network, or one is missing.
    """
    flat = {path: leaf for path, leaf in _flatten(variables).items() if path[1] not in AUXILIARY}
    expected = _flatten(shape_variables(model.clone(folded=True)))
    folded = dict(flat)
    for *parents, name, leaf in flat:
        norm = (*parents, NORMS.get(name))
        # A normalisation that the folded network still has, as in a third-party backbone, stays.
        if leaf == 'kernel' and (*norm, 'scale') not in expected and _norm_leaves(norm) <= folded.keys():
            _merge_norm(folded, (*parents, name), norm)
    for block in ('fusion', 'context'):
        _merge_projection(folded, ('params', block))
    refuse_others(
        {path: np.shape(leaf) for path, leaf in folded.items()},
        {path: leaf.shape for path, leaf in expected.items()},
        'cannot fold the variables',
    )
    rounded = {path: jnp.asarray(leaf, _dtype(model, path, leaf)) for path, leaf in folded.items()}
    return traverse_util.unflatten_dict(rounded)


def folded_shapes(model: ANN) -> dict[str, Any]:
    """The shapes and dtypes of what `fold` returns with our own backbone, as `jax.ShapeDtypeStruct`s."""
    flat = _flatten(shape_variables(model.clone(folded=True)))
    of_backbone = getattr(model.backbone, 'dtype', jnp.float32)
    dtype = lambda path: {'backbone': of_backbone, 'classifier': jnp.float32}.get(path[1], model.dtype)
    shapes = {path: jax.ShapeDtypeStruct(x.shape, dtype(path)) for path, x in flat.items()}
    return traverse_util.unflatten_dict(shapes)


def _flatten(variables):
    return traverse_util.flatten_dict({key: dict(tree) for key, tree in variables.items()})


def _norm_leaves(norm):
    stats = ('batch_stats', *norm[1:])
    return {(*norm, 'scale'), (*norm, 'bias'), (*stats, 'mean'), (*stats, 'var')}


def _merge_norm(flat, conv, norm):
    """Replaces kernel, bias and normalisation by a kernel and a bias."""
    mean, var = (np.float64(flat.pop(('batch_stats', *norm[1:], key))) for key in ('mean', 'var'))
    scale, shift = (np.float64(flat.pop((*norm, key))) for key in ('scale', 'bias'))
    gain = scale / np.sqrt(var + EPSILON)
    bias = (np.float64(flat.pop((*conv, 'bias'), 0)) - mean) * gain + shift
    flat[*conv, 'kernel'] = np.float64(flat[*conv, 'kernel']) * gain
    # W_o keeps the bias, since its normalisation is gone.
    flat[(*conv, 'bias') if conv[-1] == 'out' else (*norm, 'bias')] = bias


def _merge_projection(flat, block):
    """Merges W_o of each attention of a block with its half of the kernel after it (Eq. 11 and 17)."""
    outs = [path[:-1] for path in flat if path[:2] == block and path[-2:] == ('out', 'kernel')]
    kernel, bias = (*block, 'project', 'conv', 'kernel'), (*block, 'project', 'bn', 'bias')
    if not outs or not {(*outs[0], 'bias'), kernel, bias} <= flat.keys():
        return  # no attention, merged already, or not ours
    response, passed = np.split(np.float64(flat[kernel][0, 0]), [flat[*outs[0], 'kernel'].shape[-1]])
    for out in outs:
        flat[bias] = flat[bias] + np.float64(flat.pop((*out, 'bias'))) @ response
        flat[*out, 'kernel'] = np.float64(flat[*out, 'kernel']) @ response
    flat[kernel] = passed[None, None]


def _dtype(model, path, leaf):
    """The dtype that a variable is rounded to; in a backbone, only merged variables are rounded."""
    if path[1] == 'backbone':
        merged = np.asarray(leaf).dtype == np.float64
        return getattr(model.backbone, 'dtype', jnp.float32) if merged else np.asarray(leaf).dtype
    return jnp.float32 if path[1] == 'classifier' else model.dtype


def check_folding(model: ANN) -> None:
    """Checks that your own backbone may be folded: folds random variables and compares the logits.

    A layer that passes `folded` to a normalisation must apply it directly after its convolution; only the
    result shows whether it does. Takes seconds.

    Raises:
        DataError: a variable has no place in the folded network, or the logits differ.
    """
    model = model.clone(dtype=jnp.float32)
    if hasattr(model.backbone, 'dtype'):
        model = model.clone(backbone=model.backbone.clone(dtype=jnp.float32))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ('scale', 'var'):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        size = 0.1 if leaf.ndim < 2 else np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return (size * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(draw, shape_variables(model))
    image = rng.standard_normal((1, 33, 33, model.in_channels)).astype(np.float32)
    logits = []
    try:
        device = jax.local_devices(backend='cpu')[0]
    except RuntimeError:  # JAX_PLATFORMS excludes the CPU
        device = jax.local_devices()[0]
    with jax.default_device(device):
        for network, weights in ((model, variables), (model.clone(folded=True), fold(model, variables))):
            apply = lambda weights, image, network=network: network.apply(weights, image).main
            options = {'xla_backend_optimization_level': 0}  # it runs only once
            logits.append(np.asarray(jax.jit(apply, compiler_options=options)(weights, image)))
    expected, folded = logits
    if not np.abs(folded - expected).max() < 1e-2 * np.abs(expected).max():
        raise DataError(
            f'{type(model.backbone).__name__} computes something else once it is folded: a normalisation '
            'with `folded` must directly follow its convolution, as in ConvBN; without a field `folded` '
            'the backbone runs unchanged'
        )
