# SPDX-License-Identifier: MIT
"""Deformable convolution in plain `jax.numpy`.

Arrays are those of the primitive: exactly one batch axis, `offset` and `mask` in the dtype that
coordinates and sums are computed in, a `mask` without taps (`[..., G, 0]`) for version 1.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.deform_conv2d.geometry import ConvGeometry
from jax_dcn._src.operator import derivatives
from jax_dcn._src.operator.blockwise import blockwise

OPERANDS = ("x", "kernel", "offset", "mask", "bias")


def deform_conv2d(
    x: jax.Array,
    kernel: jax.Array,
    offset: jax.Array,
    mask: jax.Array,
    bias: jax.Array,
    *,
    geometry: ConvGeometry,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """See `jax_dcn.deform_conv2d`.

    Args:
      x: `[N, H, W, C]`.
      kernel: `[K_h, K_w, C // feature_group_count, O]`.
      offset: `[N, H_out, W_out, G, K, 2]`, pixels, last axis `(dy, dx)`.
      mask: `[N, H_out, W_out, G, K]`, or `[N, H_out, W_out, G, 0]` for version 1.
      bias: `[O]`.

    Returns:
      `[N, H_out, W_out, O]`, dtype of `x`.
    """
    _, height, width, groups, taps, _ = offset.shape
    row_bytes = width * taps * x.shape[-1] * offset.dtype.itemsize
    rows = np.arange(height, dtype=np.int32)

    def image(x: jax.Array, offset: jax.Array, mask: jax.Array) -> jax.Array:
        def row(y: jax.Array, offset: jax.Array, mask: jax.Array) -> jax.Array:
            h, w = _positions(y, offset, kernel.shape[:2], geometry)
            samples = _sample(x.reshape(*x.shape[:2], groups, -1), h, w, geometry.boundary)
            if mask.shape[-1]:
                samples = samples * mask[..., None]
            return _multiply(samples, kernel, geometry.feature_group_count, precision)

        return blockwise(row, (rows, offset, mask), row_bytes)

    y = blockwise(image, (x, offset, mask), row_bytes * height)
    return (y + bias.astype(y.dtype)[None, None, None, :]).astype(x.dtype)


def deform_conv2d_jvp(
    x: jax.Array,
    kernel: jax.Array,
    offset: jax.Array,
    mask: jax.Array,
    *tangents: jax.Array,
    wrt: Sequence[str],
    **options: Any,
) -> jax.Array:
    """The tangent of the output along `tangents`, those of the operands named in `wrt`."""
    operands = _operands(x, kernel, offset, mask)
    return derivatives.jvp(partial(deform_conv2d, **options), operands, wrt, tangents)


def deform_conv2d_backward(
    x: jax.Array,
    kernel: jax.Array,
    offset: jax.Array,
    mask: jax.Array,
    grad_y: jax.Array,
    *,
    wrt: Sequence[str],
    **options: Any,
) -> tuple[jax.Array, ...]:
    """The cotangents of the operands named in `wrt` for the output's cotangent `grad_y`."""
    operands = _operands(x, kernel, offset, mask)
    return derivatives.vjp(partial(deform_conv2d, **options), operands, wrt, grad_y)


def _operands(
    x: jax.Array, kernel: jax.Array, offset: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    # Derivatives do not depend on its value; it varies over the devices that the kernel varies over.
    bias = jnp.zeros_like(kernel, shape=kernel.shape[-1:])
    return dict(zip(OPERANDS, (x, kernel, offset, mask, bias), strict=True))


def _positions(
    row: jax.Array, offset: jax.Array, kernel_size: Sequence[int], geometry: ConvGeometry
) -> tuple[jax.Array, jax.Array]:
    """Sampling positions `(h, w)`, each `[W_out, G, K]`, of one row of outputs."""
    dtype = offset.dtype
    columns = np.arange(offset.shape[0])
    tap_y, tap_x = np.divmod(np.arange(kernel_size[0] * kernel_size[1]), kernel_size[1])
    (top, _), (left, _) = geometry.padding
    base_h = row.astype(dtype) * geometry.strides[0] + jnp.asarray(
        tap_y * geometry.kernel_dilation[0] - top, dtype
    )
    base_w = (columns * geometry.strides[1] - left)[:, None, None] + (
        tap_x * geometry.kernel_dilation[1]
    )[None, None, :]
    return base_h[None, None, :] + offset[..., 0], jnp.asarray(base_w, dtype) + offset[..., 1]


def _sample(x: jax.Array, h: jax.Array, w: jax.Array, boundary: str) -> jax.Array:
    """Reads images `[H, W, G, C // G]` at `[W_out, G, K]` positions by bilinear interpolation.

    v = (1 - a)(1 - b) x[h0, w0] + (1 - a) b x[h0, w0 + 1] + a (1 - b) x[h0 + 1, w0] + a b x[h0 + 1, w0 + 1]

    with h0 = floor(h), a = h - h0, w0 = floor(w), b = w - w0: differentiating through `floor` gives
    the right-hand derivative at whole numbers, as the operator is defined.
    """
    height, width, groups, _ = x.shape
    lowest = -1 if boundary == "padded" else 0
    # ">=" and ">" differ at the lowest coordinate only: -1 is outside, and 0 is inside.
    above = jnp.greater if boundary == "padded" else jnp.greater_equal
    inside = above(h, lowest) & (h < height) & above(w, lowest) & (w < width)
    # Positions outside are replaced before they are used: no conversion of a huge or undefined
    # number to an integer, and no gradient.
    h_inside, w_inside = jnp.where(inside, h, 0), jnp.where(inside, w, 0)
    h_floor, w_floor = jnp.floor(h_inside), jnp.floor(w_inside)
    group = np.arange(groups, dtype=np.int32)[None, :, None]
    a, b = h_inside - h_floor, w_inside - w_floor
    h_floor, w_floor = h_floor.astype(jnp.int32), w_floor.astype(jnp.int32)

    def corner(i: int, j: int) -> jax.Array:
        row, column = h_floor + i, w_floor + j
        # The legacy rule lets the last row and column stand in for those beyond the image.
        in_image = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        read = inside if boundary == "legacy" else inside & in_image
        row, column = jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)
        value = x.at[row, column, group].get(mode="promise_in_bounds").astype(h.dtype)
        weight = (a if i else 1 - a) * (b if j else 1 - b)
        # Selected, not multiplied by zero: an infinity outside must not become a NaN.
        return weight[..., None] * jnp.where(read[..., None], value, 0)

    undefined = jnp.where(jnp.isnan(h) | jnp.isnan(w), h + w, 0)
    # Squared, so that a NaN position has a NaN derivative, too.
    return corner(0, 0) + corner(0, 1) + corner(1, 0) + corner(1, 1) + (undefined**2)[..., None]


def _multiply(
    samples: jax.Array, kernel: jax.Array, feature_groups: int, precision: jax.lax.PrecisionLike
) -> jax.Array:
    """Samples `[W_out, G, K, C // G]` times the kernel: `[W_out, O]`."""
    width, _, taps, _ = samples.shape
    columns = samples.swapaxes(1, 2).reshape(width, taps, feature_groups, -1)
    kernel = kernel.reshape(taps, kernel.shape[2], feature_groups, -1).astype(samples.dtype)
    y = jnp.einsum("wkgc,kcgo->wgo", columns, kernel, precision=precision)
    return y.reshape(width, -1)
