"""Names and layouts of torch checkpoints: {torch key: NumPy array} -> the variables of a module here.

Knows the key layouts of torchvision's ResNet, mmseg's `ResNetV1c` and ANN heads, and the authors'
network. torch itself is not needed: whoever reads the file hands over NumPy arrays.
"""

import re
from collections.abc import Mapping

import numpy as np
from flax import traverse_util

# Applied in order to a key without its last component, which is separate ('weight', 'bias', ...).
_RENAMES = [
    (r'^module\.', ''),
    # Heads: mmseg, then the authors.
    (r'^decode_head\.conv_seg$', 'classifier'),
    (r'^decode_head\.', ''),
    (r'^auxiliary_head\.conv_seg$', 'aux_classifier'),
    (r'^auxiliary_head\.convs\.0', 'aux_bottleneck'),
    (r'^(fusion|context)\.bottleneck', r'\1.project'),
    (r'(key|query|value|out)_project', r'\1'),
    (r'^cls$', 'classifier'),
    (r'^dsn\.0$', 'aux_bottleneck.conv'),
    (r'^dsn\.1\.0$', 'aux_bottleneck.bn'),
    (r'^dsn\.3$', 'aux_classifier'),
    (r'^context\.0$', 'bottleneck.conv'),
    (r'^context\.1\.0$', 'bottleneck.bn'),
    (r'^context\.2\.', 'context.'),
    (r'f_(key|query)\.0$', r'\1.conv'),
    (r'f_(key|query)\.1\.0$', r'\1.bn'),
    (r'f_value$', 'value'),
    (r'\bW$', 'out'),
    (r'conv_bn_dropout\.0$', 'project.conv'),
    (r'conv_bn_dropout\.1(\.0)?$', 'project.bn'),
    (r'\bstages\.(\d+)', r'attention_\1'),
    # Backbones: numbered and prefixed stems, blocks of a stage.
    (r'\bstem\.0$', 'stem.conv1'),
    (r'\bstem\.1$', 'stem.bn1'),
    (r'\bstem\.3$', 'stem.conv2'),
    (r'\bstem\.4$', 'stem.bn2'),
    (r'\bstem\.6$', 'stem.conv3'),
    (r'\bstem\.7$', 'stem.bn3'),
    (r'\bprefix\.', 'stem.'),
    (r'^((?:backbone\.)?)(conv[123]|bn[123])$', r'\1stem.\2'),
    (r'\b(layer\d)\.(\d+)', r'\1_\2'),
    (r'\bdownsample\.([01])', r'downsample_\1'),
]
_STATISTICS = {'running_mean': 'mean', 'running_var': 'var'}


def flax_path(key: str, ndim: int) -> tuple[str, ...]:
    """Path of a torch tensor in our variables, e.g. ('params', 'backbone', 'stem', 'conv1', 'kernel').

    Args:
        key: the torch name, e.g. 'backbone.stem.0.weight'.
        ndim: dimensions of the tensor, which tell a convolution's weight from a norm's.
    """
    module, _, leaf = key.rpartition('.')
    for pattern, replacement in _RENAMES:
        module = re.sub(pattern, replacement, module)
    if leaf in _STATISTICS:
        return ('batch_stats', *module.split('.'), _STATISTICS[leaf])
    if leaf == 'weight':
        leaf = 'kernel' if ndim > 1 else 'scale'
    return ('params', *module.split('.'), leaf)


def from_torch(state: Mapping[str, np.ndarray], target: Mapping) -> dict:
    """Rearranges a torch state dict into variables of the structure of `target`.

    Step counters (`num_batches_tracked`) are left out, and so is the second copy of a projection
    that query and key share.

    Args:
        state: torch names and tensors, OIHW.
        target: variables of the module, or their `jax.eval_shape`.

    Returns:
        NumPy variables with the structure of `target`.

    Raises:
        ValueError: a tensor without a place, a place without a tensor, or two shapes that differ;
            the message lists all of them.
    """
    expected = traverse_util.flatten_dict(dict(target))
    found, problems = {}, []
    for key, array in state.items():
        if key.endswith('num_batches_tracked'):
            continue
        path = flax_path(key, array.ndim)
        if 'query' in path and path not in expected:
            twin = re.sub('query', 'key', key)
            if twin in state and np.array_equal(state[twin], array):
                continue
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        if path not in expected:
            problems.append(f'{key}: no place for it ({"/".join(path)})')
        elif array.shape != expected[path].shape:
            problems.append(f'{key}: shape {array.shape}, but {"/".join(path)} is {expected[path].shape}')
        else:
            found[path] = np.asarray(array)
    problems += [f'{"/".join(path)}: no tensor for it' for path in expected if path not in found]
    if problems:
        raise ValueError('cannot convert the state dict:\n  ' + '\n  '.join(problems))
    return traverse_util.unflatten_dict(found)
