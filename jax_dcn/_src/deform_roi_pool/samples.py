# SPDX-License-Identifier: MIT
"""Where deformable RoI pooling samples its images: bin by bin, and for each axis by itself."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.deform_roi_pool.geometry import RoIGeometry

_SMALLEST_SIZE = 0.1  # smallest size of a region with rounded corners, in pixels of x


class Samples(NamedTuple):
    """The samples of every bin and class along one axis; each lies between two pixels.

    Attributes:
      low, high: Indices of the two pixels, `[P_h, P_w, classes, S]`.
      fraction: Distance of the sample from the pixel `low`, as a fraction of the way to `high`.
      inside: Whether the sample is read.
      divisor: Number of samples that the mean divides by, `[P_h, P_w, classes]`.
      total: Sum of the positions; NaN where a position is NaN.
    """

    low: jax.Array
    high: jax.Array
    fraction: jax.Array
    inside: jax.Array
    divisor: jax.Array
    total: jax.Array


def offset_of_bins(offset: jax.Array, geometry: RoIGeometry) -> jax.Array:
    """The offset of the part that each bin lies in, `[P_h, P_w, classes, 2]`."""
    parts_h, parts_w, classes, _ = offset.shape
    if not parts_h:
        return jnp.zeros((*geometry.pooled_size, classes, 2), offset.dtype)
    row, column = (
        np.arange(bins) * parts // bins
        for bins, parts in zip(geometry.pooled_size, (parts_h, parts_w), strict=True)
    )
    return offset[row[:, None], column[None, :]]


def samples_along(
    axis: int,
    low: jax.Array,
    high: jax.Array,
    displacement: jax.Array,
    pixels: int,
    geometry: RoIGeometry,
) -> Samples:
    """The samples along `axis` of a region from `low` to `high`, in an image with `pixels` pixels."""
    first, bin_size = _bins(axis, low, high, displacement, geometry)
    number, begin, at_most = _sample_range(first, bin_size, pixels, geometry)
    i = begin[..., None] + jnp.arange(at_most, dtype=bin_size.dtype)[None, None, None, :]
    position = _position(i, first, bin_size / jnp.where(number < 1, 1, number), geometry)
    margin = 1.0 if geometry.aligned else 0.5
    inside = (i < number) & (position >= -margin) & (position <= pixels - 1 + margin)
    clamped = jnp.where(inside, position, 0)
    clamped = jnp.where(clamped < 0, 0, jnp.where(clamped > pixels - 1, pixels - 1, clamped))
    before = jnp.floor(clamped)
    # The derivative at a whole number is the right-hand one if aligned, and else zero.
    after = jnp.minimum(before + 1, pixels - 1) if geometry.aligned else jnp.ceil(clamped)
    divisor = number if geometry.aligned else inside.sum(-1).astype(bin_size.dtype)
    return Samples(
        before.astype(jnp.int32),
        after.astype(jnp.int32),
        clamped - before,
        inside,
        jnp.broadcast_to(divisor, first.shape),
        jnp.where(i >= number, 0, position).sum(-1),
    )


def _sample_range(
    first: jax.Array, bin_size: jax.Array, pixels: int, geometry: RoIGeometry
) -> tuple[jax.Array, jax.Array, int]:
    """The samples of each bin along an axis.

    Returns:
      The number of samples, the index of the first sample that may be inside the image, and a bound
      on the number of samples inside.
    """
    if geometry.samples:
        number = jnp.asarray(geometry.samples, bin_size.dtype)
        return number, jnp.zeros_like(first), geometry.samples
    # Samples are between half a pixel and one pixel apart, so that at most these are inside.
    number = jnp.ceil(bin_size)
    begin = jnp.floor((-1 - first) * number / bin_size) - 1
    return number, jax.lax.stop_gradient(jnp.where(begin > 0, begin, 0)), 2 * pixels + 8


def sampling_positions(rois: jax.Array, offset: jax.Array, geometry: RoIGeometry) -> jax.Array:
    """All samples, also samples outside the image: `[R, P_h, P_w, classes, S, S, 2]`.

    The last axis is `(y, x)` in pixels of `x`. `geometry.samples` must not be 0.
    """
    i = jnp.arange(geometry.samples, dtype=rois.dtype)[None, None, None, :]

    def region(roi: jax.Array, offset: jax.Array) -> jax.Array:
        moved = offset_of_bins(offset, geometry)

        def along(axis: int, low: jax.Array, high: jax.Array) -> jax.Array:
            first, bin_size = _bins(axis, low, high, moved[..., axis], geometry)
            return _position(i, first, bin_size / geometry.samples, geometry)

        y, x = along(0, roi[2], roi[4])[..., None], along(1, roi[1], roi[3])[..., None, :]
        return jnp.stack(jnp.broadcast_arrays(y, x), axis=-1)

    return jax.vmap(region)(rois, offset)


def _bins(
    axis: int, low: jax.Array, high: jax.Array, displacement: jax.Array, geometry: RoIGeometry
) -> tuple[jax.Array, jax.Array]:
    """The start of each bin along `axis`, `[P_h, P_w, classes]`, and the size of a bin."""
    start, size = _extent(low, high, geometry)
    bins = geometry.pooled_size[axis]
    # XLA multiplies by the reciprocal of a constant divisor, and may miss a whole number of pixels,
    # which decides how many samples there are.
    quotient = size / bins
    whole = jnp.round(quotient)
    bin_size = jnp.where(whole * bins == size, whole, quotient)
    index = np.arange(bins).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    first = jnp.asarray(index, size.dtype) * bin_size + start
    return first + displacement * geometry.offset_scale * size, bin_size


def _extent(low: jax.Array, high: jax.Array, geometry: RoIGeometry) -> tuple[jax.Array, jax.Array]:
    """Start and size of a region along an axis, in pixels of `x`."""
    if geometry.aligned:
        start = low * geometry.spatial_scale - 0.5
        return start, high * geometry.spatial_scale - 0.5 - start
    away = jax.lax.RoundingMethod.AWAY_FROM_ZERO
    start = jax.lax.round(low, away) * geometry.spatial_scale - 0.5
    end = (jax.lax.round(high, away) + 1) * geometry.spatial_scale - 0.5
    return start, jnp.maximum(end - start, _SMALLEST_SIZE)


def _position(i: jax.Array, first: jax.Array, step: jax.Array, geometry: RoIGeometry) -> jax.Array:
    """The position of sample `i`: the middle of its sub-bin if aligned, else the corner."""
    return first[..., None] + (i + (0.5 if geometry.aligned else 0.0)) * step
