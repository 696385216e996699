"""What training takes over from other weights."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from ann_jax.errors import ConfigError, listed

logger = logging.getLogger(__name__)

PARTS = ('all', 'backbone', 'but_classifier')


def start(initial: Mapping, loaded: Mapping, parts: str) -> dict[str, Any]:
    """The first variables of a training run: the loaded parts, and initial values for the rest.

    Args:
        initial: variables of the network to train.
        loaded: variables of another network, or of a backbone alone.
        parts: 'all', 'backbone', or 'but_classifier' for all but the last layers of both heads.

    Raises:
        ConfigError: a loaded part does not fit; the message lists the tensors, and settings that would.
    """
    initial, loaded = (traverse_util.flatten_dict(dict(tree)) for tree in (initial, loaded))

    _widen_stem(initial, loaded)

    def wanted(path):
        classifier = path[1] in ('classifier', 'aux_classifier')
        return {'all': True, 'backbone': path[1] == 'backbone', 'but_classifier': not classifier}[parts]

    problems, merged = [], dict(initial)
    for path in filter(wanted, initial):
        name = '/'.join(path)
        if path not in loaded:
            problems.append(f'{name}: absent')
        elif loaded[path].shape != initial[path].shape:
            problems.append(f'{name}: {loaded[path].shape}, the network has {initial[path].shape}')
        else:
            merged[path] = loaded[path]
    problems += [
        f'{"/".join(path)}: no place for it' for path in filter(wanted, loaded) if path not in initial
    ]
    if problems:
        raise ConfigError(
            f'the weights of init.from do not fit the network with init.parts={parts}:{listed(problems)}'
            '\nuse --config.init.parts=backbone for a new head, or but_classifier for other classes'
        )
    return traverse_util.unflatten_dict(merged)


def _widen_stem(initial, loaded):
    """Fits the first convolution of weights for RGB to another number of channels.

    As in timm: channel i of N gets the weights of RGB's channel i modulo 3, times 3 / N; a single channel
    gets their sum.
    """
    path = 'params', 'backbone', 'stem', 'conv1', 'kernel'
    if path not in initial or path not in loaded:
        return
    kernel, channels = np.asarray(loaded[path]), initial[path].shape[2]
    if kernel.shape[2] != 3 or channels == 3:
        return
    if channels == 1:
        loaded[path] = kernel.sum(2, keepdims=True)
    else:
        loaded[path] = kernel[:, :, np.arange(channels) % 3] * np.float32(3 / channels)
    logger.info('the first convolution was of 3 channels: its weights are repeated for the %d here', channels)
