# SPDX-License-Identifier: MIT
"""The public function `deform_conv2d`."""

from __future__ import annotations  # not evaluated: jaxtyping is for readers and type checkers

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jax_dcn._src import arguments
from jax_dcn._src.arguments import array, optional_array, renamed
from jax_dcn._src.deform_conv2d.geometry import conv_geometry
from jax_dcn._src.deform_conv2d.hints import ABSENT, ARGUMENTS, kernel_hint, offset_hint
from jax_dcn._src.deform_conv2d.rules import deform_conv2d_p
from jax_dcn._src.deform_conv2d.samples import shifted
from jax_dcn._src.operator.dtypes import sum_dtype
from jax_dcn._src.operator.implementation import Implementation, implementation_names
from jax_dcn._src.operator.sizes import fits
from jax_dcn._src.public import public
from jax_dcn._src.sampling.bilinear import Boundary
from jax_dcn._src.sampling.window import Padding, Size, check_output_size

if TYPE_CHECKING:
    from jaxtyping import Array, Float


_KERNEL = "[kh, kw, C // feature_group_count, O]"


@public("jax_dcn")
@renamed(ARGUMENTS, ABSENT)
def deform_conv2d(
    x: Float[Array, "*batch H W C"],
    kernel: Float[Array, "kh kw C_per_group O"],
    offset: Float[Array, "*batch Ho Wo G K 2"],
    mask: Float[Array, "*batch Ho Wo G K"] | None = None,
    bias: Float[Array, "O"] | None = None,
    *,
    strides: int | Sequence[int] | None = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    boundary: Boundary = "padded",
    precision: jax.lax.PrecisionLike = None,
    implementation: Implementation = None,
) -> Float[Array, "*batch Ho Wo O"]:
    r"""Convolves `x` at positions displaced by `offset`.

    With the taps :math:`k` at the places :math:`r_k` of the regular, dilated kernel grid, output
    position :math:`p` is

    .. math:: y(p) = b + \sum_k w_k \, m_k(p) \; x(s\,p + r_k + \Delta_k(p)),

    where `x` is read by bilinear interpolation. Axes: `H W` image, `C` input and `O` output
    channels, `kh kw` kernel, `K = kh * kw` taps in row-major order, `G` offset groups.

    Args:
      x: Images, `[..., H, W, C]`. Any number of leading axes, zero included, are batch axes.
      kernel: Weights, `[kh, kw, C // feature_group_count, O]`, in the dtype of `x`.
      offset: Displacements in pixels, `[..., Ho, Wo, G, K, 2]`, last axis `(dy, dx)`, with the
        batch axes of `x`. `G` divides `C`, and channel `c` uses group `c // (C // G)`.
      mask: Modulation `[..., Ho, Wo, G, K]`, taken as it is, without a sigmoid. `None` gives version 1
        of the paper.
      bias: `[O]`, in the dtype of `x`.
      strides: Step between output positions in pixels, one number or `(height, width)`; `None` is 1.
      padding: Zeros around the image: `"SAME"`, `"SAME_LOWER"`, `"VALID"`, one number,
        `(height, width)`, or `((top, bottom), (left, right))`. `"SAME"` pads as in Flax and XLA: with
        strides, it differs from `padding=1` of a 3x3 kernel.
      kernel_dilation: Distance between taps in pixels, one number or `(height, width)`.
      feature_group_count: Number of groups of channels convolved separately. Independent of `G`.
      boundary: `"padded"`, the rule of the second paper: the image continues with zeros, so a
        sample counts if `-1 < h < H and -1 < w < W`. `"legacy"`, the rule of the first: a sample
        counts if `0 <= h < H and 0 <= w < W`, and the last row and column extend to the edge.
        Outside, values and gradients are zero. At whole numbers the derivative is the right-hand
        one.
      precision: Precision of the matrix products on XLA, as in `jax.lax`. The native CPU kernels
        compute at full precision, with one exception: by default, some processors round sampled
        columns of bfloat16 images to bfloat16; `"high"` and `"highest"` keep columns in float32.
        CUDA kernels multiply float32 as TF32 by default, as XLA does; not with `"highest"`.
      implementation: `"native"` (the C++ kernel on CPU, CUDA on GPU), `"xla"`, or a sequence of
        these to try in order. `None` takes the best that can run.

    Returns:
      `[..., Ho, Wo, O]`, in the dtype of `x`. Positions and sums are computed in float32, or in
      float64 where `x` is: float64 offsets and masks of a float32 image are rounded to float32.

    Raises:
      ValueError: if shapes, dtypes or options disagree; the message names the argument.
      NotImplementedError: if `implementation` cannot run here; the message says why.

    Note:
      The native kernels are bitwise reproducible: the same inputs give the same bits on the same
      device, gradients included, whatever the number of threads; only the sign of a NaN may differ.
      An infinite or huge offset is outside the image. A NaN offset gives NaN at its output position,
      in the gradients of this offset and its mask, and in the gradient of the kernel at its tap.

    Examples:
      >>> import jax.numpy as jnp, jax_dcn
      >>> x = jnp.ones((8, 28, 28, 16))
      >>> kernel = jnp.ones((3, 3, 16, 32))
      >>> offset = jnp.zeros((8, 28, 28, 1, 9, 2))
      >>> jax_dcn.deform_conv2d(x, kernel, offset).shape
      (8, 28, 28, 32)

    References:
      Dai et al., "Deformable Convolutional Networks", ICCV 2017. Zhu et al., "Deformable ConvNets
      v2: More Deformable, Better Results", CVPR 2019.
    """
    x, kernel = array("x", x, "[..., H, W, C]"), array("kernel", kernel, _KERNEL)
    offset = array("offset", offset, "[..., Ho, Wo, G, K, 2]")
    mask = optional_array("mask", mask, "[..., Ho, Wo, G, K]")
    bias = optional_array("bias", bias, "[O]")
    _check_ranks(x, kernel)
    image_size, kernel_size = x.shape[-3:-1], kernel.shape[:2]
    geometry = conv_geometry(
        image_size,
        kernel_size,
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
        boundary=boundary,
    )
    output_size = geometry.output_size(image_size, kernel_size)
    hint = kernel_hint(x, kernel, offset, geometry.feature_group_count)
    _check_kernel(x, kernel, bias, geometry.feature_group_count, hint)
    check_output_size(output_size, image_size, "a kernel of {}x{}".format(*kernel_size))
    _check_offset(x, kernel, offset, mask, output_size)
    _check_dtypes(x, kernel, bias)

    shift = geometry.free_shift(padding, image_size, kernel_size)
    offset = shifted(offset.astype(sum_dtype(x)), shift)
    return _convolve(
        x,
        kernel,
        offset,
        mask,
        bias,
        geometry=geometry,
        precision=arguments.precision(precision),
        implementation=implementation_names(implementation),
    )


def _convolve(
    x: jax.Array,
    kernel: jax.Array,
    offset: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None,
    **params: Any,
) -> jax.Array:
    """Binds the primitive, which takes one batch axis at least, and no `None`."""
    batch = x.shape[:-3] or (1,)
    if mask is None:
        mask = jnp.zeros((*offset.shape[:-2], 0), offset.dtype)
    if bias is None:
        bias = jnp.zeros(kernel.shape[-1:], x.dtype)
    with jax.named_scope("deform_conv2d"):
        (y,) = deform_conv2d_p.bind(
            x.reshape(batch + x.shape[-3:]),
            kernel,
            offset.reshape(batch + offset.shape[-5:]),
            mask.reshape(batch + mask.shape[-4:]).astype(offset.dtype),
            bias,
            **params,
        )
    return checkpoint_name(y.reshape(x.shape[:-3] + y.shape[-3:]), "deform_conv2d")


def _check_ranks(x: jax.Array, kernel: jax.Array) -> None:
    if x.ndim < 3:
        raise ValueError(f"x must have at least 3 axes, [..., H, W, C], got shape {x.shape}.")
    if 0 in x.shape[-3:-1]:
        raise ValueError(f"x must be [..., H, W, C] with pixels, got shape {x.shape}.")
    if kernel.ndim != 4 or 0 in kernel.shape[:2]:
        raise ValueError(f"kernel must be {_KERNEL}, got shape {kernel.shape}.")


def _check_kernel(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, feature_groups: int, hint: str
) -> None:
    channels, features = x.shape[-1], kernel.shape[-1]
    if not channels or not features:
        raise ValueError(
            f"x and kernel must have at least one channel, got shapes {x.shape} and {kernel.shape}."
        )
    if channels % feature_groups or features % feature_groups:
        raise ValueError(
            f"feature_group_count must divide the channels of x and the output channels of kernel, "
            f"got feature_group_count={feature_groups} for {channels} and {features} channels.{hint}"
        )
    if kernel.shape[2] != channels // feature_groups:
        expected = (*kernel.shape[:2], channels // feature_groups, features)
        raise ValueError(
            f"kernel does not fit x, which has {channels} channels, with "
            f"feature_group_count={feature_groups}: expected {expected}, got {kernel.shape}.{hint}"
        )
    if bias is not None and bias.shape != (features,):
        raise ValueError(
            f"bias must have one value for each of kernel's output channels: expected "
            f"{(features,)}, got {bias.shape}."
        )


def _check_offset(
    x: jax.Array,
    kernel: jax.Array,
    offset: jax.Array,
    mask: jax.Array | None,
    output_size: Size,
) -> None:
    leading = (*x.shape[:-3], *output_size)
    rank, taps, channels = len(leading) + 3, kernel.shape[0] * kernel.shape[1], x.shape[-1]
    expected = f"expected {_shape(*leading, 'G', taps, 2)}, got {offset.shape}."
    if offset.ndim != rank or offset.shape[-1] != 2 or not fits(offset.shape[:-3], leading):
        hint = offset_hint("offset", offset, output_size, (taps, 2))
        raise ValueError(f"offset does not fit x and kernel: {expected}{hint}")
    groups = offset.shape[-3]
    if offset.shape[-2] != taps:
        raise ValueError(
            f"offset has {offset.shape[-2]} taps per group but kernel is "
            f"{kernel.shape[0]}x{kernel.shape[1]}, which has {taps}: {expected}"
        )
    if groups == 0 or channels % groups:
        raise ValueError(
            f"offset has {groups} groups, which must divide the {channels} channels of x: {expected}"
        )
    if mask is not None and not fits(mask.shape, offset.shape[:-1]):
        raise ValueError(
            f"mask does not fit offset: expected {offset.shape[:-1]}, got {mask.shape}."
            + offset_hint("mask", mask, output_size, (taps,))
        )


def _shape(*sizes: int | str) -> str:
    return f"({', '.join(map(str, sizes))})"


def _check_dtypes(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> None:
    for name, value in {"kernel": kernel, "bias": bias}.items():
        if value is not None and value.dtype != x.dtype:
            raise ValueError(
                f"{name} must have the dtype of x: expected {x.dtype.name}, got {value.dtype.name}."
            )
