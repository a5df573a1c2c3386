# SPDX-License-Identifier: MIT
"""Deformable convolution in plain `jax.numpy`.

Arrays are as implementations receive them: exactly one batch axis; `offset` and `mask` in the dtype
of coordinates and sums; a `mask` without taps (`[..., G, 0]`) for version 1.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.deform_conv2d.geometry import ConvGeometry
from jax_dcn._src.deform_conv2d.samples import positions_at
from jax_dcn._src.deform_conv2d.signature import SIGNATURE
from jax_dcn._src.operator import derivatives
from jax_dcn._src.operator.blockwise import blockwise
from jax_dcn._src.public import public
from jax_dcn._src.sampling.bilinear import sample


@public("jax_dcn.reference")
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
    rows, columns = (jnp.arange(size, dtype=np.int32) for size in (height, width))
    # Widened before images and rows read them, so that gradients are summed in the wide dtype.
    wide_kernel = kernel.astype(offset.dtype)

    def image(x: jax.Array, offset: jax.Array, mask: jax.Array) -> jax.Array:
        wide = x.astype(offset.dtype).reshape(*x.shape[:2], groups, -1)

        def row(y: jax.Array, offset: jax.Array, mask: jax.Array) -> jax.Array:
            positions = positions_at(y[None], columns, offset[None], kernel.shape[:2], geometry)
            samples = sample(wide, positions, geometry.boundary)[0]
            if mask.shape[-1]:
                samples = samples * mask[..., None]
            return _multiply(samples, wide_kernel, geometry.feature_group_count, precision)

        return blockwise(row, (rows, offset, mask), row_bytes)

    y = blockwise(image, (x, offset, mask), row_bytes * height)
    return (y + bias.astype(y.dtype)[None, None, None, :]).astype(x.dtype)


@public("jax_dcn.reference")
def deform_conv2d_jvp(
    x: jax.Array,
    kernel: jax.Array,
    offset: jax.Array,
    mask: jax.Array,
    *tangents: jax.Array,
    wrt: Sequence[str],
    **options: Any,
) -> jax.Array:
    """The tangent of the output along `tangents`, one for each operand named in `wrt`."""
    operands = _operands(x, kernel, offset, mask)
    return derivatives.jvp(partial(deform_conv2d, **options), operands, wrt, tangents)


@public("jax_dcn.reference")
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
    # Derivatives do not depend on the bias. It varies over the devices that the kernel varies over.
    bias = jnp.zeros_like(kernel, shape=kernel.shape[-1:])
    return dict(zip(SIGNATURE.operands, (x, kernel, offset, mask, bias), strict=True))


def _multiply(
    samples: jax.Array, kernel: jax.Array, feature_groups: int, precision: jax.lax.PrecisionLike
) -> jax.Array:
    """Samples `[W_out, G, K, C // G]` times the kernel: `[W_out, O]`."""
    width, _, taps, _ = samples.shape
    columns = samples.swapaxes(1, 2).reshape(width, taps, feature_groups, -1)
    kernel = kernel.reshape(taps, kernel.shape[2], feature_groups, -1)
    y = jnp.einsum("wkgc,kcgo->wgo", columns, kernel, precision=precision)
    return y.reshape(width, -1)
