# SPDX-License-Identifier: MIT
"""The public function `dcnv4`: the core of FlashInternImage."""

from __future__ import annotations  # not evaluated: jaxtyping is for readers and type checkers

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax

from jax_dcn._src.arguments import array, flag, positive, renamed
from jax_dcn._src.deform_aggregate.taps import (
    ARGUMENTS,
    Taps,
    aggregate_taps,
    check_image,
    published_taps,
)
from jax_dcn._src.operator.dtypes import sum_dtype
from jax_dcn._src.operator.implementation import Implementation
from jax_dcn._src.operator.merging import whole
from jax_dcn._src.operator.sizes import fits
from jax_dcn._src.public import public
from jax_dcn._src.sampling.window import Padding

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@public("jax_dcn")
@renamed(ARGUMENTS)
def dcnv4(
    x: Float[Array, "*batch H W C"],
    offset_mask: Float[Array, "*batch Ho Wo packed"],
    *,
    groups: int,
    kernel_size: int | Sequence[int] = 3,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    softmax: bool = False,
    implementation: Implementation = None,
) -> Float[Array, "*batch Ho Wo C"]:
    """The core of DCNv4, the operator of FlashInternImage, in its published layout.

    The sum of `jax_dcn.dcnv3`, with offsets and weights packed into one array, and with weights of any
    value. Axes: `H W` image, `Ho Wo` output, `C` channels, `G` groups, `K' = kh * kw` taps, one less
    with `remove_center`.

    Args:
      x: Images, `[..., H, W, C]`. Any number of leading axes, zero included, are batch axes.
      offset_mask: Offsets and weights `[..., Ho, Wo, ceil(G * K' * 3 / 8) * 8]`. Each group has `3 *
        K'` elements: the offsets `(x, y)` of its taps, then the weights of its taps. Elements after the
        last group are padding. Taps are ordered as in `jax_dcn.dcnv3`.
      groups: Number of groups of channels `G`, which divides `C`.
      kernel_size, strides, padding, kernel_dilation, offset_scale, remove_center: See `jax_dcn.dcnv3`.
      softmax: Whether the weights of a group are logits, of which the softmax is taken.
      implementation: `"native"` (the C++ kernel on CPU, CUDA on GPU), `"xla"`, or a sequence of these
        to try in order. `None` takes the best that can run.

    Returns:
      `[..., Ho, Wo, C]`, in the dtype of `x`. Positions, the softmax and sums are computed in float32,
      or in float64 where `x` is.

    Raises:
      ValueError: if shapes, dtypes or options disagree; the message names the argument.
      NotImplementedError: if `implementation` cannot run here; the message says why.

    Note:
      Any kernel, any number of channels of a group and any batch. The published CUDA kernel takes 8 or
      9 taps, and mixes images up where its block of queries divides `N * Ho * Wo` but not `Ho * Wo`.

    Examples:
      >>> import jax.numpy as jnp, jax_dcn
      >>> x = jnp.ones((2, 14, 14, 64))
      >>> offset_mask = jnp.zeros((2, 14, 14, 112))  # 4 groups of 27 elements, and 4 of padding
      >>> jax_dcn.dcnv4(x, offset_mask, groups=4).shape
      (2, 14, 14, 64)

    References:
      Xiong et al., "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision
      Applications", CVPR 2024.
    """
    x = array("x", x, "[..., H, W, C]")
    offset_mask = array("offset_mask", offset_mask, "[..., Ho, Wo, packed]")
    groups = positive("groups", groups)
    flag("softmax", softmax)
    check_image(x)
    taps = published_taps(
        x.shape[-3:-1],
        kernel_size=kernel_size,
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
        offset_scale=offset_scale,
        remove_center=remove_center,
    )
    _check_packed(x, offset_mask, groups, taps)

    offset, mask = unpack(offset_mask.astype(sum_dtype(x)), groups, taps.count)
    mask = jax.nn.softmax(mask) if softmax else mask
    return aggregate_taps(x, offset, mask, taps, implementation)


def packed_size(groups: int, taps: int) -> int:
    """Number of elements of an output position, with padding to a multiple of 8."""
    return -(-groups * taps * 3 // 8) * 8


def _check_packed(x: jax.Array, offset_mask: jax.Array, groups: int, taps: Taps) -> None:
    if x.shape[-1] % groups:
        raise ValueError(f"groups={groups} must divide the {x.shape[-1]} channels of x.")
    expected = (*x.shape[:-3], *taps.output_size, packed_size(groups, taps.count))
    if not fits(offset_mask.shape, expected):
        raise ValueError(
            f"offset_mask does not fit x and the options: expected {expected}, which is "
            f"ceil(G * K' * 3 / 8) * 8 elements for G={groups} and K'={taps.count}, got "
            f"{offset_mask.shape}."
        )


def unpack(offset_mask: jax.Array, groups: int, taps: int) -> tuple[jax.Array, jax.Array]:
    """Offsets `[..., G, K', 2]` and weights `[..., G, K']`."""
    offset_mask = whole(offset_mask, offset_mask.ndim - 1)
    leading = (*offset_mask.shape[:-1], groups)
    by_group = offset_mask[..., : groups * taps * 3].reshape(*leading, taps * 3)
    return by_group[..., : 2 * taps].reshape(*leading, taps, 2), by_group[..., 2 * taps :]
