"""ANN: backbone, fusion, context and classifier (paper: Fig. 3), and every variant of Table 6."""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from ann_jax.errors import ConfigError, unknown
from ann_jax.models.blocks import AFNB, APNB, FNB, NB, CommonFusion
from ann_jax.models.decoder import DECODERS, Decoder
from ann_jax.models.feature_map import FeatureMap, Given
from ann_jax.models.initializers import normal
from ann_jax.models.layers import Conv, ConvBN, Dropout2d
from ann_jax.models.resnet import Stages

# Rows of Table 6 -> fusion and context blocks.
VARIANTS = {
    'baseline': (None, None),
    'nb': (None, NB),
    'apnb': (None, APNB),
    'common': (CommonFusion, None),
    'fnb': (FNB, None),
    'afnb': (AFNB, None),
    'common_nb': (CommonFusion, NB),
    'fnb_nb': (FNB, NB),
    'full': (AFNB, APNB),
}


class Logits(NamedTuple, Generic[Given]):
    """Unnormalised class scores, float32 (B, h, w, classes): arrays for an array, maps for a map."""

    main: Given
    auxiliary: Given | None  # None if the network is folded, or has no auxiliary head


class ANN(nn.Module):
    """Asymmetric Non-local Neural Network.

    Attributes:
        num_classes: output channels.
        backbone: an unbound `ResNet`, or any other `ann_jax.typing.Backbone`.
        variant: a row of Table 6, a key of `VARIANTS`.
        fuse_stages: stages that are fused with Stage5 (Table 9): (4,), (3, 4) or (2, 3, 4).
        sampling: how APNB and AFNB sample anchors (Table 7), see `sample_anchors`.
        sizes: sizes of the pooling levels, see `sample_anchors`.
        share: projections shared in APNB and NB, see `blocks.Attention`.
        out_norm: batch normalisation after W_o, see `blocks.Attention`.
        key_channels: C^, the width of the attention.
        head_channels: channels between fusion and classifier.
        aux_channels: channels of the auxiliary head on Stage4; 0 for none.
        decoder: 'stage2' to add Stage2 back before the classifier, see `Decoder`, or 'none'.
        decoder_channels: channels of the decoder's 3x3 convolutions.
        dropout: rate of each Dropout2d.
        conv_bias: whether the head's convolutions before batch normalisation have a bias.
        align_corners: how logits are resized to the image.
        dtype: what the head computes in; the classifiers always use float32.
        folded: whether the variables come from `fold`, without the auxiliary head.
        in_channels: of the images from which `initial_variables` takes the shapes.
    """

    num_classes: int
    backbone: Any
    variant: str = 'full'
    fuse_stages: Sequence[int] = (4,)
    sampling: str = 'average'
    sizes: Sequence[int] = (1, 3, 6, 8)
    share: str = 'query_key'
    out_norm: bool = False
    key_channels: int = 256
    head_channels: int = 512
    aux_channels: int = 512
    decoder: str = 'none'
    decoder_channels: int = 256
    dropout: float = 0.05
    conv_bias: bool = True
    align_corners: bool = True
    dtype: DTypeLike = jnp.float32
    folded: bool = False
    in_channels: int = 3

    def __post_init__(self):
        if hasattr(self.backbone, 'folded') and self.backbone.folded != self.folded:
            self.backbone = self.backbone.clone(folded=self.folded)
        super().__post_init__()

    @property
    def takes_canvas(self) -> bool:
        """Whether images may be smaller than their array; max-pooled and random anchors need exact sizes."""
        samples = {APNB, AFNB} & {*VARIANTS.get(self.variant, ())}
        of_any_size = not samples or self.sampling in ('average', 'all')
        return of_any_size and getattr(self.backbone, 'takes_canvas', False)

    @nn.compact
    def __call__(self, image: Given, train: bool = False, full_size: bool = False) -> Logits[Given]:
        """Normalised images (B, H, W, in_channels) -> logits of the classifier and of the auxiliary head.

        Args:
            image: an array that the images fill, or a `FeatureMap`.
            train: whether to drop channels and use batch statistics.
            full_size: whether to resize the logits to the image; otherwise they have the size of Stage5,
                or of Stage2 with a decoder, and the auxiliary ones that of Stage4.

        Raises:
            ConfigError: unknown variant, sampling, share, decoder or fused stage; or the backbone does not
                return four maps, or not those that canvases and split rows need.
        """
        if self.variant not in VARIANTS:
            raise ConfigError(unknown('variant', self.variant, VARIANTS))
        if not self.fuse_stages or sorted({2, 3, 4} & {*self.fuse_stages}) != sorted(self.fuse_stages):
            raise ConfigError(f'fuse_stages must be some of 2, 3 and 4, not {tuple(self.fuse_stages)}')
        if self.decoder not in DECODERS:
            raise ConfigError(unknown('decoder', self.decoder, DECODERS))
        fusion, context = VARIANTS[self.variant]
        canvas = FeatureMap.of(image).split_over_devices(self._canvas_height)
        stages = self._features(canvas, train)
        x = stages.stage5

        lows = [stages[stage - 2] for stage in self.fuse_stages]
        if fusion is CommonFusion:
            x = CommonFusion(self.conv_bias, self.dtype, self.folded, name='fusion')(lows, x, train)
        elif fusion:
            x = self._block(fusion, name='fusion')(lows, x, train)
        x = self._conv_bn(self.head_channels, 'bottleneck')(x, train)
        if context:
            x = self._block(context, share=self.share, name='context')(x, train)
        if self.decoder == 'stage2':
            decoder = Decoder(
                self.decoder_channels,
                self.align_corners,
                self.conv_bias,
                self.dtype,
                self.folded,
                name='decoder',
            )
            x = decoder(stages.stage2, x, train)
        main = self._classifier('classifier')(x)
        auxiliary = self._auxiliary(stages.stage4, train)
        if full_size:
            main = main.resized(canvas, self.align_corners)
            auxiliary = auxiliary and auxiliary.resized(canvas, self.align_corners)
        return Logits(main.like(image), None if auxiliary is None else auxiliary.like(image))

    def _features(self, image, train):
        """The stages of the backbone, which may be arrays if it does not support canvases."""
        stages = self.backbone(image, train)
        if len(stages) != 4:
            raise ConfigError(
                f'the backbone returns {len(stages)} feature maps: ANN needs those of four stages'
            )
        if image.size is not None and not all(isinstance(x, FeatureMap) for x in stages):
            raise ConfigError(
                f'{type(self.backbone).__name__} returns arrays, which do not say which part of a canvas is '
                'valid: build it from the layers of ann_jax.models, or use images of one size '
                '(eval.batch_size=1) and mesh.space=1'
            )
        return Stages(*map(FeatureMap.of, stages))

    def _canvas_height(self, height, shards):
        if not hasattr(self.backbone, 'canvas_height'):
            raise ConfigError(
                f'mesh.space={shards}: {type(self.backbone).__name__} has no method canvas_height, without '
                'which the rows of an image cannot be split'
            )
        return self.backbone.canvas_height(height, shards)

    def _auxiliary(self, stage4: FeatureMap, train: bool) -> FeatureMap | None:
        if self.folded or not self.aux_channels:
            return None
        x = self._conv_bn(self.aux_channels, 'aux_bottleneck')(stage4, train)
        return self._classifier('aux_classifier')(Dropout2d(self.dropout)(x, train))

    def _block(self, block, **settings):
        if block in (APNB, AFNB):
            settings['sampling'] = self.sampling
        return block(
            channels=self.key_channels,
            sizes=self.sizes,
            out_norm=self.out_norm,
            dropout=self.dropout,
            conv_bias=self.conv_bias,
            dtype=self.dtype,
            folded=self.folded,
            **settings,
        )

    def _conv_bn(self, features, name):
        return ConvBN(
            features, kernel_size=3, bias=self.conv_bias, dtype=self.dtype, folded=self.folded, name=name
        )

    def _classifier(self, name: str) -> Conv:
        # Always float32: the loss and the argmax compare logits that differ little.
        return Conv(self.num_classes, bias=True, kernel_init=normal(0.01), name=name)


def image_logits(
    model: nn.Module,
    variables: Mapping[str, Any],
    image: FeatureMap,
    *,
    train: bool,
    mutable: Sequence[str] = (),
    rngs: dict[str, jax.Array] | None = None,
) -> tuple[Logits[FeatureMap], Mapping[str, Any]]:
    """Logits of the size of the image from an `ANN` or any other network, and the collections it changed.

    Args:
        model: an `ANN`, or a Flax module `(images, train=...)` -> class scores (B, h, w, K), or a pair of
            scores, the second from an auxiliary head. Scores of another size are resized bilinearly.
        variables: the model's variables.
        image: normalised images, (B, H, W, C).
        train: see `ANN`.
        mutable, rngs: passed to `model.apply`.

    Raises:
        ConfigError: the rows of the image are split over devices, and the model is not an `ANN`.
    """
    if isinstance(model, ANN):
        return model.apply(variables, image, full_size=True, train=train, mutable=mutable, rngs=rngs)
    image.split_over_devices(_refuse_split)  # raises if rows would be split
    output, changed = model.apply(variables, image.array, train=train, mutable=mutable, rngs=rngs)
    main, auxiliary = output if isinstance(output, tuple | list) else (output, None)
    return Logits(_sized(main, image), None if auxiliary is None else _sized(auxiliary, image)), changed


def count_classes(model: nn.Module, variables: Mapping[str, Any], image: jax.ShapeDtypeStruct) -> int:
    """Number of classes of a network that `image_logits` takes; reads it off the logits, computes nothing."""
    if isinstance(model, ANN):
        return model.num_classes
    logits = lambda *args: image_logits(model, args[0], FeatureMap.of(args[1]), train=False)[0]
    return jax.eval_shape(logits, variables, image).main.array.shape[-1]


def _sized(scores: Given, image: FeatureMap) -> FeatureMap:
    x = FeatureMap.of(scores)
    return x if x.array.shape[1:3] == image.array.shape[1:3] else x.resized(image, False)


def _refuse_split(_, shards):
    raise ConfigError(f'mesh.space={shards}: rows of images can only be split for an ANN; use mesh.space=1')
