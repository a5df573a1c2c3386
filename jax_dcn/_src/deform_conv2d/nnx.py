# SPDX-License-Identifier: MIT
"""Deformable convolution as a Flax NNX module."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

from jax_dcn._src.deform_conv2d import layer as layers
from jax_dcn._src.deform_conv2d.geometry import Boundary
from jax_dcn._src.operator.implementation import Implementation
from jax_dcn._src.public import public
from jax_dcn._src.sampling.window import Padding


@public("jax_dcn.nnx")
class DeformConv(nnx.Module):
    r"""Convolution that predicts, at every output position, where its taps sample the input.

    An ordinary convolution of the input, `offset_conv`, predicts the offsets and, if `modulated`,
    the mask `mask_scale * sigmoid(logits)`; `jax_dcn.deform_conv2d` does the rest. `offset_conv`
    starts at zero and shares `strides`, `padding` and `kernel_dilation`. A fresh layer therefore
    samples the regular grid: with `modulated=False` or `mask_scale=2.0` it equals `nnx.Conv` with
    the same kernel; with the default `mask_scale=1.0`, the paper's, every tap counts half.

    `"offset"`, `"mask"` and `"sampling_positions"` are sown as `nnx.Intermediate` while
    `nnx.capture` listens.

    Args:
      in_features: Number of input channels `C`.
      out_features: Number of output channels `O`.
      kernel_size: Taps, one number or `(height, width)`.
      strides, padding, kernel_dilation, feature_group_count: As in `nnx.Conv`. A PyTorch layer's
        `padding=1` is `padding=1` here, too, not `"SAME"`, which differs with strides.
      offset_groups: Number of groups of input channels that have offsets of their own.
      modulated: Whether taps are weighted by a mask: version 2 of the paper.
      mask_scale: The mask's largest value; 2.0 keeps a pretrained convolution's output.
      use_bias: Whether to add a bias.
      boundary: What a sample outside the image is, see `jax_dcn.deform_conv2d`.
      dtype: Of the computation; by default, what the input and the parameters promote to.
      param_dtype: Of the parameters.
      precision: Of the matrix products, see `jax_dcn.deform_conv2d`.
      kernel_init, bias_init: Initialisers of `kernel` and `bias`.
      implementation: See `jax_dcn.deform_conv2d`.
      rngs: Random streams; `params` initialises the kernel.

    Raises:
      ValueError: on call, if the input does not fit; the message names the argument.

    Examples:
      >>> from flax import nnx
      >>> import jax.numpy as jnp, jax_dcn.nnx
      >>> layer = jax_dcn.nnx.DeformConv(8, 16, (3, 3), strides=2, padding=1, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((4, 32, 32, 8))
      >>> layer(x).shape
      (4, 16, 16, 16)

      Where it looked, to draw it, from a layer anywhere in a network (flax 0.12.6 or newer):

      >>> y, sown = nnx.capture(layer, nnx.Intermediate)(x)
      >>> (positions,) = sown["sampling_positions"]
      >>> positions.shape
      (4, 16, 16, 1, 9, 2)

      A tenth of the learning rate for the offset branch, as in the papers:

      >>> import optax
      >>> optimizer = optax.chain(
      ...     optax.sgd(0.1), optax.masked(optax.scale(0.1), jax_dcn.nnx.is_offset_branch)
      ... )
      >>> optimizer = nnx.Optimizer(layer, optimizer, wrt=nnx.Param)
      >>> loss = lambda layer: (layer(x) ** 2).mean()
      >>> updates = optimizer.update(layer, nnx.grad(loss)(layer))

    References:
      Zhu et al., "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        *,
        padding: Padding = "SAME",
        kernel_dilation: int | Sequence[int] = 1,
        feature_group_count: int = 1,
        offset_groups: int = 1,
        modulated: bool = True,
        mask_scale: float = 1.0,
        use_bias: bool = True,
        boundary: Boundary = "padded",
        dtype: jax.typing.DTypeLike | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        precision: Any = None,
        kernel_init: Callable[..., jax.Array] = nnx.initializers.lecun_normal(),
        bias_init: Callable[..., jax.Array] = nnx.initializers.zeros_init(),
        implementation: Implementation = None,
        rngs: nnx.Rngs,
    ):
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.kernel_dilation = kernel_dilation
        self.feature_group_count = feature_group_count
        self.offset_groups = offset_groups
        self.modulated = modulated
        self.mask_scale = mask_scale
        self.boundary = boundary
        self.dtype = dtype
        self.precision = precision
        self.implementation = implementation
        shape = (*layers.kernel_size(self), in_features // feature_group_count, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        self.bias = (
            nnx.Param(bias_init(rngs.params(), (out_features,), param_dtype)) if use_bias else None
        )
        self.offset_conv = nnx.Conv(
            in_features,
            layers.offset_features(self),
            layers.kernel_size(self),
            strides,
            padding=padding,
            kernel_dilation=kernel_dilation,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            kernel_init=nnx.initializers.zeros_init(),
            conv_general_dilated=layers.offset_convolution,
            # Zeros need no randomness: a network of these layers starts with the kernels that one
            # of ordinary convolutions gets from the same `rngs`.
            rngs=nnx.Rngs(0),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images `[..., H, W, C]` to `[..., Ho, Wo, O]`."""
        offset, mask = self.offset_and_mask(x)
        self._sow_samples(x, offset, mask)
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = dtypes.promote_dtype((x, self.kernel[...], bias), dtype=self.dtype)
        return layers.convolve(self, x, kernel, offset, mask, bias)

    def _sow_samples(self, x: jax.Array, offset: jax.Array, mask: jax.Array | None) -> None:
        # Outside of `nnx.capture`, sowing would store arrays in the layer with every call.
        if hasattr(self, "__captures__"):
            self.sow(nnx.Intermediate, "offset", offset)
            self.sow(nnx.Intermediate, "mask", mask)
            self.sow(nnx.Intermediate, "sampling_positions", layers.positions(self, x, offset))

    def offset_and_mask(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """The offsets `[..., Ho, Wo, G, K, 2]` in pixels and the mask `[..., Ho, Wo, G, K]`."""
        return layers.offset_and_mask(self, self.offset_conv(x))

    def sampling_positions(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Where every output position samples `x`, to draw it.

        Returns:
          Positions `[..., Ho, Wo, G, K, 2]` in pixels of `x`, last axis `(y, x)`, and the mask.
        """
        offset, mask = self.offset_and_mask(x)
        return layers.positions(self, x, offset), mask
