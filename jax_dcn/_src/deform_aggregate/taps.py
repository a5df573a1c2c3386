# SPDX-License-Identifier: MIT
"""The taps of DCNv3 and DCNv4: width outermost, pairs `(x, y)`, and a grid that may be stretched."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.arguments import finite, flag, positive_pair
from jax_dcn._src.deform_aggregate.function import aggregate
from jax_dcn._src.deform_aggregate.geometry import AggregateGeometry
from jax_dcn._src.operator.dtypes import sum_dtype
from jax_dcn._src.operator.implementation import Implementation
from jax_dcn._src.operator.merging import merged, parted, whole
from jax_dcn._src.sampling import window
from jax_dcn._src.sampling.window import Padding, Size

# Names of arguments in the published functions, and their names here.
ARGUMENTS = {
    "input": "x",
    "stride": "strides",
    "pad": "padding",
    "dilation": "kernel_dilation",
    "group": "groups",
}


@dataclasses.dataclass(frozen=True)
class Taps:
    """Where the taps lie.

    Attributes:
      kernel_size, strides, kernel_dilation: `(height, width)`.
      padding: `((top, bottom), (left, right))`.
      offset_scale: Factor of the offsets, and of the grid around its centre.
      remove_center: Whether the tap in the centre is left out.
      output_size: Number of output positions, `(height, width)`.
      shift: Correction of positions `(y, x)`, where the true padding is unknown, see `free_shift`.
    """

    kernel_size: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    kernel_dilation: tuple[int, int]
    offset_scale: float
    remove_center: bool
    output_size: tuple[int, int]
    shift: tuple[Any, Any]

    @property
    def count(self) -> int:
        """Taps `K'` of a group."""
        return self.kernel_size[0] * self.kernel_size[1] - self.remove_center


def published_taps(
    image_size: Size,
    *,
    kernel_size: Any,
    strides: Any,
    padding: Padding,
    kernel_dilation: Any,
    offset_scale: Any,
    remove_center: Any,
) -> Taps:
    """Validates the options as users write them.

    Raises:
      ValueError: if an option has a wrong value; the message names it.
    """
    kernel = positive_pair("kernel_size", kernel_size)
    steps = positive_pair("strides", strides)
    dilation = positive_pair("kernel_dilation", kernel_dilation)
    scale = finite("offset_scale", offset_scale)
    removed = odd_if_removed(kernel, remove_center)
    pads = window.explicit_padding(padding, image_size, kernel, steps, dilation)
    size = window.output_size(
        image_size, kernel, strides=steps, padding=pads, kernel_dilation=dilation
    )
    window.check_output_size(size, image_size, f"kernel_size={kernel}")
    shift = window.free_shift(padding, pads, image_size, kernel, steps, dilation)
    return Taps(kernel, steps, pads, dilation, scale, removed, size, shift)


def odd_if_removed(kernel_size: tuple[int, int], remove_center: Any) -> bool:
    """The argument `remove_center`, which needs a kernel with a centre."""
    removed = flag("remove_center", remove_center)
    if removed and not all(size % 2 for size in kernel_size):
        raise ValueError(
            f"remove_center needs a kernel with a tap in the centre, got kernel_size={kernel_size}."
        )
    if removed and kernel_size == (1, 1):
        raise ValueError("remove_center leaves no tap of kernel_size=(1, 1).")
    return removed


def check_image(x: jax.Array) -> None:
    """Refuses images without pixels or channels."""
    if x.ndim < 3 or 0 in x.shape[-3:]:
        raise ValueError(f"x must be [..., H, W, C] with pixels and channels, got shape {x.shape}.")


def aggregate_taps(
    x: jax.Array, offset: jax.Array, mask: jax.Array, taps: Taps, implementation: Implementation
) -> jax.Array:
    """Sums the taps of `offset [..., Ho, Wo, G, K', 2]`, weighted by `mask [..., Ho, Wo, G, K']`."""
    rows = x.ndim - 3  # the axis of rows, of images, positions and results
    y = aggregate(
        merged(x, rows),
        merged(positions(offset.astype(sum_dtype(x)), taps), rows),
        merged(mask, rows),
        AggregateGeometry(((x.shape[-3], x.shape[-2]),), (taps.count,)),
        implementation,
    )
    return parted(y, rows, *offset.shape[rows : rows + 2])


def positions(offset: jax.Array, taps: Taps) -> jax.Array:
    """Positions `(y, x)` in pixels, for offsets `(x, y)`."""
    offset, found = whole(offset, offset.ndim - 1), []
    for axis, coordinates in enumerate(_stretched(taps)):
        output = jnp.arange(offset.shape[axis - 5], dtype=np.int32) * taps.strides[axis]
        first = (output - taps.padding[axis][0] + taps.shift[axis]).astype(offset.dtype)
        grid = jnp.add.outer(first, jnp.asarray(coordinates, offset.dtype))
        others = (*range(offset.ndim - 5), offset.ndim - 4 - axis, offset.ndim - 3)
        displacement = taps.offset_scale * offset[..., 1 - axis]
        found.append(jnp.expand_dims(grid, others) + displacement)
    return jnp.stack(found, axis=-1)


def _stretched(taps: Taps) -> np.ndarray:
    """Coordinates `(y, x)` of the taps from the kernel's first pixel, `[2, K']`, width outermost."""
    height, width = taps.kernel_size
    columns, rows = np.indices((width, height)).reshape(2, -1)
    dilation = np.array(taps.kernel_dilation)[:, None]
    centre = dilation * (np.array(taps.kernel_size)[:, None] - 1) // 2
    grid = centre + taps.offset_scale * (np.stack([rows, columns]) * dilation - centre)
    return np.delete(grid, grid.shape[1] // 2, axis=1) if taps.remove_center else grid
