# SPDX-License-Identifier: MIT
"""Deformable convolution as a Flax NNX module."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

from jax_dcn._src.arguments import renamed, static
from jax_dcn._src.deform_conv2d import layer as layers
from jax_dcn._src.deform_conv2d.hints import OPTIONS
from jax_dcn._src.operator.implementation import Implementation
from jax_dcn._src.operator.nnx import check_rngs, is_captured
from jax_dcn._src.public import public
from jax_dcn._src.sampling.bilinear import Boundary


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
      strides, padding, kernel_dilation, feature_group_count: As in `nnx.Conv`, `"CIRCULAR"` and
        `"REFLECT"` included. A PyTorch layer's `padding=1` is `padding=1` here, too, not `"SAME"`,
        which differs with strides.
      offset_groups: Number of groups of input channels that have offsets of their own.
      modulated: Whether taps are weighted by a mask: version 2 of the paper.
      mask_scale: The mask's largest value; 2.0 keeps a pretrained convolution's output.
      use_bias: Whether to add a bias.
      offset_branch: Whether the layer predicts offsets. `False`: it is called with them,
        `layer(x, offset, mask=None)`.
      guide_features: Channels of the tensor that offsets are predicted from, if another than `x`:
        `layer(x, guide=features)`. By default as many as `in_features`.
      offset_dtype: Dtype of the computation of offsets and mask; by default at least float32. In
        bfloat16, an offset of 20.3 pixels is 20.25.
      boundary: The value of samples outside the image, see `jax_dcn.deform_conv2d`.
      dtype: Dtype of the computation; by default, the input and the parameters are promoted.
      param_dtype: Dtype of the parameters.
      precision: Precision of the matrix products, see `jax_dcn.deform_conv2d`.
      kernel_init, bias_init: Initialisers of `kernel` and `bias`.
      implementation: See `jax_dcn.deform_conv2d`.
      rngs: Random streams; `params` initialises the kernel.

    Raises:
      ValueError: when the layer is made, for options that are wrong or have no effect; on call, if the
        input does not fit. The message names the argument.

    Examples:
      >>> from flax import nnx
      >>> import jax.numpy as jnp, jax_dcn.nnx
      >>> layer = jax_dcn.nnx.DeformConv(8, 16, (3, 3), strides=2, padding=1, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((4, 32, 32, 8))
      >>> layer(x).shape
      (4, 16, 16, 16)

      Offsets that the network computes elsewhere, and offsets from other features:

      >>> layer = jax_dcn.nnx.DeformConv(8, 16, 3, offset_branch=False, rngs=nnx.Rngs(0))
      >>> layer(x, offset=jnp.zeros((4, 32, 32, 1, 9, 2))).shape
      (4, 32, 32, 16)
      >>> layer = jax_dcn.nnx.DeformConv(8, 16, 3, guide_features=5, rngs=nnx.Rngs(0))
      >>> layer(x, guide=jnp.ones((4, 32, 32, 5))).shape
      (4, 32, 32, 16)

      Where it looked, to draw it, from a layer anywhere in a network (flax 0.12.6 or newer):

      >>> layer = jax_dcn.nnx.DeformConv(8, 16, (3, 3), strides=2, padding=1, rngs=nnx.Rngs(0))
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

    @renamed(OPTIONS)
    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        padding: layers.LayerPadding = "SAME",
        kernel_dilation: int | Sequence[int] = 1,
        feature_group_count: int = 1,
        offset_groups: int = 1,
        modulated: bool = True,
        mask_scale: float = 1.0,
        use_bias: bool = True,
        boundary: Boundary = "padded",
        offset_branch: bool = True,
        guide_features: int | None = None,
        offset_dtype: jax.typing.DTypeLike | None = None,
        dtype: jax.typing.DTypeLike | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        precision: Any = None,
        kernel_init: Callable[..., jax.Array] = nnx.initializers.lecun_normal(),
        bias_init: Callable[..., jax.Array] = nnx.initializers.zeros_init(),
        implementation: Implementation = None,
        rngs: nnx.Rngs,
    ):
        self.in_features = in_features
        self.out_features = out_features
        self.kernel_size = static(kernel_size)
        self.strides = static(strides)
        self.padding = static(padding)
        self.kernel_dilation = static(kernel_dilation)
        self.feature_group_count = feature_group_count
        self.offset_groups = offset_groups
        self.modulated = modulated
        self.mask_scale = mask_scale
        self.use_bias = use_bias
        self.boundary = boundary
        self.offset_branch = offset_branch
        self.guide_features = guide_features
        self.offset_dtype = offset_dtype
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = static(precision)
        self.implementation = static(implementation)
        layers.check_options(self)
        layers.check_initialisers(kernel_init, bias_init)
        layers.check_features(self, in_features, out_features)
        check_rngs(rngs)
        shape = (*layers.kernel_size(self), in_features // feature_group_count, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        self.bias = (
            nnx.Param(bias_init(rngs.params(), (out_features,), param_dtype)) if use_bias else None
        )
        if offset_branch:
            self.offset_conv = self._offset_branch()

    def _offset_branch(self) -> nnx.Conv:
        return nnx.Conv(
            self.guide_features or self.in_features,
            layers.offset_features(self),
            layers.kernel_size(self),
            **layers.convolution_options(self),
            kernel_init=nnx.initializers.zeros_init(),
            # Zeros need no randomness: from the same `rngs`, a network of these layers gets the
            # kernels that a network of ordinary convolutions gets.
            rngs=nnx.Rngs(0),
        )

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
        x = layers.check_call(self, x, offset, mask, guide)
        if self.offset_branch:
            offset, mask = self._predicted(x if guide is None else guide)
        assert offset is not None  # which was checked
        self._sow_samples(x, offset, mask)
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = dtypes.promote_dtype((x, self.kernel[...], bias), dtype=self.dtype)
        return layers.convolve(self, x, kernel, offset, mask, bias)

    def _predicted(self, features: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        predicted = self.offset_conv(layers.branch_input(self, features))
        return layers.offset_and_mask(self, predicted)

    def _sow_samples(self, x: jax.Array, offset: jax.Array, mask: jax.Array | None) -> None:
        if is_captured(self):
            self.sow(nnx.Intermediate, "offset", offset)
            self.sow(nnx.Intermediate, "mask", mask)
            self.sow(nnx.Intermediate, "sampling_positions", layers.positions(self, x, offset))

    def offset_and_mask(
        self, x: jax.Array, *, guide: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """The offsets `[..., Ho, Wo, G, K, 2]` in pixels and the mask `[..., Ho, Wo, G, K]`."""
        layers.check_predicts(self)
        x = layers.check_call(self, x, guide=guide)
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
