# SPDX-License-Identifier: MIT
"""DCNv3 and DCNv4 as Flax NNX modules."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

from jax_dcn._src.arguments import renamed, static
from jax_dcn._src.deform_aggregate import dcn_layer as layers
from jax_dcn._src.deform_aggregate.dcnv3 import dcnv3
from jax_dcn._src.deform_aggregate.dcnv4 import dcnv4
from jax_dcn._src.deform_aggregate.layer import branch_input, branch_options, cast
from jax_dcn._src.operator.implementation import Implementation
from jax_dcn._src.operator.nnx import check_rngs, is_captured
from jax_dcn._src.public import public

Pair = tuple[jax.Array, jax.Array]


def _branch(layer: layers.DCNOptions, features: int) -> nnx.Linear:
    return nnx.Linear(
        layer.features,
        features,
        **branch_options(layer.param_dtype),
        kernel_init=nnx.initializers.zeros_init(),
        rngs=nnx.Rngs(0),  # zeros need no randomness
    )


def _projection(layer: layers.DCNOptions, rngs: nnx.Rngs, use_bias: bool = True) -> nnx.Linear:
    return nnx.Linear(
        layer.features,
        layer.features,
        use_bias=use_bias,
        dtype=layer.dtype,
        param_dtype=layer.param_dtype,
        kernel_init=nnx.initializers.xavier_uniform(),
        rngs=rngs,
    )


def _depthwise(layer: layers.DCNOptions, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(layer.features, layer.features, **layers.depthwise_options(layer), rngs=rngs)


def _make_centre(layer: Any) -> None:
    if layer.center_feature_scale:
        shape = (layer.groups, layer.features)
        weight, bias = (jnp.zeros(s, layer.param_dtype) for s in (shape, shape[:1]))
        layer.center_feature_scale_proj_weight = nnx.Param(weight)
        layer.center_feature_scale_proj_bias = nnx.Param(bias)


def _mixed(layer: Any, y: jax.Array, x: jax.Array, features: jax.Array) -> jax.Array:
    """The sums `y`, or a mixture with the centre's own features `x` that `features` decide."""
    if not layer.center_feature_scale:
        return y
    weight = layer.center_feature_scale_proj_weight[...]
    bias = layer.center_feature_scale_proj_bias[...]
    features, weight, bias = dtypes.promote_dtype((features, weight, bias), dtype=layer.dtype)
    return layers.mixed(layer, y, x, layers.centre_logits(features, weight, bias))


def _sow_samples(layer: Any, x: jax.Array, offset: jax.Array, mask: jax.Array) -> None:
    if is_captured(layer):
        for name, value in layers.sown(layer, x, offset, mask).items():
            layer.sow(nnx.Intermediate, name, value)


@public("jax_dcn.nnx")
class DCNv3(nnx.Module):
    """The layer of InternImage: sums of samples at positions that the input predicts.

    A depthwise convolution of the input, a norm and an activation, `dw_conv`, give features from which
    the dense layers `offset` and `mask` predict where each output position samples, and the weights of
    the samples, which sum to one in each group. `jax_dcn.dcnv3` does the rest, between the dense
    layers `input_proj` and `output_proj`. Names, axes and initial values are InternImage's,
    whose checkpoints `jax_dcn.interop.torch_weights` reads: a fresh layer takes the mean of the
    regular grid.

    `"sampling_positions"` and `"weights"` are sown as `nnx.Intermediate` while `nnx.capture` listens.

    Args:
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
      rngs: Random streams; `params` initialises the projections and the depthwise convolution.

    Raises:
      ValueError: when the layer is made, for options that are wrong; on call, if the input does not
        fit. The message names the argument.

    Note:
      The output has the size of the input. The published layer has an option `stride`, which no model
      sets, and which fails, since it predicts offsets for every pixel.

    Examples:
      >>> from flax import nnx
      >>> import jax.numpy as jnp, jax_dcn.nnx
      >>> layer = jax_dcn.nnx.DCNv3(64, groups=4, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((2, 14, 14, 64))
      >>> layer(x).shape
      (2, 14, 14, 64)

      Where it looked, to draw it:

      >>> positions, mask = layer.sampling_positions(x)
      >>> positions.shape, mask.shape
      ((2, 14, 14, 4, 9, 2), (2, 14, 14, 4, 9))

    References:
      Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable
      Convolutions", CVPR 2023.
    """

    @renamed(layers.OPTIONS, layers.ABSENT)
    def __init__(
        self,
        features: int,
        *,
        groups: int = 4,
        kernel_size: layers.Size = 3,
        kernel_dilation: layers.Size = 1,
        dw_kernel_size: layers.Size | None = None,
        offset_scale: float = 1.0,
        act: Callable[[jax.Array], jax.Array] = layers.gelu,
        norm: Literal["layer", "batch"] = "layer",
        center_feature_scale: bool = False,
        remove_center: bool = False,
        dtype: jax.typing.DTypeLike | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        implementation: Implementation = None,
        rngs: nnx.Rngs,
    ):
        self.features = features
        self.groups = groups
        self.kernel_size = static(kernel_size)
        self.kernel_dilation = static(kernel_dilation)
        self.dw_kernel_size = static(dw_kernel_size)
        self.offset_scale = offset_scale
        self.act = act
        self.norm = norm
        self.center_feature_scale = center_feature_scale
        self.remove_center = remove_center
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.implementation = static(implementation)
        layers.check_dcnv3_options(self)
        check_rngs(rngs)
        # Published sequences also count a change of axes, before or after the norm.
        norms: list[Any] = [None, None]
        norms[layers.NORMS[norm]] = self._norm(rngs)
        self.dw_conv = nnx.List([_depthwise(self, rngs), nnx.List(norms)])
        sizes = layers.dcnv3_branches(self)
        self.offset, self.mask = (_branch(self, sizes[name]) for name in ("offset", "mask"))
        self.input_proj = _projection(self, rngs)
        self.output_proj = _projection(self, rngs)
        _make_centre(self)

    def _norm(self, rngs: nnx.Rngs) -> Any:
        made = nnx.BatchNorm if self.norm == "batch" else nnx.LayerNorm
        return made(self.features, **layers.norm_options(self), rngs=rngs)

    @layers.of_images
    def __call__(self, x: jax.Array) -> jax.Array:
        """Images `[..., H, W, features]` to images of the same shape; `[A, B, features]` is one image."""
        x = layers.check_call(self, x)
        features = self._features(x)
        offset, mask = self._predicted(features)
        _sow_samples(self, x, offset, mask)
        projected = self.input_proj(x)
        y = dcnv3(projected, offset, mask, **layers.operator_options(self))
        return self.output_proj(_mixed(self, y, projected, features))

    def _features(self, x: jax.Array, **options: bool) -> jax.Array:
        layer: Any = self.dw_conv
        options = options if self.norm == "batch" else {}
        return self.act(layer[1][layers.NORMS[self.norm]](layer[0](x), **options))

    def _predicted(self, features: jax.Array) -> Pair:
        wide = branch_input(features)
        return layers.offset_and_mask(self, self.offset(wide), self.mask(wide))

    def offset_and_mask(self, x: jax.Array) -> Pair:
        """The offsets `[..., H, W, G, K', 2]`, `(x, y)` in pixels, and weights `[..., H, W, G, K']`."""
        x = layers.check_call(self, x)
        return self._predicted(self._features(x, use_running_average=True))

    def sampling_positions(self, x: jax.Array) -> Pair:
        """Where every output position samples `x`, to draw it.

        Returns:
          Positions `[..., H, W, G, K', 2]` in pixels of `x`, last axis `(y, x)`, and the weights of
          the samples `[..., H, W, G, K']`. Taps are ordered as in `jax_dcn.dcnv3`.
        """
        offset, mask = self.offset_and_mask(x)
        return layers.sampling_positions(self, x, offset), mask


@public("jax_dcn.nnx")
class DCNv4(nnx.Module):
    """The layer of FlashInternImage: `DCNv3` without the softmax and with less before the prediction.

    Images are `[..., H, W, features]`. The published layer takes `[N, H * W, features]` and a shape:
    write `x.reshape(N, H, W, features)`, since an array of three axes is read as one image.

    The dense layer `offset_mask` predicts where each output position samples, and weights of any
    value; with `dw_kernel_size` it does so from a depthwise convolution of the input,
    `offset_mask_dw`. `jax_dcn.dcnv4` does the rest, between the dense layers `value_proj` and
    `output_proj`. Names, axes and initial values are DCNv4's, whose checkpoints
    `jax_dcn.interop.torch_weights` reads. Weights start at zero: a fresh layer gives the bias of
    `output_proj`.

    `"sampling_positions"` and `"weights"` are sown as `nnx.Intermediate` while `nnx.capture` listens.

    Args:
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
      rngs: Random streams; `params` initialises the projections and the depthwise convolution.

    Raises:
      ValueError: when the layer is made, for options that are wrong or have no effect; on call, if
        the input does not fit. The message names the argument.

    Examples:
      >>> from flax import nnx
      >>> import jax.numpy as jnp, jax_dcn.nnx
      >>> layer = jax_dcn.nnx.DCNv4(64, groups=4, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 14, 14, 64))).shape
      (2, 14, 14, 64)

    References:
      Xiong et al., "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision
      Applications", CVPR 2024.
    """

    @renamed(layers.OPTIONS, layers.ABSENT)
    def __init__(
        self,
        features: int,
        *,
        groups: int = 4,
        kernel_size: layers.Size = 3,
        kernel_dilation: layers.Size = 1,
        dw_kernel_size: layers.Size | None = None,
        offset_scale: float = 1.0,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        output_bias: bool = True,
        without_pointwise: bool = False,
        softmax: bool = False,
        dtype: jax.typing.DTypeLike | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        implementation: Implementation = None,
        rngs: nnx.Rngs,
    ):
        self.features = features
        self.groups = groups
        self.kernel_size = static(kernel_size)
        self.kernel_dilation = static(kernel_dilation)
        self.dw_kernel_size = static(dw_kernel_size)
        self.offset_scale = offset_scale
        self.center_feature_scale = center_feature_scale
        self.remove_center = remove_center
        self.output_bias = output_bias
        self.without_pointwise = without_pointwise
        self.softmax = softmax
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.implementation = static(implementation)
        layers.check_dcnv4_options(self)
        check_rngs(rngs)
        self.offset_mask_dw = None if dw_kernel_size is None else _depthwise(self, rngs)
        self.offset_mask = _branch(self, layers.dcnv4_branch(self))
        self.value_proj = None if without_pointwise else _projection(self, rngs)
        self.output_proj = None if without_pointwise else _projection(self, rngs, output_bias)
        _make_centre(self)

    @layers.of_images
    def __call__(self, x: jax.Array) -> jax.Array:
        """Images `[..., H, W, features]` to images of the same shape; `[A, B, features]` is one image."""
        x = layers.check_call(self, x)
        offset_mask = self._predicted(x)
        _sow_samples(self, x, *layers.unpacked(self, offset_mask))
        projected = self._projected(self.value_proj, x)
        y = dcnv4(projected, offset_mask, **layers.packed_options(self))
        return self._projected(self.output_proj, _mixed(self, y, projected, y))

    def _projected(self, projection: nnx.Linear | None, x: jax.Array) -> jax.Array:
        return cast(x, self.dtype) if projection is None else projection(x)

    def _predicted(self, x: jax.Array) -> jax.Array:
        features = x if self.offset_mask_dw is None else self.offset_mask_dw(x)
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
