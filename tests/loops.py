# SPDX-License-Identifier: MIT
"""Deformable convolution as loops over everything: slow, plain, and sharing no code with the library."""

import math

import numpy as np


def read(image: np.ndarray, h: float, w: float, legacy: bool) -> float:
    """Bilinear interpolation of a single-channel image."""
    height, width = image.shape
    inside = 0 <= h < height and 0 <= w < width if legacy else -1 < h < height and -1 < w < width
    if not inside:
        return 0.0
    value = 0.0
    for y in (math.floor(h), math.floor(h) + 1):
        for x in (math.floor(w), math.floor(w) + 1):
            weight = (1 - abs(h - y)) * (1 - abs(w - x))
            if legacy:
                value += weight * image[min(y, height - 1), min(x, width - 1)]
            elif 0 <= y < height and 0 <= x < width:
                value += weight * image[y, x]
    return value


def deform_conv2d(
    x, kernel, offset, mask, bias, *, strides, padding, kernel_dilation, groups, legacy=False
) -> np.ndarray:
    """Arrays as in `jax_dcn.deform_conv2d`, with one batch axis; `padding` is `(top, left)`."""
    batch, out_height, out_width, offset_groups, _, _ = offset.shape
    kernel_height, kernel_width, group_channels, features = kernel.shape
    channels = x.shape[-1]
    y = np.zeros((batch, out_height, out_width, features))
    for n, oy, ox, o in np.ndindex(*y.shape):
        total = bias[o]
        for i, j, c in np.ndindex(kernel_height, kernel_width, group_channels):
            channel = o // (features // groups) * group_channels + c
            group, tap = channel // (channels // offset_groups), i * kernel_width + j
            dy, dx = offset[n, oy, ox, group, tap]
            h = oy * strides[0] - padding[0] + i * kernel_dilation[0] + dy
            w = ox * strides[1] - padding[1] + j * kernel_dilation[1] + dx
            modulation = 1.0 if mask is None else mask[n, oy, ox, group, tap]
            value = read(x[n, :, :, channel], h, w, legacy)
            total += kernel[i, j, c, o] * modulation * value
        y[n, oy, ox, o] = total
    return y
