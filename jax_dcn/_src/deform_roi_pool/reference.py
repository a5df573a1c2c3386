# SPDX-License-Identifier: MIT
"""Deformable pooling of regions of interest in plain `jax.numpy`.

Arrays are as the primitive receives them: `rois`, `offset` and `mask` in the dtype of coordinates and
sums. Plain pooling has an `offset` without parts, `[R, 0, 0, 1, 2]`; pooling without modulation has a
`mask` without bins, `[R, 0, 0]`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.deform_roi_pool.geometry import RoIGeometry
from jax_dcn._src.deform_roi_pool.samples import Samples, offset_of_bins, samples_along
from jax_dcn._src.deform_roi_pool.signature import SIGNATURE
from jax_dcn._src.operator import derivatives
from jax_dcn._src.operator.blockwise import blockwise
from jax_dcn._src.public import public

# Sums are in float32 on every platform, also where products are narrower by default.
_sum = partial(jnp.einsum, precision="highest")


@public("jax_dcn.reference")
def deform_roi_pool(
    x: jax.Array, rois: jax.Array, offset: jax.Array, mask: jax.Array, *, geometry: RoIGeometry
) -> jax.Array:
    """See `jax_dcn.deform_roi_pool` and `jax_dcn.deform_roi_align`.

    Args:
      x: `[N, H, W, S * S * D]`; `S` is the group size, and channels are ordered by row of cells, then
        by column of cells, then by feature.
      rois: `[R, 5]`, last axis `(batch index, x1, y1, x2, y2)`.
      offset: `[R, parts_h, parts_w, classes, 2]`, last axis `(dy, dx)`; or `[R, 0, 0, 1, 2]`.
      mask: `[R, pooled_h, pooled_w]`, or `[R, 0, 0]`.

    Returns:
      `[R, pooled_h, pooled_w, D]`, dtype of `x`.
    """
    images, height, width, channels = x.shape
    classes, cells = offset.shape[3], geometry.group_size
    features = channels // cells**2
    if not images:  # no region has an image
        return jnp.zeros((rois.shape[0], *geometry.pooled_size, features), x.dtype)
    # The whole map is widened, since the gradient of a pixel is a sum over regions.
    wide = x.astype(rois.dtype)
    wide = wide.reshape(images, height, width, cells, cells, classes, features // classes)

    def region(roi: jax.Array, offset: jax.Array, mask: jax.Array) -> jax.Array:
        has_image = (roi[0] >= 0) & (roi[0] < images)
        # A region without an image reads nothing, and a NaN of such a region must not spread.
        roi, offset = jnp.where(has_image, roi, 0), jnp.where(has_image, offset, 0)
        y = _means(wide, roi, offset, has_image, geometry)
        if mask.shape[-1]:
            y = y * mask[..., None]
        return jnp.where(has_image, y, 0)

    bins = geometry.pooled_size[0] * geometry.pooled_size[1]
    samples = 4 * geometry.samples**2 if geometry.samples else height * width
    bytes_ = bins * samples * features * rois.dtype.itemsize
    return blockwise(region, (rois, offset, mask), bytes_).astype(x.dtype)


@public("jax_dcn.reference")
def deform_roi_pool_jvp(
    x: jax.Array,
    rois: jax.Array,
    offset: jax.Array,
    mask: jax.Array,
    *tangents: jax.Array,
    wrt: Sequence[str],
    **options: Any,
) -> jax.Array:
    """The tangent of the output along `tangents`, one for each operand named in `wrt`."""
    operands = dict(zip(SIGNATURE.operands, (x, rois, offset, mask), strict=True))
    return derivatives.jvp(partial(deform_roi_pool, **options), operands, wrt, tangents)


@public("jax_dcn.reference")
def deform_roi_pool_backward(
    x: jax.Array,
    rois: jax.Array,
    offset: jax.Array,
    mask: jax.Array,
    grad_y: jax.Array,
    *,
    wrt: Sequence[str],
    **options: Any,
) -> tuple[jax.Array, ...]:
    """The cotangents of the operands named in `wrt` for the output's cotangent `grad_y`."""
    operands = dict(zip(SIGNATURE.operands, (x, rois, offset, mask), strict=True))
    return derivatives.vjp(partial(deform_roi_pool, **options), operands, wrt, grad_y)


def _means(
    x: jax.Array, roi: jax.Array, offset: jax.Array, has_image: jax.Array, geometry: RoIGeometry
) -> jax.Array:
    """The means of the bins of one region, `[P_h, P_w, D]`, for `x [N, H, W, S, S, classes, D]`."""
    displacement = offset_of_bins(offset, geometry)
    rows = samples_along(0, roi[2], roi[4], displacement[..., 0], x.shape[1], geometry)
    columns = samples_along(1, roi[1], roi[3], displacement[..., 1], x.shape[2], geometry)
    rows = rows._replace(inside=rows.inside & has_image)
    sums_of = _gathered_sums if geometry.samples else _dense_sums
    sums = sums_of(x, roi[0].astype(jnp.int32), rows, columns, geometry.group_size)
    means = sums * _inverse_or_zero(rows.divisor * columns.divisor)[..., None]
    is_nan = jnp.isnan(rows.total) | jnp.isnan(columns.total)
    # The sum of both displacements, squared, so that both have a derivative that is NaN.
    total = rows.total + columns.total + displacement.sum(-1)
    undefined = jnp.where(is_nan, total, 0) ** 2
    return (means + undefined[..., None]).reshape(*means.shape[:2], -1)


def _inverse_or_zero(divisor: jax.Array) -> jax.Array:
    return jnp.where(divisor > 0, 1 / jnp.where(divisor > 0, divisor, 1), 0)


def _gathered_sums(
    x: jax.Array, image: jax.Array, rows: Samples, columns: Samples, cells: int
) -> jax.Array:
    """Sums of samples of one image of `x [N, H, W, S, S, classes, D]`: `[P_h, P_w, classes, D]`."""
    row, row_weight, row_read = _pixels(rows)
    column, column_weight, column_read = _pixels(columns)
    cell_row, cell_column = (np.arange(bins) * cells // bins for bins in row.shape[:2])
    values = x.at[
        image,
        row[..., :, None],
        column[..., None, :],
        cell_row[:, None, None, None, None],
        cell_column[None, :, None, None, None],
        np.arange(x.shape[5])[None, None, :, None, None],
    ].get(mode="clip")
    # Selected, not multiplied by zero: an infinity that is not read must not become a NaN.
    read = (row_read[..., :, None] & column_read[..., None, :])[..., None]
    values = jnp.where(read, values, 0)
    return _sum("abkyxd,abky,abkx->abkd", values, row_weight, column_weight)


def _pixels(samples: Samples) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Both pixels of every sample: their indices, weights, and whether they are read."""
    weights = (1 - samples.fraction, samples.fraction)
    both = partial(jnp.concatenate, axis=-1)
    inside = both([samples.inside, samples.inside])
    return both([samples.low, samples.high]), jnp.where(inside, both(weights), 0), inside


def _dense_sums(
    x: jax.Array, image: jax.Array, rows: Samples, columns: Samples, cells: int
) -> jax.Array:
    """The sums of `_gathered_sums` as products with the whole image.

    For `samples=0`, where the number of samples depends on the region.
    """
    assert cells == 1
    row_weights = _weights_of_image(rows, x.shape[1])
    column_weights = _weights_of_image(columns, x.shape[2])
    pixels = x.at[image, :, :, 0, 0].get(mode="clip")
    return _sum("abky,yxkd,abkx->abkd", row_weights, pixels, column_weights)


def _weights_of_image(samples: Samples, pixels: int) -> jax.Array:
    """Weight of every pixel along an axis, `[P_h, P_w, classes, pixels]`."""
    index, weight, _ = _pixels(samples)
    is_pixel = index[..., None] == jnp.arange(pixels, dtype=np.int32)[None, None, None, None, :]
    return jnp.where(is_pixel, weight[..., None], 0).sum(-2)
