# SPDX-License-Identifier: MIT
"""Where the taps of a deformable convolution land on the image."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.deform_conv2d.geometry import ConvGeometry, Size


def sampling_positions(offset: jax.Array, kernel_size: Size, geometry: ConvGeometry) -> jax.Array:
    """Adds the regular grid to offsets `[..., Ho, Wo, G, K, 2]`: positions `(y, x)` in pixels."""
    grid = regular_grid(offset.shape[-5:-3], kernel_size, geometry)
    return offset + jnp.asarray(grid, offset.dtype).reshape(
        (1,) * (offset.ndim - 5) + (*grid.shape[:2], 1, *grid.shape[2:])
    )


def regular_grid(output_size: Size, kernel_size: Size, geometry: ConvGeometry) -> np.ndarray:
    """Positions `(y, x)` of the undisplaced taps, `[Ho, Wo, K, 2]`."""
    sizes = (*output_size, *kernel_size)
    out_y, out_x, tap_y, tap_x = np.indices(sizes)
    axes = (
        out * stride + tap * dilation - before
        for out, tap, stride, dilation, (before, _) in zip(
            (out_y, out_x),
            (tap_y, tap_x),
            geometry.strides,
            geometry.kernel_dilation,
            geometry.padding,
            strict=True,
        )
    )
    return np.stack(tuple(axes), axis=-1).reshape(*output_size, -1, 2)
