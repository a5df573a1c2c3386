# SPDX-License-Identifier: MIT
"""The regular grid that a convolution samples a map at, with any number of map axes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def regular_grid(
    outputs: Sequence[Any],
    kernel_size: Sequence[int],
    *,
    strides: Sequence[int],
    kernel_dilation: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> list[Any]:
    """Coordinates of the undisplaced taps of a convolution, in pixels, for each axis of the map.

    Args:
      outputs: For each axis, the indices of output positions along the axis, `[outputs]`.
      kernel_size: Taps along each axis; `K` is their product, in row-major order.
      strides: Step between output positions, in pixels.
      kernel_dilation: Distance of neighbouring taps, in pixels.
      padding: Pixels added before and after each axis.

    Returns:
      For each axis an integer array `[1, ..., outputs, ..., 1, K]`; the arrays of all axes broadcast
      to `[*outputs, K]`.
    """
    rank = len(kernel_size)
    taps = np.indices(kernel_size, np.int32).reshape(rank, -1)
    grid = []
    for axis, output in enumerate(outputs):
        first = output * strides[axis] - padding[axis][0]
        shape = (*(-1 if other == axis else 1 for other in range(rank)), taps.shape[1])
        grid.append((first[:, None] + (taps[axis] * kernel_dilation[axis])[None, :]).reshape(shape))
    return grid


def displaced(grid: Sequence[Any], offset: jax.Array) -> list[jax.Array]:
    """Coordinates of taps that are displaced from a regular grid, for each axis of the map.

    Args:
      grid: The coordinates of `regular_grid`, which broadcast to `[*outputs, K]`.
      offset: Displacements in pixels, `[..., *outputs, G, K, axes]`.

    Returns:
      For each axis the coordinates `[..., *outputs, G, K]`, in the dtype of `offset`.
    """
    positions = []
    for axis, coordinate in enumerate(grid):
        coordinate = jnp.asarray(coordinate, offset.dtype)[..., None, :]
        leading = tuple(range(offset.ndim - 1 - coordinate.ndim))
        positions.append(jnp.expand_dims(coordinate, leading) + offset[..., axis])
    return positions
