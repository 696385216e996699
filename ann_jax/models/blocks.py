"""The non-local block family of the paper (Sec. 3): NB, FNB, APNB and AFNB are one module.

| block | low | high | sampling |
|---|---|---|---|
| NB (Sec. 3.1) | Stage5 | Stage5 | 'all' |
| APNB (Sec. 3.2) | Stage5 | Stage5 | 'average', sizes (1, 3, 6, 8) |
| FNB (Sec. 3.3) | Stage4 | Stage5 | 'all' |
| AFNB (Sec. 3.3) | Stage4 | Stage5 | 'average', sizes (1, 3, 6, 8) |

The names `query`, `key` and `value` stand for the paper's phi, theta and gamma.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from ann_jax.convolution import convolve, product
from ann_jax.errors import ConfigError, unknown
from ann_jax.models.layers import BatchNorm, Conv, ConvBN, Dropout2d
from ann_jax.ops import resize_bilinear, sample_anchors
from ann_jax.rows import Rows, anchors, resize

SHARES = ('query_key', 'key_value', 'none')


class Attention(nn.Module):
    """Attention of every pixel of `high` to the anchors of `low`: W_o(softmax(phi theta_P) gamma_P).

    Equations 8 to 10 of the paper, 14 to 16 for two inputs, with the scale 1 / sqrt(C^) of the
    released code. W_o starts at zero, so a new block passes `high` on unchanged.

    Attributes:
        channels: C^, the width of query, key and value.
        sampling, sizes: how anchors are sampled, see `ops.sample_anchors`.
        share: 'query_key' uses one projection for both (the released code, where low is high),
            'key_value' one for key and value (the paper's text, Sec. 3.4), 'none' three.
        conv_bias: whether convolutions before batch normalisation have a bias, as in the released code.
        out_norm: batch normalisation after W_o, which the paper finds to help AFNB alone (Appendix C).
    """

    channels: int = 256
    sampling: str = 'average'
    sizes: Sequence[int] = (1, 3, 6, 8)
    share: str = 'none'
    out_norm: bool = False
    conv_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        low: jax.Array,
        high: jax.Array,
        train: bool,
        low_rows: Rows | None = None,
        rows: Rows | None = None,
        then: jax.Array | None = None,
    ) -> jax.Array:
        """(B, H_l, W_l, C_l), (B, H, W, C) -> (B, H, W, C).

        Or (B, H, W, D) with `then`, the kernel (1, 1, C, D) of a convolution of the response.
        """
        if self.share not in SHARES:
            raise ConfigError(unknown('share', self.share, SHARES))
        if self.share == 'query_key' and low is not high:
            raise ConfigError("share='query_key' needs one input; a fusion block has two: use 'none'")

        def project(x, name, rows, momentum=0.9):
            layer = ConvBN(self.channels, bias=self.conv_bias, momentum=momentum, dtype=self.dtype, name=name)
            return layer(x, train, rows)

        def sample(x):
            if low_rows is None:
                return sample_anchors(x, self.sampling, self.sizes, rng)
            return anchors(x, self.sampling, self.sizes, rng, low_rows)

        if self.share == 'query_key':
            # torch runs the shared projection twice a step and so moves its statistics twice.
            query = key = project(low, 'key', low_rows, momentum=0.9**2)
        else:
            query, key = project(high, 'query', rows), project(low, 'key', low_rows)

        rng = None
        if self.sampling == 'random':
            # Evaluation always draws the same anchors, so that its result does not change between runs.
            rng = self.make_rng('sampling') if train else jax.random.key(0)
        values = Conv(self.channels, bias=True, dtype=self.dtype, name='value')
        if self.share == 'key_value':
            value = sample(key)
        elif self.sampling == 'average' and low_rows is None:
            # The projection of a mean is the mean of projections, and there are fewer means.
            value = values(sample(low)[:, None])[:, 0]
        else:
            value = sample(values(low, low_rows))

        zeros = nn.initializers.zeros
        out = Conv(high.shape[-1], bias=True, kernel_init=zeros, dtype=self.dtype, name='out')
        kernel, bias = out.weights(self.channels)
        kernel = kernel[0, 0]
        if then is not None and not self.out_norm:
            # Nothing lies between the two products, and C^ is less than C: their kernels are multiplied.
            kernel, bias, then = product(kernel, then[0, 0]), bias @ then[0, 0], None
        query = query.reshape(*query.shape[:1], -1, self.channels)
        response = attend(query, sample(key), value, kernel, bias).reshape(*high.shape[:3], -1)
        if self.out_norm:
            response = BatchNorm(name='out_bn')(response, train, rows)
        return response if then is None else convolve(response, then, split=rows is not None)


def attend(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | float = 0.0,
    seen: jax.Array | None = None,
) -> jax.Array:
    """Weighted sums of values, and W_o: softmax(query keys^T / sqrt(C^)) values W_o + b_o.

    Args:
        query: (B, N, C^).
        keys, values: (B, S, C^).
        kernel, bias: W_o (C^, D) and b_o (D,).
        seen: (B, S), where false for a key that no query attends to.

    Returns:
        (B, N, D) in the dtype of values; the softmax is computed in float32.
    """
    similarity = jnp.einsum('bnc,bsc->bns', query, keys, preferred_element_type=jnp.float32)
    similarity = similarity * query.shape[-1] ** -0.5
    if seen is not None:
        similarity = jnp.where(seen[:, None], similarity, -jnp.inf)
    weights = nn.softmax(similarity).astype(values.dtype)
    if keys.shape[1] < keys.shape[2]:
        # W_o is applied to a few anchors in place of all pixels. Weights sum to one: b_o passes unchanged.
        return jnp.einsum('bns,bsd->bnd', weights, product(values, kernel) + bias)
    return jnp.einsum('bns,bsc->bnc', weights, values) @ kernel + bias


class NonLocalBlock(nn.Module):
    """Concatenates attention and input and projects them: BN(conv(cat[W_o(O), X])) (Eq. 11 and 17).

    Attributes:
        features: output channels.
        relu: whether ReLU follows; the released code has one in APNB and none in AFNB.
        dropout: rate of the Dropout2d at the end.
        The others: see `Attention`.
    """

    features: int
    relu: bool
    channels: int = 256
    sampling: str = 'average'
    sizes: Sequence[int] = (1, 3, 6, 8)
    share: str = 'none'
    out_norm: bool = False
    dropout: float = 0.05
    conv_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        lows: Sequence[jax.Array],
        high: jax.Array,
        train: bool,
        low_rows: Sequence[Rows | None] | None = None,
        rows: Rows | None = None,
    ) -> jax.Array:
        """Maps to (B, H, W, features).

        Args:
            lows: maps (B, H_l, W_l, C_l) that keys and values come from; with several, their
                responses are summed (Table 9). `[high]` makes the block a self-attention.
            high: (B, H, W, C) map that queries come from.
            train: whether to drop channels and take batch statistics.
            low_rows, rows: of each low map and of `high`, where rows are split over devices.
        """
        attentions = [
            Attention(
                self.channels,
                self.sampling,
                self.sizes,
                self.share,
                self.out_norm,
                self.conv_bias,
                self.dtype,
                name=f'attention_{i}',
            )
            for i in range(len(lows))
        ]

        def responses(kernel):
            return sum(
                attention(low, high, train, low_row, rows, kernel)
                for attention, low, low_row in zip(
                    attentions, lows, low_rows or [None] * len(lows), strict=True
                )
            )

        project = Projection(self.features, self.relu, self.conv_bias, self.dtype, name='project')
        return Dropout2d(self.dropout)(project(responses, high, train, rows), train)


class Projection(nn.Module):
    """Convolution 1x1 of the concatenation of responses and input, batch normalisation and perhaps ReLU.

    The two halves of the kernel are applied apart: no map of 2 C channels is made, and the half for the
    responses is merged with W_o.
    """

    features: int
    relu: bool
    conv_bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        responses: Callable[[jax.Array], jax.Array],
        high: jax.Array,
        train: bool,
        rows: Rows | None = None,
    ) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, features); `responses` applies a kernel (1, 1, C, features) to them."""
        conv = Conv(self.features, bias=self.conv_bias, dtype=self.dtype, name='conv')
        kernel, bias = conv.weights(2 * high.shape[-1])
        response, passed = jnp.split(kernel, 2, axis=2)
        x = convolve(high.astype(self.dtype), passed, split=rows is not None) + responses(response) + bias
        x = BatchNorm(name='bn')(x, train, rows)
        return nn.relu(x) if self.relu else x


class CommonFusion(nn.Module):
    """The fusion that Table 6 compares with: high + ReLU(BN(conv(low))), summed over the low maps."""

    conv_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        lows: Sequence[jax.Array],
        high: jax.Array,
        train: bool,
        low_rows: Sequence[Rows | None] | None = None,
        rows: Rows | None = None,
    ) -> jax.Array:
        """(B, H_l, W_l, C_l) each, (B, H, W, C) -> (B, H, W, C); larger low maps are resized."""
        for i, (low, low_row) in enumerate(zip(lows, low_rows or [None] * len(lows), strict=True)):
            layer = ConvBN(high.shape[-1], bias=self.conv_bias, dtype=self.dtype, name=f'fuse_{i}')
            response = layer(low, train, low_row)
            if response.shape != high.shape:
                if rows is None:
                    response = resize_bilinear(response, high.shape[1:3], True)
                else:
                    sizes = [(r.height, x.shape[2]) for r, x in ((low_row, low), (rows, high))]
                    response = resize(response, sizes[0], high.shape[1:3], sizes[1], True, rows.mesh)
                    response = rows.clean(response).astype(high.dtype)
            high = high + response
        return high
