"""A network from plain settings, as configs and folders of weights hold them."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ann_jax.models.ann import ANN
from ann_jax.models.resnet import ResNet
from ann_jax.typing import Backbone


def network(settings: Mapping[str, Any], num_classes: int, backbone: Backbone | None = None) -> ANN:
    """Builds the network that settings describe.

    Args:
        settings: as `config.model`.
        num_classes: outputs of the classifier.
        backbone: in place of the `ResNet` of the settings.
    """
    settings = {key: tuple(each) if isinstance(each, list) else each for key, each in settings.items()}
    dtype = jnp.dtype(settings.get('dtype', 'float32'))
    of = lambda *keys: {key: settings[key] for key in keys}
    if backbone is None:
        backbone = ResNet(
            **of('depth', 'width', 'stem_widths', 'output_stride', 'multi_grid', 'contract_dilation'),
            **of('ceil_pool'),
            remat=settings.get('remat', ()),
            dtype=dtype,
        )
    return ANN(
        num_classes,
        backbone,
        **of('variant', 'fuse_stages', 'sampling', 'sizes', 'share', 'out_norm', 'key_channels'),
        **of('head_channels', 'aux_channels', 'conv_bias', 'align_corners'),
        dropout=settings.get('dropout', 0.0),
        dtype=dtype,
    )
