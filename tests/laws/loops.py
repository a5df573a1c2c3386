# SPDX-License-Identifier: MIT
"""The operators as loops over everything: slow, plain, and sharing no code with the library."""

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


def deform_roi_pool(
    x,
    rois,
    offset,
    mask,
    *,
    spatial_scale,
    pooled_size,
    output_dim,
    group_size=1,
    part_size=None,
    samples_per_part=4,
    trans_std=0.0,
) -> np.ndarray:
    """The original's pooling; arrays as in `jax_dcn.deform_roi_pool`."""
    _, height, width, _ = x.shape
    part_size = part_size or pooled_size
    y = np.zeros((len(rois), pooled_size, pooled_size, output_dim))
    for r, row, column, feature in np.ndindex(*y.shape):
        corners = [math.copysign(math.floor(abs(v) + 0.5), v) for v in rois[r, 1:]]
        left, top = (v * spatial_scale - 0.5 for v in corners[:2])
        right, bottom = ((v + 1) * spatial_scale - 0.5 for v in corners[2:])
        sizes = max(bottom - top, 0.1), max(right - left, 0.1)
        starts = [top + row * sizes[0] / pooled_size, left + column * sizes[1] / pooled_size]
        if offset is not None:
            part = row * part_size // pooled_size, column * part_size // pooled_size
            moved = offset[(r, *part, feature // (output_dim // offset.shape[3]))]
            starts = [s + m * trans_std * z for s, m, z in zip(starts, moved, sizes, strict=True)]
        cell = row * group_size // pooled_size, column * group_size // pooled_size
        channel = (feature * group_size + cell[0]) * group_size + cell[1]
        values = []
        for i, j in np.ndindex(samples_per_part, samples_per_part):
            step = [z / pooled_size / samples_per_part for z in sizes]
            h, w = starts[0] + i * step[0], starts[1] + j * step[1]
            if -0.5 <= h <= height - 0.5 and -0.5 <= w <= width - 0.5:
                h, w = min(max(h, 0), height - 1), min(max(w, 0), width - 1)
                values.append(read(x[int(rois[r, 0]), :, :, channel], h, w, legacy=False))
        modulation = 1.0 if mask is None else mask[r, row, column]
        y[r, row, column, feature] = modulation * sum(values) / max(1, len(values))
    return y


def deform_roi_align(
    x, rois, offset, mask, *, spatial_scale, pooled_size, sampling_ratio=0, gamma=0.1, aligned=True
) -> np.ndarray:
    """mmcv's pooling; arrays as in `jax_dcn.deform_roi_align`."""
    _, height, width, channels = x.shape
    y = np.zeros((len(rois), *pooled_size, channels))
    for r, row, column, channel in np.ndindex(*y.shape):
        left, top, right, bottom = (v * spatial_scale - 0.5 * aligned for v in rois[r, 1:])
        sizes = bottom - top, right - left
        if not aligned:
            sizes = [max(size, 1) for size in sizes]
        bins = [size / pooled for size, pooled in zip(sizes, pooled_size, strict=True)]
        starts = [top + row * bins[0], left + column * bins[1]]
        if offset is not None:
            moved = offset[r, row, column, 0]
            starts = [s + gamma * z * m for s, m, z in zip(starts, moved, sizes, strict=True)]
        numbers = [sampling_ratio or max(0, math.ceil(size)) for size in bins]
        total = 0.0
        for i, j in np.ndindex(*numbers):
            h = starts[0] + (i + 0.5) * bins[0] / numbers[0]
            w = starts[1] + (j + 0.5) * bins[1] / numbers[1]
            if -1 <= h <= height and -1 <= w <= width:
                h, w = min(max(h, 0), height - 1), min(max(w, 0), width - 1)
                total += read(x[int(rois[r, 0]), :, :, channel], h, w, legacy=False)
        modulation = 1.0 if mask is None else mask[r, row, column]
        y[r, row, column, channel] = modulation * total / max(1, math.prod(numbers))
    return y
