# SPDX-License-Identifier: MIT
"""DCNv3 and DCNv4 as Flax Linen modules."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from jax_dcn._src.arguments import renamed_options
from jax_dcn._src.deform_aggregate import dcn_layer as layers
from jax_dcn._src.deform_aggregate.dcnv3 import dcnv3
from jax_dcn._src.deform_aggregate.dcnv4 import dcnv4
from jax_dcn._src.deform_aggregate.layer import branch_input, branch_options, cast
from jax_dcn._src.operator.implementation import Implementation
from jax_dcn._src.public import public

Pair = tuple[jax.Array, jax.Array]


def _branch(layer: layers.DCNOptions, features: int) -> nn.Dense:
    options = branch_options(layer.param_dtype)
    return nn.Dense(features, **options, kernel_init=nn.initializers.zeros_init())


def _projection(layer: layers.DCNOptions, use_bias: bool = True) -> nn.Dense:
    return nn.Dense(
        layer.features,
        use_bias=use_bias,
        dtype=layer.dtype,
        param_dtype=layer.param_dtype,
        kernel_init=nn.initializers.xavier_uniform(),
    )


def _make_centre(layer: Any) -> None:
    if layer.center_feature_scale:
        shape = (layer.groups, layer.features)
        for name, of in (("weight", shape), ("bias", shape[:1])):
            name = f"center_feature_scale_proj_{name}"
            zeros = nn.initializers.zeros_init()
            setattr(layer, name, layer.param(name, zeros, of, layer.param_dtype))


def _mixed(layer: Any, y: jax.Array, x: jax.Array, features: jax.Array) -> jax.Array:
    """The sums `y`, or a mixture with the centre's own features `x` that `features` decide."""
    if not layer.center_feature_scale:
        return y
    weight = layer.center_feature_scale_proj_weight
    bias = layer.center_feature_scale_proj_bias
    features, weight, bias = promote_dtype(features, weight, bias, dtype=layer.dtype)
    return layers.mixed(layer, y, x, layers.centre_logits(features, weight, bias))


def _sow_samples(layer: Any, x: jax.Array, offset: jax.Array, mask: jax.Array) -> None:
    if layer.is_mutable_collection("intermediates"):
        for name, value in layers.sown(layer, x, offset, mask).items():
            layer.sow("intermediates", name, value)


@public("jax_dcn.linen")
@renamed_options(layers.OPTIONS, layers.ABSENT)
class DCNv3(nn.Module):
    """The layer of InternImage: sums of samples at positions that the input predicts.

    The Linen twin of `jax_dcn.nnx.DCNv3`: the same options, values, and names of parameters
    (`dw_conv_0`, `dw_conv_1_1`, `offset`, `mask`, `input_proj`, `output_proj`, which Linen gives to
    InternImage's names). A fresh layer takes the mean of the regular grid.

    `"sampling_positions"` and `"weights"` are sown into the collection `intermediates`.

    Attributes:
      features: Number of channels, of input and output.
      groups: Number of groups of channels with positions and weights of their own; it divides
        `features`.
      kernel_size: Taps, one number or `(height, width)`.
      kernel_dilation: Distance between taps in pixels, one number or `(height, width)`.
      dw_kernel_size: Kernel size of the depthwise convolution; by default, `kernel_size`.
        InternImage-H and -G have 5.
      offset_scale: Factor of the offsets, and of the grid of the taps. InternImage-L and -XL have 2.0.
      act: The activation; by default the exact GELU, as in PyTorch.
      norm: `"layer"`, as in all published models, or `"batch"`.
      center_feature_scale: Whether to mix the sums with the input's own features, by a share that is
        predicted for each group (InternImage-H and -G).
      remove_center: Whether the tap in the centre is left out.
      dtype: Dtype of the computation; by default, the input and the parameters are promoted. Offsets
        and the softmax are computed in float32 at least.
      param_dtype: Dtype of the parameters.
      implementation: See `jax_dcn.dcnv3`.

    Raises:
      ValueError: when the layer is made, for options that are wrong; on call, if the input does not
        fit. The message names the argument.

    Examples:
      >>> import jax, jax.numpy as jnp, jax_dcn.linen
      >>> layer = jax_dcn.linen.DCNv3(64, groups=4)
      >>> x = jnp.ones((2, 14, 14, 64))
      >>> variables = layer.init(jax.random.key(0), x)
      >>> layer.apply(variables, x).shape
      (2, 14, 14, 64)

      Where it looked, to draw it:

      >>> positions, mask = layer.apply(variables, x, method="sampling_positions")
      >>> positions.shape, mask.shape
      ((2, 14, 14, 4, 9, 2), (2, 14, 14, 4, 9))

    References:
      Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable
      Convolutions", CVPR 2023.
    """

    features: int
    groups: int = 4
    kernel_size: layers.Size = 3
    kernel_dilation: layers.Size = 1
    dw_kernel_size: layers.Size | None = None
    offset_scale: float = 1.0
    act: Callable[[jax.Array], jax.Array] = layers.gelu
    norm: Literal["layer", "batch"] = "layer"
    center_feature_scale: bool = False
    remove_center: bool = False
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32
    implementation: Implementation = None

    def __post_init__(self) -> None:
        """Refuses options that are wrong."""
        layers.check_dcnv3_options(self)
        super().__post_init__()

    def setup(self) -> None:
        """Makes the convolution, the norm and the dense layers."""
        self.dw_conv_0 = nn.Conv(self.features, **layers.depthwise_options(self))
        # Published sequences also count a change of axes, before or after the norm.
        if self.norm == "batch":
            self.dw_conv_1_0 = nn.BatchNorm(**layers.norm_options(self))
        else:
            self.dw_conv_1_1 = nn.LayerNorm(**layers.norm_options(self))
        sizes = layers.dcnv3_branches(self)
        self.offset, self.mask = (_branch(self, sizes[name]) for name in ("offset", "mask"))
        self.input_proj, self.output_proj = _projection(self), _projection(self)
        _make_centre(self)

    @layers.of_images
    def __call__(self, x: jax.Array, *, use_running_average: bool | None = None) -> jax.Array:
        """Images `[..., H, W, features]` to images of the same shape; `[A, B, features]` is one image.

        Args:
          x: The images.
          use_running_average: With `norm="batch"`, see `nn.BatchNorm`; no effect otherwise.
        """
        x = layers.check_call(self, x)
        features = self._features(x, use_running_average)
        offset, mask = self._predicted(features)
        _sow_samples(self, x, offset, mask)
        projected = self.input_proj(x)
        y = dcnv3(projected, offset, mask, **layers.operator_options(self))
        return self.output_proj(_mixed(self, y, projected, features))

    def _features(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        features = self.dw_conv_0(x)
        if self.norm == "batch":
            return self.act(self.dw_conv_1_0(features, use_running_average=use_running_average))
        return self.act(self.dw_conv_1_1(features))

    def _predicted(self, features: jax.Array) -> Pair:
        wide = branch_input(features)
        return layers.offset_and_mask(self, self.offset(wide), self.mask(wide))

    def offset_and_mask(self, x: jax.Array) -> Pair:
        """The offsets `[..., H, W, G, K', 2]`, `(x, y)` in pixels, and weights `[..., H, W, G, K']`."""
        x = layers.check_call(self, x)
        return self._predicted(self._features(x, True))

    def sampling_positions(self, x: jax.Array) -> Pair:
        """Where every output position samples `x`, to draw it.

        Returns:
          Positions `[..., H, W, G, K', 2]` in pixels of `x`, last axis `(y, x)`, and the weights of
          the samples `[..., H, W, G, K']`. Taps are ordered as in `jax_dcn.dcnv3`.
        """
        offset, mask = self.offset_and_mask(x)
        return layers.sampling_positions(self, x, offset), mask


@public("jax_dcn.linen")
@renamed_options(layers.OPTIONS, layers.ABSENT)
class DCNv4(nn.Module):
    """The layer of FlashInternImage: `DCNv3` without the softmax and with less before the prediction.

    Images are `[..., H, W, features]`. The published layer takes `[N, H * W, features]` and a shape:
    write `x.reshape(N, H, W, features)`, since an array of three axes is read as one image.

    The Linen twin of `jax_dcn.nnx.DCNv4`: the same options, values, and names of parameters
    (`offset_mask_dw`, `offset_mask`, `value_proj`, `output_proj`). Weights start at zero: a fresh layer
    gives the bias of `output_proj`.

    `"sampling_positions"` and `"weights"` are sown into the collection `intermediates`.

    Attributes:
      features: Number of channels, of input and output.
      groups: Number of groups of channels with positions and weights of their own; it divides
        `features`.
      kernel_size: Taps, one number or `(height, width)`.
      kernel_dilation: Distance between taps in pixels, one number or `(height, width)`.
      dw_kernel_size: Kernel size of the depthwise convolution before the prediction. `None`: there is
        no such convolution.
      offset_scale: Factor of the offsets, and of the grid of the taps.
      center_feature_scale: Whether to mix the sums with the centre's own features, by a share that is
        predicted from the sums for each group.
      remove_center: Whether the tap in the centre is left out.
      output_bias: Whether `output_proj` has a bias.
      without_pointwise: Whether to leave out `value_proj` and `output_proj`.
      softmax: Whether a softmax over the taps of a group follows the prediction of the weights, as in
        a DCNv3 that is converted.
      dtype: Dtype of the computation; by default, the input and the parameters are promoted. Offsets
        and weights are predicted in float32 at least.
      param_dtype: Dtype of the parameters.
      implementation: See `jax_dcn.dcnv4`.

    Raises:
      ValueError: when the layer is made, for options that are wrong or have no effect; on call, if
        the input does not fit. The message names the argument.

    Examples:
      >>> import jax, jax.numpy as jnp, jax_dcn.linen
      >>> layer = jax_dcn.linen.DCNv4(64, groups=4)
      >>> x = jnp.ones((2, 14, 14, 64))
      >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
      (2, 14, 14, 64)

    References:
      Xiong et al., "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision
      Applications", CVPR 2024.
    """

    features: int
    groups: int = 4
    kernel_size: layers.Size = 3
    kernel_dilation: layers.Size = 1
    dw_kernel_size: layers.Size | None = None
    offset_scale: float = 1.0
    center_feature_scale: bool = False
    remove_center: bool = False
    output_bias: bool = True
    without_pointwise: bool = False
    softmax: bool = False
    dtype: jax.typing.DTypeLike | None = None
    param_dtype: jax.typing.DTypeLike = jnp.float32
    implementation: Implementation = None

    def __post_init__(self) -> None:
        """Refuses options that are wrong, or that have no effect beside the others."""
        layers.check_dcnv4_options(self)
        super().__post_init__()

    def setup(self) -> None:
        """Makes the convolution and the dense layers."""
        if self.dw_kernel_size is not None:
            self.offset_mask_dw = nn.Conv(self.features, **layers.depthwise_options(self))
        self.offset_mask = _branch(self, layers.dcnv4_branch(self))
        if not self.without_pointwise:
            self.value_proj = _projection(self)
            self.output_proj = _projection(self, self.output_bias)
        _make_centre(self)

    @layers.of_images
    def __call__(self, x: jax.Array) -> jax.Array:
        """Images `[..., H, W, features]` to images of the same shape; `[A, B, features]` is one image."""
        x = layers.check_call(self, x)
        offset_mask = self._predicted(x)
        _sow_samples(self, x, *layers.unpacked(self, offset_mask))
        projected = cast(x, self.dtype) if self.without_pointwise else self.value_proj(x)
        y = dcnv4(projected, offset_mask, **layers.packed_options(self))
        mixed = _mixed(self, y, projected, y)
        return cast(mixed, self.dtype) if self.without_pointwise else self.output_proj(mixed)

    def _predicted(self, x: jax.Array) -> jax.Array:
        features = x if self.dw_kernel_size is None else self.offset_mask_dw(x)
        return self.offset_mask(branch_input(features))

    def offset_and_mask(self, x: jax.Array) -> Pair:
        """The offsets `[..., H, W, G, K', 2]`, `(x, y)` in pixels, and weights `[..., H, W, G, K']`."""
        x = layers.check_call(self, x)
        return layers.unpacked(self, self._predicted(x))

    def sampling_positions(self, x: jax.Array) -> Pair:
        """Where every output position samples `x`, to draw it.

        Returns:
          Positions `[..., H, W, G, K', 2]` in pixels of `x`, last axis `(y, x)`, and the weights of
          the samples `[..., H, W, G, K']`. Taps are ordered as in `jax_dcn.dcnv3`.
        """
        offset, mask = self.offset_and_mask(x)
        return layers.sampling_positions(self, x, offset), mask
