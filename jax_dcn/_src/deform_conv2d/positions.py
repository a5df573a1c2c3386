# SPDX-License-Identifier: MIT
"""The public functions `sampling_positions` and `offset_from_positions`."""

from __future__ import annotations  # not evaluated: jaxtyping is for readers and type checkers

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jax_dcn._src import arguments
from jax_dcn._src.deform_conv2d import samples
from jax_dcn._src.deform_conv2d.geometry import conv_geometry
from jax_dcn._src.deform_conv2d.hints import ARGUMENTS
from jax_dcn._src.operator.dtypes import sum_dtype
from jax_dcn._src.operator.sizes import fits, is_image_size
from jax_dcn._src.public import public
from jax_dcn._src.sampling.window import Padding, Size

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@public("jax_dcn")
@arguments.renamed(ARGUMENTS)
def sampling_positions(
    offset: Float[Array, "*batch Ho Wo G K 2"],
    *,
    kernel_size: int | Sequence[int],
    strides: int | Sequence[int] | None = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    image_size: Sequence[int],
) -> Float[Array, "*batch Ho Wo G K 2"]:
    """Where `deform_conv2d` samples its images for an `offset`.

    Args:
      offset: As in `deform_conv2d`: displacements in pixels, `[..., Ho, Wo, G, K, 2]`, `(dy, dx)`.
      kernel_size: Taps, one number or `(height, width)`.
      strides, padding, kernel_dilation: As in `deform_conv2d`.
      image_size: `(height, width)` of the images.

    Returns:
      Positions in pixels of the images, `(y, x)`, in the shape of `offset`: 0 is the centre of the
      first pixel. At least float32, since bfloat16 does not hold every pixel index.

    Raises:
      ValueError: if shapes or options disagree; the message names the argument.

    Examples:
      >>> import jax.numpy as jnp, jax_dcn
      >>> offset = jnp.zeros((7, 7, 1, 9, 2))
      >>> positions = jax_dcn.sampling_positions(offset, kernel_size=3, image_size=(7, 7))
      >>> positions[2, 4, 0, 0]
      Array([1., 3.], dtype=float32)
    """
    offset = _checked("offset", offset)
    window = kernel_size, strides, padding, kernel_dilation, image_size
    return offset + _regular("offset", offset, *window)


@public("jax_dcn")
@arguments.renamed(ARGUMENTS)
def offset_from_positions(
    positions: Float[Array, "*batch Ho Wo G K 2"],
    *,
    kernel_size: int | Sequence[int],
    strides: int | Sequence[int] | None = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    image_size: Sequence[int],
) -> Float[Array, "*batch Ho Wo G K 2"]:
    """The `offset` with which `deform_conv2d` samples its images at `positions`.

    The inverse of `sampling_positions`: for networks that predict points (RepPoints, AlignConv).

    Args:
      positions: Positions `[..., Ho, Wo, G, K, 2]` in pixels of the images, last axis `(y, x)`.
      kernel_size, strides, padding, kernel_dilation, image_size: See `sampling_positions`.

    Returns:
      The offset, in the shape of `positions`, at least in float32.

    Raises:
      ValueError: if shapes or options disagree; the message names the argument.

    Examples:
      >>> import jax.numpy as jnp, jax_dcn
      >>> centre = jnp.full((7, 7, 1, 9, 2), 3.0)
      >>> offset = jax_dcn.offset_from_positions(centre, kernel_size=3, image_size=(7, 7))
      >>> offset[3, 3, 0, 4]
      Array([0., 0.], dtype=float32)
    """
    positions = _checked("positions", positions)
    window = kernel_size, strides, padding, kernel_dilation, image_size
    return positions - _regular("positions", positions, *window)


def _checked(name: str, value: Any) -> jax.Array:
    """The argument `name` as an array of offsets or positions, at least in float32."""
    axes = "[..., Ho, Wo, G, K, 2]"
    array = arguments.array(name, value, axes)
    if array.ndim < 5 or array.shape[-1] != 2:
        raise ValueError(f"{name} must be {axes}, got shape {array.shape}.")
    return array.astype(sum_dtype(array))


def _regular(
    name: str,
    array: jax.Array,
    kernel_size: Any,
    strides: Any,
    padding: Padding,
    kernel_dilation: Any,
    image_size: Size,
) -> jax.Array:
    """Positions of the undisplaced samples, with the rank of `array`, which is the argument `name`."""
    taps = arguments.positive_pair("kernel_size", kernel_size)
    if not is_image_size(image_size):
        raise ValueError(
            f"image_size must be (height, width), positive integers, got {image_size!r}."
        )
    geometry = conv_geometry(
        image_size, taps, strides=strides, padding=padding, kernel_dilation=kernel_dilation
    )
    size = geometry.output_size(image_size, taps)
    if not fits((*array.shape[-5:-3], array.shape[-2]), (*size, taps[0] * taps[1])):
        raise ValueError(
            f"{name} must be [..., {size[0]}, {size[1]}, G, {taps[0] * taps[1]}, 2] for "
            f"images of {image_size[0]}x{image_size[1]} and kernel_size={taps}, got {array.shape}."
        )
    shift = geometry.free_shift(padding, image_size, taps)
    none = jnp.zeros(
        (1,) * (array.ndim - 5) + (*array.shape[-5:-3], 1, array.shape[-2], 2), array.dtype
    )
    return samples.all_positions(samples.shifted(none, shift), taps, geometry)
