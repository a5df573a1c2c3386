# SPDX-License-Identifier: MIT
"""`torchvision.ops.deform_conv2d`, with the same arguments in the same order, for JAX arrays."""

from collections.abc import Sequence
from typing import Any

import jax

from jax_dcn._src.arguments import is_integer
from jax_dcn.interop._channels_first import ChannelsFirst, integers


def deform_conv2d(
    input: jax.Array,
    offset: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None = None,
    stride: int | Sequence[int] = (1, 1),
    padding: int | Sequence[int] = (0, 0),
    dilation: int | Sequence[int] = (1, 1),
    mask: jax.Array | None = None,
) -> jax.Array:
    """Deformable convolution of channels-first arrays, as torchvision calls it.

    The channels of `weight` give the number of groups, and the channels of `offset` give the number
    of offset groups `G`. Values equal torchvision's. Gradients equal torchvision's, except for
    samples at exactly -1 in either coordinate: the gradient of their offset is zero here, in the
    original and in mmcv, and the right-hand derivative in torchvision. A fresh layer has such samples
    at the border of the image.

    Args:
      input: Images, `[N, C, H, W]`.
      offset: Displacements in pixels, `[N, 2 * G * kh * kw, Ho, Wo]`; channels by group, then by tap
        in row-major order, then `(dy, dx)`.
      weight: `[O, C // groups, kh, kw]`.
      bias: `[O]`.
      stride, padding, dilation: One integer, or `(height, width)`.
      mask: Modulation, `[N, G * kh * kw, Ho, Wo]`.

    Returns:
      `[N, O, Ho, Wo]`.

    Raises:
      ValueError: if shapes, dtypes or options disagree; the message names the argument.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_dcn.interop.torchvision import deform_conv2d
      >>> x, weight = jnp.ones((4, 3, 10, 10)), jnp.ones((5, 3, 3, 3))
      >>> offset = jnp.zeros((4, 2 * 3 * 3, 8, 8))
      >>> deform_conv2d(x, offset, weight).shape
      (4, 5, 8, 8)
    """
    arrays = ChannelsFirst.of(
        ("input", "offset", "weight", "bias", "mask"), input, offset, weight, bias, mask
    )
    (ph, pw) = _pair("padding", padding, least=0)
    return arrays.convolve(
        _pair("stride", stride, least=1), ((ph, ph), (pw, pw)), _pair("dilation", dilation, least=1)
    )


def _pair(name: str, value: Any, *, least: int) -> tuple[int, int]:
    """An integer, or two, as `(height, width)`."""
    try:
        pair = (value, value) if is_integer(value) else value
        height, width = integers(name, pair, 2, least=least)
    except ValueError as error:
        raise ValueError(
            f"{name} must be an integer from {least} to 2**31 - 1 or a pair (height, width), "
            f"got {value!r}."
        ) from error
    return height, width
