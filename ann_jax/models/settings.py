"""Builds a network from plain settings, as stored in configs and weights folders."""

from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp

from ann_jax.errors import ConfigError
from ann_jax.kernels.anchors import SAMPLINGS
from ann_jax.models.ann import ANN, VARIANTS
from ann_jax.models.blocks import SHARES
from ann_jax.models.decoder import DECODERS
from ann_jax.models.resnet import DEPTHS, PLANS, ResNet
from ann_jax.typing import Backbone

OF_BACKBONE = (
    'depth', 'width', 'stem_widths', 'output_stride', 'multi_grid', 'contract_dilation', 'ceil_pool',
    'avg_down', 'dilate_second_conv',
)  # fmt: skip
OF_HEAD = (
    'variant', 'fuse_stages', 'sampling', 'sizes', 'share', 'out_norm', 'key_channels', 'head_channels',
    'aux_channels', 'decoder', 'decoder_channels', 'conv_bias', 'align_corners',
)  # fmt: skip
# Settings that the weights of a backbone determine.
BACKBONE_FACTS = ('depth', 'width', 'stem_widths', 'ceil_pool', 'avg_down')
# Settings that weights do not determine, and that may be left out.
OPTIONAL = ('dropout', 'dtype', 'remat')
CHOICES: dict[str, Collection[Any]] = {
    'depth': DEPTHS,
    'output_stride': PLANS,
    'variant': VARIANTS,
    'sampling': SAMPLINGS,
    'share': SHARES,
    'decoder': DECODERS,
}


def unknown_settings(settings: Mapping[str, Any], needed: tuple[str, ...]) -> list[str]:
    """What `network` cannot build, one line each: unknown settings and values, missing ones of `needed`."""
    known = {*OF_BACKBONE, *OF_HEAD, *OPTIONAL}
    lines = [f'model.{key}={value!r}' for key, value in settings.items() if key not in known]
    for key, choices in CHOICES.items():
        if key in settings and settings[key] not in list(choices):  # it may be unhashable
            lines.append(f'model.{key}={settings[key]!r}')
    return lines + [f'no model.{key}' for key in needed if key not in settings]


def network(
    settings: Mapping[str, Any], num_classes: int, backbone: Backbone | None = None, in_channels: int = 3
) -> ANN:
    """Builds the network that settings describe.

    Args:
        settings: like `config.model`.
        num_classes: outputs of the classifier.
        backbone: replaces the `ResNet` of the settings.
        in_channels: of the images.

    Raises:
        ConfigError: there are unknown settings, which would be ignored.
    """
    if ignored := sorted(settings.keys() - {*OF_BACKBONE, *OF_HEAD, *OPTIONAL}):
        raise ConfigError(f'unknown settings of the network: {", ".join(f"model.{key}" for key in ignored)}')
    settings = {key: tuple(each) if isinstance(each, list) else each for key, each in settings.items()}
    dtype = jnp.dtype(settings.get('dtype', 'float32'))
    of = lambda *keys: {key: settings[key] for key in keys}
    if backbone is None:
        backbone = ResNet(
            **of(*OF_BACKBONE),
            remat=settings.get('remat', ()),
            dtype=dtype,
        )
    return ANN(
        num_classes,
        backbone,
        **of(*OF_HEAD),
        dropout=settings.get('dropout', 0.0),
        dtype=dtype,
        in_channels=in_channels,
    )
