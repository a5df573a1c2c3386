# SPDX-License-Identifier: MIT
"""Deformable convolution as a Flax Linen module."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from jax_dcn._src import arguments
from jax_dcn._src.arguments import renamed_options
from jax_dcn._src.deform_conv2d import layer as layers
from jax_dcn._src.deform_conv2d.hints import OPTIONS
from jax_dcn._src.operator.implementation import Implementation
from jax_dcn._src.public import public
from jax_dcn._src.sampling.bilinear import Boundary

_OPTIONS = OPTIONS | {"out_channels": "features", "out_features": "features"}
_REASONS = dict.fromkeys(("in_channels", "in_features"), "the layer learns the channels from x")


@public("jax_dcn.linen")
@renamed_options(_OPTIONS, _REASONS)
class DeformConv(nn.Module):
    r"""Convolution that predicts, at every output position, where its taps sample the input.

    The Linen twin of `jax_dcn.nnx.DeformConv`: the same options, values, and names of parameters
    (`kernel`, `bias`, `offset_conv/kernel`, `offset_conv/bias`). With `modulated=False` or
    `mask_scale=2.0` a fresh layer equals `nn.Conv` with the same kernel; with the default
    `mask_scale=1.0`, the paper's, every tap counts half.

    `"offset"`, `"mask"` and `"sampling_positions"` are sown into the collection `intermediates`.

    Attributes:
      features: Number of output channels `O`.
      kernel_size: Taps, one number or `(height, width)`.
      strides, padding, kernel_dilation, feature_group_count: As in `nn.Conv`, `"CIRCULAR"` and
        `"REFLECT"` included. A PyTorch layer's `padding=1` is `padding=1` here, too, not `"SAME"`,
        which differs with strides.
      offset_groups: Number of groups of input channels that have offsets of their own.
      modulated: Whether taps are weighted by a mask: version 2 of the paper.
      mask_scale: The mask's largest value; 2.0 keeps a pretrained convolution's output.
      use_bias: Whether to add a bias.
      offset_branch: Whether the layer predicts offsets. `False`: it is called with them,
        `layer(x, offset, mask=None)`.
      guide_features: Channels of the tensor that offsets are predicted from, if another than `x`:
        `layer(x, guide=features)`. By default any number.
      offset_dtype: Dtype of the computation of offsets and mask; by default at least float32. In
        bfloat16, an offset of 20.3 pixels is 20.25.
      boundary: The value of samples outside the image, see `jax_dcn.deform_conv2d`.
      dtype: Dtype of the computation; by default, the input and the parameters are promoted.
      param_dtype: Dtype of the parameters.
      precision: Precision of the matrix products, see `jax_dcn.deform_conv2d`.
      kernel_init, bias_init: Initialisers of `kernel` and `bias`.
      implementation: See `jax_dcn.deform_conv2d`.

    Raises:
      ValueError: when the layer is made, for options that are wrong or have no effect; on call, if the
        input does not fit. The message names the argument.

    Examples:
      >>> import jax, jax.numpy as jnp, jax_dcn.linen
      >>> layer = jax_dcn.linen.DeformConv(16, (3, 3), strides=2, padding=1)
      >>> x = jnp.ones((4, 32, 32, 8))
      >>> variables = layer.init(jax.random.key(0), x)
      >>> layer.apply(variables, x).shape
      (4, 16, 16, 16)

      Where it looked, to draw it, from a layer anywhere in a network:

      >>> y, sown = layer.apply(variables, x, mutable="intermediates")
      >>> (positions,) = sown["intermediates"].get("sampling_positions")
      >>> positions.shape
      (4, 16, 16, 1, 9, 2)

      A tenth of the learning rate for the offset branch, as in the papers:

      >>> import optax
      >>> optimizer = optax.chain(
      ...     optax.sgd(0.1), optax.masked(optax.scale(0.1), jax_dcn.linen.is_offset_branch)
      ... )
      >>> state = optimizer.init(variables["params"])

    References:
      Zhu et al., "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    padding: layers.LayerPadding = "SAME"
    kernel_dilation: int | Sequence[int] = 1
    feature_group_count: int = 1
    offset_groups: int = 1
    modulated: bool = True
    mask_scale: float = 1.0
    use_bias: bool = True
    boundary: Boundary = "padded"
    offset_branch: bool = True
    guide_features: int | None = None
    offset_dtype: jax.typing.DTypeLike | None = None
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32
    precision: Any = None
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()
    bias_init: Callable[..., jax.Array] = nn.initializers.zeros_init()
    implementation: Implementation = None

    def __post_init__(self) -> None:
        """Refuses options that are wrong, or that have no effect beside the others."""
        layers.check_options(self)
        layers.check_initialisers(self.kernel_init, self.bias_init)
        arguments.positive("features", self.features)
        super().__post_init__()

    def setup(self) -> None:
        """Makes the branch that predicts offsets."""
        if self.offset_branch:
            self.offset_conv = nn.Conv(
                layers.offset_features(self),
                layers.kernel_size(self),
                **layers.convolution_options(self),
                kernel_init=nn.initializers.zeros_init(),
            )

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        offset: jax.Array | None = None,
        mask: jax.Array | None = None,
        *,
        guide: jax.Array | None = None,
    ) -> jax.Array:
        """Images `[..., H, W, C]` to `[..., Ho, Wo, O]`.

        Args:
          x: The images.
          offset: With `offset_branch=False`, the offsets `[..., Ho, Wo, G, K, 2]` in pixels.
          mask: With `offset_branch=False`, the mask `[..., Ho, Wo, G, K]`, or none.
          guide: Features `[..., H, W, guide_features]` to predict offsets from, instead of `x`.
        """
        x = self._checked(x, offset, mask, guide)
        if self.offset_branch:
            offset, mask = self._predicted(x if guide is None else guide)
        assert offset is not None  # which was checked
        shape = (*layers.kernel_size(self), x.shape[-1] // self.feature_group_count, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "offset", offset)
            self.sow("intermediates", "mask", mask)
            self.sow("intermediates", "sampling_positions", layers.positions(self, x, offset))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return layers.convolve(self, x, kernel, offset, mask, bias)

    def _checked(
        self, x: Any, offset: Any = None, mask: Any = None, guide: Any = None
    ) -> jax.Array:
        x = layers.check_call(self, x, offset, mask, guide)
        layers.check_features(self, x.shape[-1], self.features)
        return x

    def _predicted(self, features: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        predicted = self.offset_conv(layers.branch_input(self, features))
        return layers.offset_and_mask(self, predicted)

    def offset_and_mask(
        self, x: jax.Array, *, guide: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """The offsets `[..., Ho, Wo, G, K, 2]` in pixels and the mask `[..., Ho, Wo, G, K]`."""
        layers.check_predicts(self)
        x = self._checked(x, guide=guide)
        return self._predicted(x if guide is None else guide)

    def sampling_positions(
        self, x: jax.Array, *, guide: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Where every output position samples `x`, to draw it.

        Returns:
          Positions `[..., Ho, Wo, G, K, 2]` in pixels of `x`, last axis `(y, x)`, and the mask.
        """
        offset, mask = self.offset_and_mask(x, guide=guide)
        return layers.positions(self, x, offset), mask
