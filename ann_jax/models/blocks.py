"""The non-local block family of the paper (Sec. 3), for `ANN` and for any other Flax network.

| block | call | keys and values |
|---|---|---|
| `APNB` (Sec. 3.2) | `(x, train)` | the anchors of x |
| `NB` (Sec. 3.1) | `(x, train)` | every pixel of x |
| `AFNB` (Sec. 3.3) | `(low, high, train)` | the anchors of low |
| `FNB` (Sec. 3.3) | `(low, high, train)` | every pixel of low |

    y = APNB(channels=256).apply(variables, x)      # (B, H, W, C) -> (B, H, W, C)

The names `query`, `key` and `value` stand for the paper's phi, theta and gamma.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Float32

from ann_jax.errors import ConfigError, unknown
from ann_jax.kernels import Array
from ann_jax.kernels.anchors import sample_anchors, sample_projected, seen_anchors
from ann_jax.kernels.convolution import convolve
from ann_jax.kernels.forms import computed_once
from ann_jax.kernels.products import product
from ann_jax.models.feature_map import FeatureMap, Features, Given
from ann_jax.models.initializers import zeros
from ann_jax.models.layers import BatchNorm, Conv, ConvBN, Dropout2d

SHARES = ('query_key', 'key_value', 'none')


def evaluation_rng() -> jax.Array:
    """The key of random anchors in evaluation, which always draws the same ones, to be reproducible."""
    return jax.random.key(0)


class Attended(NamedTuple):
    """The attention's output O of Eq. 10 as two factors: O = weights values."""

    weights: Float[jax.Array, 'B N S']  # softmax over the anchors, one row per pixel
    values: Float[jax.Array, 'B S C']  # of C^ channels


class Attention(nn.Module):
    """Attention of every pixel of `high` to the anchors of `low`: O = softmax(phi theta_P) gamma_P.

    Equations 8 to 10 of the paper, or 14 to 16 for two inputs, with the scale 1 / sqrt(C^) of the released
    code. It also owns W_o, which the block applies (Eq. 11 and 17).

    Attributes:
        features: C, the channels of `high`, which W_o maps to.
        channels: C^, the width of query, key and value.
        sampling: how anchors are sampled, see `sample_anchors`.
        sizes: sizes of the pooling levels, see `sample_anchors`.
        share: 'query_key' shares one projection between query and key (the released code, where low is high),
            'key_value' between key and value (the paper's text, Sec. 3.4); 'none' has three projections.
        out_norm: batch normalisation after W_o, which according to the paper only helps AFNB (Appendix C).
        conv_bias: whether convolutions before batch normalisation have a bias, as in the released code.
        dtype: what it computes in; parameters are float32.
        folded: see `fold`.
    """

    features: int
    channels: int = 256
    sampling: str = 'average'
    sizes: Sequence[int] = (1, 3, 6, 8)
    share: str = 'none'
    out_norm: bool = False
    conv_bias: bool = True
    dtype: DTypeLike = jnp.float32
    folded: bool = False

    def setup(self):
        """Creates the projections.

        Raises:
            ConfigError: unknown `share`.
        """
        if self.share not in SHARES:
            raise ConfigError(unknown('share', self.share, SHARES))

        def projection(momentum=0.9):
            return ConvBN(
                self.channels,
                bias=self.conv_bias,
                momentum=momentum,
                dtype=self.dtype,
                folded=self.folded,
            )

        if self.share == 'query_key':
            # torch runs the shared projection twice per step, and so updates its statistics twice.
            self.key = projection(momentum=0.9**2)
        else:
            self.query, self.key = projection(), projection()
        if self.share != 'key_value':
            self.value = Conv(self.channels, bias=True, dtype=self.dtype)
        # W_o starts at zero, so a new block passes `high` on unchanged.
        self.out = Conv(self.features, bias=not self.folded, kernel_init=zeros, dtype=self.dtype)
        if self.out_norm and not self.folded:
            self.out_bn = BatchNorm()

    def __call__(self, low: FeatureMap, high: FeatureMap, train: bool) -> Attended:
        """(B, H_l, W_l, C_l), (B, H, W, C) -> O for the N = H * W pixels of `high`.

        Raises:
            ConfigError: unknown `sampling`, or query and key share a projection but the inputs differ.
        """
        if self.share == 'query_key' and low is not high:
            raise ConfigError("share='query_key' needs one input; a fusion block has two: use 'none'")
        rng = None
        if self.sampling == 'random':
            rng = self.make_rng('sampling') if train else evaluation_rng()

        key = self.key(low, train)
        query = key if self.share == 'query_key' else self.query(high, train)
        keys = sample_anchors(key.array, self.sampling, self.sizes, rng, low.size)  # Eq. 8
        if self.share == 'key_value':
            values = keys
        else:
            kernel, bias = self.value.weights(low.channels)
            pixels = low.array.astype(self.dtype)
            values = sample_projected(pixels, kernel[0, 0], bias, self.sampling, self.sizes, rng, low.size)
        seen = seen_anchors(key.array, self.sampling, low.size)
        return Attended(attention_weights(query.array, keys, seen).astype(values.dtype), values)

    def response(self, low: FeatureMap, high: FeatureMap, train: bool) -> FeatureMap:
        """W_o(O), (B, H, W, features), as Eq. 11 concatenates it; normalised with `out_norm`."""
        attended = self(low, high, train)
        kernel, bias = self.out.weights(self.channels)
        response = high.with_array(apply_kernel(attended, kernel[0, 0], bias, high))
        return self.out_bn(response, train) if self.out_norm and not self.folded else response


def attention_weights(
    query: Float[Array, 'B H W C'],
    keys: Float[Array, 'B S C'],
    seen: Bool[Array, 'B S'] | None = None,
) -> Float32[jax.Array, 'B H*W S']:
    """softmax(query keys^T / sqrt(C^)) over the anchors (Eq. 9).

    Args:
        query: one per pixel.
        keys: one per anchor.
        seen: False for keys that are masked out; None if none are.
    """
    query = query.reshape(query.shape[0], -1, query.shape[-1])
    similarity = jnp.einsum('bnc,bsc->bns', query, keys, preferred_element_type=jnp.float32)
    similarity = similarity * query.shape[-1] ** -0.5
    if seen is not None:
        similarity = jnp.where(seen[:, None], similarity, -jnp.inf)
    return nn.softmax(similarity)


def apply_kernel(
    attended: Attended,
    kernel: Float[Array, 'C D'],
    bias: Float[Array, ' D'] | float,
    high: FeatureMap,
) -> Float[jax.Array, 'B H W D']:
    """O kernel + bias, for the pixels of `high`."""
    weights, values = attended
    if values.shape[1] < values.shape[2]:
        # The kernel is applied to the few anchors instead of all pixels. The weights sum to one, so the bias
        # is unchanged.
        y = jnp.einsum('bns,bsd->bnd', weights, product(values, kernel) + bias)
    else:
        y = product(jnp.einsum('bns,bsc->bnc', weights, values), kernel) + bias
    return y.reshape(*high.array.shape[:3], -1)


class NonLocalBlock(nn.Module):
    """Base of the four blocks: BN(conv(cat[W_o(O), X])) of attention and input (Eq. 11 and 17).

    Attributes:
        features: output channels; None for the input's.
        channels: C^, the width of query, key and value.
        sampling: how anchors are sampled, see `sample_anchors`.
        sizes: sizes of the pooling levels, see `sample_anchors`.
        share: projections that query, key and value share, see `Attention`.
        relu: whether a ReLU follows; in the released code, it does in APNB and not in AFNB.
        out_norm: batch normalisation after W_o, see `Attention`.
        dropout: rate of the Dropout2d at the end, which draws from the 'dropout' stream.
        conv_bias: whether convolutions before batch normalisation have a bias, as in the released code.
        dtype: what it computes in; parameters are float32.
        folded: see `fold`.
    """

    features: int | None = None
    channels: int = 256
    sampling: str = 'average'
    sizes: Sequence[int] = (1, 3, 6, 8)
    share: str = 'none'
    relu: bool = False
    out_norm: bool = False
    dropout: float = 0.05
    conv_bias: bool = True
    dtype: DTypeLike = jnp.float32
    folded: bool = False

    @nn.compact
    def attend(self, lows: Sequence[FeatureMap], high: FeatureMap, train: bool) -> FeatureMap:
        """Maps (B, H, W, C) to (B, H, W, features).

        Args:
            lows: maps (B, H_l, W_l, C_l) for keys and values; the responses to several are summed (Table 9).
                `[high]` gives self-attention.
            high: (B, H, W, C) map for queries.
            train: whether to drop channels and take batch statistics.

        Raises:
            ConfigError: there is no map for keys and values, or one is of another batch.
        """
        batches = [low.array.shape[0] for low in lows]
        if not lows or any(batch != high.array.shape[0] for batch in batches):
            raise ConfigError(
                f'maps for keys and values of {batches} images, for queries of {high.array.shape[0]}: '
                'give one map or more, of the same images'
            )
        channels = high.channels
        features = self.features or channels
        attentions = [
            Attention(
                features if self.folded else channels,
                self.channels,
                self.sampling,
                self.sizes,
                self.share,
                self.out_norm,
                self.conv_bias,
                self.dtype,
                self.folded,
                name=f'attention_{i}',
            )
            for i in range(len(lows))
        ]
        projection = ConvBN(
            features,
            bias=self.conv_bias,
            relu=self.relu,
            dtype=self.dtype,
            folded=self.folded,
            name='project',
        )

        # Eq. 11 and 17: cat[W_o(O), X] W = W_o(O) W_response + X W_input, without a map of 2 C channels.
        if self.folded:
            w_input, bias = projection.conv.weights(channels)  # `fold` has merged W_response into W_o
        else:
            kernel, bias = projection.conv.weights(2 * channels)
            w_response, w_input = jnp.split(kernel, 2, axis=2)
        x = convolve(high.array.astype(self.dtype), w_input) + bias
        for attention, low in zip(attentions, lows, strict=True):
            if self.folded:
                x += attention.response(low, high, train).array
            elif self.out_norm:
                x += convolve(attention.response(low, high, train).array, w_response)
            else:
                # W_o and W_response follow each other directly and C^ is less than C, so their product is
                # applied.
                w_o, b_o = attention.out.weights(self.channels)
                half = w_response[0, 0]
                attended = attention(low, high, train)
                x += apply_kernel(attended, product(w_o[0, 0], half), b_o @ half, high)
        y = projection.finish(high.with_array(x), train)
        # If XLA fused this with the padding for the next convolution, it would need memory for one more map.
        y = y.with_array(computed_once(y.array))
        return Dropout2d(self.dropout)(y, train)


class APNB(NonLocalBlock):
    """Asymmetric Pyramid Non-local Block (Sec. 3.2): every pixel attends to the anchors of the same map.

    `ANN` uses it as `context`, with the same parameters.
    """

    share: str = 'query_key'
    relu: bool = True

    def __call__(self, x: Given, train: bool = False) -> Given:
        """(B, H, W, C) -> (B, H, W, features); returns an array or a `FeatureMap`, like `x`.

        Raises:
            ConfigError: unknown `sampling` or `share`.
        """
        high = FeatureMap.of(x)
        return self.attend([high], high, train).like(x)


class NB(APNB):
    """Non-local block (Sec. 3.1): `APNB` with every pixel as an anchor."""

    sampling: str = 'all'


class AFNB(NonLocalBlock):
    """Asymmetric Fusion Non-local Block (Sec. 3.3): pixels of one map attend to the anchors of another.

    `ANN` uses it as `fusion`, with the same parameters.
    """

    def __call__(self, low: Features | Sequence[Features], high: Given, train: bool = False) -> Given:
        """(B, H_l, W_l, C_l), (B, H, W, C) -> (B, H, W, features), an array or a `FeatureMap`, like `high`.

        Args:
            low: map for keys and values, of any size and number of channels, or several, to which the
                responses are summed (Table 9).
            high: map for queries.
            train: whether to drop channels and take batch statistics.

        Raises:
            ConfigError: unknown `sampling`, or a `share` that needs one input.
        """
        lows = low if isinstance(low, Sequence) else [low]
        return self.attend([FeatureMap.of(each) for each in lows], FeatureMap.of(high), train).like(high)


class FNB(AFNB):
    """Fusion non-local block (Sec. 3.3): `AFNB` with every pixel as an anchor."""

    sampling: str = 'all'


class CommonFusion(nn.Module):
    """The common fusion of Table 6: high + ReLU(BN(conv(low))), summed over the low maps."""

    conv_bias: bool = True
    dtype: DTypeLike = jnp.float32
    folded: bool = False

    @nn.compact
    def __call__(self, lows: Sequence[Features], high: Given, train: bool) -> Given:
        """(B, H_l, W_l, C_l) each, (B, H, W, C) -> (B, H, W, C); larger low maps are resized."""
        total = FeatureMap.of(high)
        for i, low in enumerate(map(FeatureMap.of, lows)):
            layer = ConvBN(
                total.channels,
                bias=self.conv_bias,
                dtype=self.dtype,
                folded=self.folded,
                name=f'fuse_{i}',
            )
            response = layer(low, train)
            if response.array.shape != total.array.shape:
                response = response.resized(total, align_corners=True)
            total = total.with_array(total.array + response.array)
        return total.like(high)
