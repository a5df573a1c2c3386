# SPDX-License-Identifier: MIT
"""Where a deformable convolution samples its images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.deform_conv2d.geometry import ConvGeometry
from jax_dcn._src.sampling.positions import displaced, regular_grid
from jax_dcn._src.sampling.window import Size


def all_positions(offset: jax.Array, kernel_size: Size, geometry: ConvGeometry) -> jax.Array:
    """All samples, also samples outside the image: `[..., H_out, W_out, G, K, 2]`.

    The last axis is `(y, x)` in pixels of `x`. The result has the shape of `offset`.
    """
    rows, columns = (jnp.arange(size, dtype=np.int32) for size in offset.shape[-5:-3])
    return jnp.stack(positions_at(rows, columns, offset, kernel_size, geometry), axis=-1)


def shifted(offset: jax.Array, shift: tuple[Any, Any]) -> jax.Array:
    """`offset [..., 2]`, with the sizes `shift` added to `(dy, dx)`."""
    if isinstance(shift[0], int) and isinstance(shift[1], int) and shift == (0, 0):
        return offset
    added = jnp.stack([jnp.asarray(size).astype(offset.dtype) for size in shift])
    return offset + jnp.expand_dims(added, tuple(range(offset.ndim - 1)))


def positions_at(
    rows: Any, columns: Any, offset: jax.Array, kernel_size: Size, geometry: ConvGeometry
) -> list[jax.Array]:
    """The samples `(h, w)`, each `[..., rows, columns, G, K]`, of some output positions.

    Args:
      rows, columns: Indices of the output positions, `[rows]` and `[columns]`.
      offset: `[..., rows, columns, G, K, 2]`, pixels, last axis `(dy, dx)`.
    """
    grid = regular_grid(
        (rows, columns),
        kernel_size,
        strides=geometry.strides,
        kernel_dilation=geometry.kernel_dilation,
        padding=geometry.padding,
    )
    return displaced(grid, offset)
