"""Vision transformers, pre-norm and homogeneous, with an exit before every block.

Notation (a state is a row of tokens, each of `width` numbers; a head has d of them)
    P_i     the pixels of patch i, in rows; e_i its learned position
    u       the state between a block's two halves
    q, k, v, o   dense layers of the attention: query, key, value, out

    x_0i = P_i W + b + e_i
    u = x_k + o(softmax(q k^T / sqrt(d)) v)     of norm_1(x_k); every head for itself, then together
    x_{k+1} = u + gelu(norm_2(u) W_k1 + b_k1) W_k2 + b_k2                          k = 0 ... N-1
    yhat_k = norm(mean over tokens of x_k) W + b,   yhat = the same of x_N

Both halves are one residual block, F_k = x_{k+1} - x_k: one stage. Every norm is a layer norm, so
that there are no batch statistics. There is no convolution whose result `remat="convolutions"`
would keep: a block is computed again, which on CPU takes no longer than keeping what its layers
give.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ocresnet.systems import layers
from ocresnet.systems.architecture import MOMENTUM, require_whole
from ocresnet.systems.layers import AxisName, Params
from ocresnet.systems.residual_chain import BLOCKS, ResidualChain
from ocresnet.systems.system import Execution, PyTree, Segment, Stage, System, Variables

Array = jax.Array

PROJECTIONS = ("query", "key", "value", "out")
"""The dense layers of an attention, from as many features to as many as a token has."""

POSITION_DEVIATION = 0.02
"""Standard deviation of the positions that are drawn."""


@dataclass(frozen=True)
class TransformerConfig(ResidualChain):
    """The architecture of a vision transformer.

    Attributes:
      blocks: how many residual blocks, N; each is an attention and an MLP.
      width: features of a token.
      heads: of every attention; they divide `width`.
      hidden: features inside a block; 0 means four times `width`.
      patch: pixels on the side of a patch, which divides the height and the width of an image.
      classes, image_shape, exits, pixel_mean, pixel_deviation: as in every architecture.

    Raises:
      ValueError: for an impossible value, saying what is allowed.
    """

    blocks: int = 6
    heads: int = 4
    hidden: int = 0
    patch: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, smallest in (("heads", 1), ("hidden", 0), ("patch", 1)):
            require_whole(name, getattr(self, name), smallest)
        if self.width % self.heads:
            raise ValueError(
                f"heads is {self.heads}, but must divide width, which is {self.width}."
            )

    @property
    def tokens(self) -> int:
        """How many patches an image has."""
        height, width, _ = self.image_shape
        return (height // self.patch) * (width // self.patch)

    def features(self, x: Array) -> Array:
        """The mean over the tokens."""
        return x.mean(1)

    def system(
        self,
        *,
        momentum: float | Array = MOMENTUM,
        axis_name: AxisName = None,
        execution: Execution = Execution(),
    ) -> System:
        """Stem, blocks with exits as outputs, output block; states are [batch, tokens, width].

        Raises:
          ValueError: if patches do not cover the images.
        """
        self._check_patches()

        def stem(stage: Stage, x: Array) -> tuple[Array, PyTree]:
            tokens = layers.dense(stage.params["embedding"], x)
            return tokens + stage.params["positions"].astype(x.dtype), {}

        def block(stage: Stage, x: Array) -> tuple[Array, PyTree]:
            branch = stage.params["residual"]
            normed = layers.layer_norm(branch["norm_1"], x)
            x = x + attention(branch["attention"], normed, self.heads)
            inner = layers.dense(branch["dense_1"], layers.layer_norm(branch["norm_2"], x))
            return x + layers.dense(branch["dense_2"], jax.nn.gelu(inner)), {}

        def initial_state(images: Array) -> Array:
            return patches(self.normalise(images, execution), self.patch)

        names = (*(f"attention/{name}" for name in PROJECTIONS), "dense_1", "dense_2")
        of_block = {f"residual/{name}": layers.dense for name in names}
        return self.chain(
            Segment("stem", stem, layers={"embedding": layers.dense}),
            Segment(BLOCKS, block, layers=of_block),
            initial_state,
            execution,
        )

    def init(self, key: Array) -> Variables:
        """LeCun-normal kernels, zero biases, small normal positions, float32.

        `params` is that of `init_chain`; the stem has `embedding` of the patches and `positions`
        [tokens, width].

        Raises:
          ValueError: if patches do not cover the images.
        """
        self._check_patches()
        stem_key, positions_key, blocks_key, head_key = jax.random.split(key, 4)
        hidden = self.hidden or 4 * self.width
        pixels = self.patch**2 * self.image_shape[2]
        positions = jax.random.normal(positions_key, (self.tokens, self.width), jnp.float32)

        def init_block(key: Array) -> tuple[Params, Array]:
            exit_key, first_key, second_key, *keys = jax.random.split(key, 3 + len(PROJECTIONS))
            branch = {
                "norm_1": layers.init_layer_norm(self.width),
                "attention": {
                    name: layers.init_dense(own, self.width, self.width)
                    for name, own in zip(PROJECTIONS, keys, strict=True)
                },
                "norm_2": layers.init_layer_norm(self.width),
                "dense_1": layers.init_dense(first_key, self.width, hidden),
                "dense_2": layers.init_dense(second_key, hidden, self.width),
            }
            return branch, exit_key

        stem = {
            "embedding": layers.init_dense(stem_key, pixels, self.width),
            "positions": POSITION_DEVIATION * positions,
        }
        return self.init_chain(stem, init_block, blocks_key, head_key)

    def _check_patches(self) -> None:
        """Refuse patches that do not cover an image: only here, as a configuration may be made
        before `for_dataset` gives it the size of the images."""
        height, width, _ = self.image_shape
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"patch is {self.patch}, but must divide the height and the width of an image, "
                f"which are {height} and {width}."
            )


def patches(images: Array, side: int) -> Array:
    """Images [batch, height, width, channels] cut into squares, row by row.

    Returns:
      [batch, patches, side * side * channels]; the pixels of a patch are row by row too.
    """
    batch, height, width, channels = images.shape
    rows = images.reshape(batch, height // side, side, width // side, side, channels)
    return rows.swapaxes(2, 3).reshape(batch, -1, side * side * channels)


def attention(params: Params, x: Array, heads: int) -> Array:
    """Every token's mean of all tokens' values, weighed by softmax(query . key / sqrt(d)).

    The softmax is at least float32, whatever the activations are.

    Args:
      params: `query`, `key`, `value`, `out`: dense layers from width to width. Head h has the
        features h d ... (h + 1) d - 1 of what the first three give.
      x: [batch, tokens, width].
      heads: how many; d = width / heads.

    Returns:
      [batch, tokens, width].
    """
    query, key, value = (
        layers.dense(params[name], x).reshape(*x.shape[:-1], heads, -1)
        for name in ("query", "key", "value")
    )
    precision = jnp.promote_types(x.dtype, jnp.float32)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=precision)
    weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5).astype(x.dtype)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
    return layers.dense(params["out"], mixed.reshape(x.shape))
