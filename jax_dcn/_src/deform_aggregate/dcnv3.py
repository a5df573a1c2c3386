# SPDX-License-Identifier: MIT
"""The public function `dcnv3`: the core of InternImage."""

from __future__ import annotations  # not evaluated: jaxtyping is for readers and type checkers

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax

from jax_dcn._src.arguments import array, renamed
from jax_dcn._src.deform_aggregate.taps import (
    ARGUMENTS,
    Taps,
    aggregate_taps,
    check_image,
    published_taps,
)
from jax_dcn._src.operator.implementation import Implementation
from jax_dcn._src.operator.sizes import fits
from jax_dcn._src.public import public
from jax_dcn._src.sampling.window import Padding

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_OFFSET = "[..., Ho, Wo, G, K', 2]"


@public("jax_dcn")
@renamed(ARGUMENTS)
def dcnv3(
    x: Float[Array, "*batch H W C"],
    offset: Float[Array, "*batch Ho Wo G K 2"],
    mask: Float[Array, "*batch Ho Wo G K"],
    *,
    kernel_size: int | Sequence[int] = 3,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    implementation: Implementation = None,
) -> Float[Array, "*batch Ho Wo C"]:
    r"""The core of DCNv3, the operator of InternImage, in its published layout.

    Output position :math:`p` of channel :math:`c` gets

    .. math:: y(p)_c = \sum_k m_k(p, g) \; x(s\,p + r_0 + \sigma (r_k + \Delta_k(p, g)))_c,

    where :math:`g` is the group of channel :math:`c`, :math:`r_0` the centre of the kernel, :math:`r_k`
    the taps around the centre, :math:`\sigma` the `offset_scale`, and `x` is read by bilinear
    interpolation. There is no kernel of weights: the layer around the operator, `jax_dcn.nnx.DCNv3`,
    has the projections and the softmax of the mask. Axes: `H W` image, `Ho Wo` output,
    `C` channels, `G` groups, `K' = kh * kw` taps, one less with `remove_center`.

    Args:
      x: Images, `[..., H, W, C]`. Any number of leading axes, zero included, are batch axes.
      offset: Displacements in pixels, `[..., Ho, Wo, G, K', 2]`, last axis `(x, y)`. Taps follow each
        other along the kernel's height first: tap `i * kh + j` is in column `i` and row `j`. The
        published array `[N, Ho, Wo, G * K' * 2]` is reshaped to this one.
      mask: Weights of the taps `[..., Ho, Wo, G, K']`, taken as they are. `G` divides `C`, and
        channel `c` uses group `c // (C // G)`.
      kernel_size: Taps, one number or `(height, width)`.
      strides: Step between output positions in pixels, one number or `(height, width)`.
      padding: Zeros around the image: `"SAME"`, `"SAME_LOWER"`, `"VALID"`, one number,
        `(height, width)`, or `((top, bottom), (left, right))`. InternImage's `pad=1` is `"SAME"` for
        3x3 taps and strides of 1.
      kernel_dilation: Distance between taps in pixels, one number or `(height, width)`.
      offset_scale: Factor of the offsets, and of the regular grid around its centre. InternImage-L
        and -XL have 2.0.
      remove_center: Whether the tap in the centre is left out.
      implementation: `"native"` (the C++ kernel on CPU, CUDA on GPU), `"xla"`, or a sequence of these
        to try in order. `None` takes the best that can run.

    Returns:
      `[..., Ho, Wo, C]`, in the dtype of `x`. Positions and sums are computed in float32, or in
      float64 where `x` is.

    Raises:
      ValueError: if shapes, dtypes or options disagree; the message names the argument.
      NotImplementedError: if `implementation` cannot run here; the message says why.

    Note:
      A sample counts if `-1 < y < H and -1 < x < W`, as in the published CUDA kernel,
      and at whole numbers the derivative is the right-hand one. The published PyTorch version rounds
      positions, so that a whole number may fall below itself, and swaps the paddings of height and
      width.

    Examples:
      >>> import jax.numpy as jnp, jax_dcn
      >>> x = jnp.ones((2, 14, 14, 64))
      >>> offset, mask = jnp.zeros((2, 14, 14, 4, 9, 2)), jnp.full((2, 14, 14, 4, 9), 1 / 9)
      >>> jax_dcn.dcnv3(x, offset, mask).shape
      (2, 14, 14, 64)

    References:
      Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable
      Convolutions", CVPR 2023.
    """
    x, offset = array("x", x, "[..., H, W, C]"), array("offset", offset, _OFFSET)
    mask = array("mask", mask, "[..., Ho, Wo, G, K']")
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
    _check_offset(x, offset, mask, taps)
    return aggregate_taps(x, offset, mask, taps, implementation)


def _check_offset(x: jax.Array, offset: jax.Array, mask: jax.Array, taps: Taps) -> None:
    leading = (*x.shape[:-3], *taps.output_size)
    expected = f"({', '.join(map(str, leading))}, G, {taps.count}, 2)"
    groups = offset.shape[-3] if offset.ndim > 2 else 0
    if offset.ndim != len(leading) + 3 or not fits(offset.shape, (*leading, groups, taps.count, 2)):
        raise ValueError(
            f"offset does not fit x, kernel_size and remove_center: expected {expected}, got "
            f"{offset.shape}.{_published_hint('offset', offset, x.ndim, (taps.count, 2))}"
        )
    if groups == 0 or x.shape[-1] % groups:
        raise ValueError(
            f"offset has {groups} groups, which must divide the {x.shape[-1]} channels of x: "
            f"expected {expected}, got {offset.shape}."
        )
    if not fits(mask.shape, offset.shape[:-1]):
        raise ValueError(
            f"mask does not fit offset: expected {offset.shape[:-1]}, got {mask.shape}."
            + _published_hint("mask", mask, x.ndim, (taps.count,))
        )


def _published_hint(name: str, array: jax.Array, rank: int, axes: tuple[int, ...]) -> str:
    """A sentence for an array in its published layout, all groups and taps in one axis; else empty."""
    if array.ndim != rank or array.shape[-1] % math.prod(axes):
        return ""
    sizes = ", ".join(map(str, axes))
    return f" Published arrays are reshaped: write {name}.reshape(*{name}.shape[:-1], -1, {sizes})."
