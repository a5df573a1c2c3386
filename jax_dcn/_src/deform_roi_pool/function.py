# SPDX-License-Identifier: MIT
"""The public functions `deform_roi_pool` and `deform_roi_align`: regions pooled at displaced bins."""

from __future__ import annotations  # not evaluated: jaxtyping is for readers and type checkers

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jax_dcn._src.arguments import (
    any_array,
    array,
    finite,
    flag,
    integer,
    is_integer,
    optional_array,
    positive_number,
    positive_pair,
    renamed,
)
from jax_dcn._src.deform_roi_pool.geometry import RoIGeometry
from jax_dcn._src.deform_roi_pool.hints import ABSENT, ARGUMENTS
from jax_dcn._src.deform_roi_pool.rules import deform_roi_pool_p
from jax_dcn._src.operator.dtypes import sum_dtype
from jax_dcn._src.operator.implementation import Implementation, implementation_names
from jax_dcn._src.operator.merging import merged, parted
from jax_dcn._src.operator.sizes import fits
from jax_dcn._src.public import public

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Real


_X, _ROIS = "[N, H, W, C]", "[R, 5], (batch index, x1, y1, x2, y2)"
MOST_PER_AXIS = 4096  # The kernels take at most so many bins, cells and samples along an axis.


@public("jax_dcn")
@renamed(ARGUMENTS, ABSENT)
def deform_roi_pool(
    x: Float[Array, "N H W C"],
    rois: Real[Array, "R 5"],
    offset: Float[Array, "R parts parts classes 2"] | None = None,
    mask: Float[Array, "R P P"] | None = None,
    *,
    spatial_scale: float,
    pooled_size: int,
    output_dim: int,
    group_size: int = 1,
    part_size: int | None = None,
    samples_per_part: int = 4,
    trans_std: float = 0.0,
    implementation: Implementation = None,
) -> Float[Array, "R P P D"]:
    r"""Averages `x` over the bins of regions, each bin displaced by `offset`: Deformable RoI pooling.

    A region is divided into `pooled_size * pooled_size` bins. With the corner :math:`r_b` of bin
    :math:`b`, the region's size :math:`s` and the sub-bins' size :math:`t`,

    .. math:: y(b) = m_b \frac{1}{n_b} \sum_{i,j} x(r_b + \sigma s \Delta_b + (i, j) t),

    over the :math:`n_b` of `samples_per_part**2` samples that lie inside the image. `x` is read by
    bilinear interpolation. Axes: `N H W` images, `R` regions, `D` = `output_dim`, `P` = `pooled_size`.

    This is the arithmetic of the original Deformable ConvNets (R-FCN, DCNv2), and what checkpoints
    of `DeformRoIPooling`, `DeformRoIPoolingPack`, `ModulatedDeformRoIPoolingPack` and of mmdetection
    before 2.0 were trained with: corners are rounded to whole pixels before they are scaled and
    include the last pixel, half a pixel is subtracted, samples lie at the corners of sub-bins, those
    more than half a pixel outside are left out, and sizes are at least 0.1. Checkpoints of mmcv's
    `DeformRoIPoolPack` need `jax_dcn.deform_roi_align`.

    Args:
      x: Images, `[N, H, W, group_size**2 * D]`. Feature `d` of the cell in row `i` and column `j` of
        a region is channel `(d * group_size + i) * group_size + j`.
      rois: `[R, 5]`, `(batch index, x1, y1, x2, y2)` in pixels of the image that `x` was computed
        from. The gradient of `rois` is zero.
      offset: `[R, part_size, part_size, classes, 2]`, last axis `(dy, dx)`, in sizes of the region
        over `trans_std`. `classes` divides `D`; feature `d` uses class `d // (D // classes)`.
        `None` gives plain position-sensitive pooling.
      mask: Modulation `[R, P, P]`. `None` gives version 1 of the paper.
      spatial_scale: Pixels of `x` in a pixel of the image of `rois`, e.g. 1/16.
      pooled_size: Number of bins along each axis.
      output_dim: Number of features `D`.
      group_size: Number of cells of a region, along each axis, that have channels of their own;
        1 is ordinary pooling. In R-FCN, equal to `pooled_size`.
      part_size: Number of displacements along each axis; by default `pooled_size`. Refused without
        an offset.
      samples_per_part: Samples of a bin along each axis.
      trans_std: How far an offset of one moves a bin, in sizes of the region; the papers use 0.1.
        Required with an offset, and refused without.
      implementation: `"native"`, `"xla"`, or a sequence of these to try in order. `None` takes the
        best that can run.

    Returns:
      `[R, P, P, D]`, in the dtype of `x`. A region whose batch index is not in `[0, N)`, and a bin
      without samples inside the image, is zero. Positions and sums are computed in float32, or in
      float64 where `x` is.

    Raises:
      ValueError: if shapes, dtypes or options disagree; the message names the argument. Also if a
        batch index is out of range and the values of `rois` are known, that is, outside `jit`.
      NotImplementedError: if `implementation` cannot run here; the message says why.

    Note:
      The native kernels are bitwise reproducible: the same inputs give the same bits on the same
      device, gradients included; only the sign of a NaN may differ. At samples on whole pixels, and
      beyond the outermost pixels, the derivative by the position is zero, as in the original. A NaN
      position gives NaN in its bin and in the gradients of the bin, and nowhere else.

    Examples:
      >>> import jax.numpy as jnp, jax_dcn
      >>> x = jnp.ones((2, 25, 38, 64))
      >>> rois = jnp.array([[0, 32, 16, 320, 240], [1, 0, 0, 96, 128]], jnp.float32)
      >>> offset = jnp.zeros((2, 7, 7, 1, 2))
      >>> options = dict(spatial_scale=1 / 16, pooled_size=7, output_dim=64, trans_std=0.1)
      >>> jax_dcn.deform_roi_pool(x, rois, offset, **options).shape
      (2, 7, 7, 64)

    References:
      Dai et al., "Deformable Convolutional Networks", ICCV 2017. Zhu et al., "Deformable ConvNets
      v2: More Deformable, Better Results", CVPR 2019.
    """
    x = array("x", x, _X)
    pooled = integer("pooled_size", pooled_size, 1, MOST_PER_AXIS)
    parts = pooled if part_size is None else integer("part_size", part_size, 1, MOST_PER_AXIS)
    geometry = RoIGeometry(
        spatial_scale=positive_number("spatial_scale", spatial_scale),
        pooled_size=(pooled, pooled),
        samples=integer("samples_per_part", samples_per_part, 1, MOST_PER_AXIS),
        offset_scale=finite("trans_std", trans_std),
        group_size=integer("group_size", group_size, 1, MOST_PER_AXIS),
    )
    _check_effect("trans_std", geometry, offset)
    if offset is None and geometry.offset_scale != 0:
        raise ValueError("trans_std has no effect without offset: leave it out.")
    if offset is None and part_size is not None:
        raise ValueError("part_size has no effect without offset: leave it out.")
    channels = integer("output_dim", output_dim, 1) * geometry.group_size**2
    if x.ndim == 4 and x.shape[-1] != channels:
        raise ValueError(
            f"x must have output_dim * group_size**2 = {channels} channels, got {x.shape[-1]}."
        )
    rois = regions(rois, x)
    return _pool(x, rois, offset, mask, geometry, (parts, parts), implementation)


@public("jax_dcn")
@renamed(ARGUMENTS, ABSENT)
def deform_roi_align(
    x: Float[Array, "N H W C"],
    rois: Real[Array, "R 5"],
    offset: Float[Array, "R Ph Pw 1 2"] | None = None,
    mask: Float[Array, "R Ph Pw"] | None = None,
    *,
    spatial_scale: float,
    pooled_size: int | Sequence[int],
    sampling_ratio: int = 0,
    gamma: float = 0.1,
    aligned: bool = True,
    implementation: Implementation = None,
) -> Float[Array, "R Ph Pw C"]:
    """Like `deform_roi_pool`, with the samples of RoIAlign; mmcv's `deform_roi_pool`.

    Without `offset` and `mask`, this is the RoIAlign of torchvision, Detectron2 and mmcv. Also for
    checkpoints of mmcv's `DeformRoIPoolPack` and `ModulatedDeformRoIPoolPack` (mmdetection from
    2.0 on). Corners are not rounded, regions end at `x2, y2`, samples lie in the middle of sub-bins,
    those more than a pixel outside the image are zero but count, and regions may have any size.

    Args:
      x: Images, `[N, H, W, C]`.
      rois: `[R, 5]`, `(batch index, x1, y1, x2, y2)`; its gradient is zero.
      offset: `[R, Ph, Pw, 1, 2]`, last axis `(dy, dx)`, in sizes of the region over `gamma`.
      mask: Modulation `[R, Ph, Pw]`.
      spatial_scale: Pixels of `x` in a pixel of the image of `rois`.
      pooled_size: Number of bins, one number or `(height, width)`.
      sampling_ratio: Samples of a bin along each axis; 0, which is torchvision's -1, takes as many as
        the bin has pixels of `x`, rounded up.
      gamma: How far an offset of one moves a bin, in sizes of the region; in the papers 0.1.
      aligned: Whether the first pixel of `x` has its middle at 0.5, so that regions have any size.
        `False`, the older RoIAlign and the default of torchvision's `roi_align`, has the middle at 0,
        and enlarges regions to a pixel of `x`.
      implementation: See `deform_roi_pool`. With `sampling_ratio=0`, `"xla"` multiplies with the
        whole image, so that a pixel that is not finite spreads to all the regions of its image.

    Returns:
      `[R, Ph, Pw, C]`, in the dtype of `x`.

    Raises:
      ValueError: if shapes, dtypes or options disagree; the message names the argument.
      NotImplementedError: if `implementation` cannot run here; the message says why.

    Note:
      The gradient of `offset` is the derivative of the result: zero for samples before the first and
      beyond the last pixel, where mmcv's gradient extrapolates.

    Examples:
      >>> import jax.numpy as jnp, jax_dcn
      >>> x, rois = jnp.ones((1, 25, 38, 64)), jnp.array([[0, 32.5, 16, 320, 240]])
      >>> jax_dcn.deform_roi_align(x, rois, spatial_scale=1 / 16, pooled_size=(7, 5)).shape
      (1, 7, 5, 64)

    References:
      He et al., "Mask R-CNN", ICCV 2017. Zhu et al., "Deformable ConvNets v2: More Deformable, Better
      Results", CVPR 2019.
    """
    height, width = positive_pair("pooled_size", pooled_size)
    pooled = (
        integer("pooled_size", height, 1, MOST_PER_AXIS),
        integer("pooled_size", width, 1, MOST_PER_AXIS),
    )
    if is_integer(sampling_ratio) and sampling_ratio == -1:
        raise ValueError(
            "sampling_ratio must be an integer >= 0, got -1: torchvision's -1 is 0 here."
        )
    geometry = RoIGeometry(
        spatial_scale=positive_number("spatial_scale", spatial_scale),
        pooled_size=pooled,
        samples=integer("sampling_ratio", sampling_ratio, 0, MOST_PER_AXIS),
        offset_scale=finite("gamma", gamma),
        aligned=True,
    )
    _check_effect("gamma", geometry, offset)
    x = array("x", x, _X)
    rois = regions(rois, x)
    if not flag("aligned", aligned):
        rois = _older_regions(rois, geometry.spatial_scale)
    return _pool(x, rois, offset, mask, geometry, pooled, implementation)


def _older_regions(rois: jax.Array, scale: float) -> jax.Array:
    """The aligned regions that have the samples of regions whose first pixel has its middle at 0."""
    low, high = rois[:, 1:3], rois[:, 3:5]
    corners = jnp.concatenate([low, jnp.maximum(high, low + 1 / scale)], axis=1)
    return jnp.concatenate([rois[:, :1], corners + 0.5 / scale], axis=1)


def _pool(
    x: jax.Array,
    rois: jax.Array,
    offset: jax.Array | None,
    mask: jax.Array | None,
    geometry: RoIGeometry,
    parts: tuple[int, int],
    implementation: Implementation,
) -> jax.Array:
    offset = optional_array("offset", offset, "[R, parts, parts, classes, 2]")
    mask = optional_array("mask", mask, "[R, P, P]")
    features = x.shape[-1] // geometry.group_size**2
    _check_offset(rois, offset, parts, features)
    _check_mask(rois, mask, geometry.pooled_size)

    wide = sum_dtype(x)
    if offset is None:
        offset = jnp.zeros((rois.shape[0], 0, 0, 1, 2), wide)
    if mask is None:
        mask = jnp.zeros((rois.shape[0], 0, 0), wide)
    with jax.named_scope("deform_roi_pool"):
        (y,) = deform_roi_pool_p.bind(
            _cells_first(x, geometry.group_size),
            rois,
            offset.astype(wide),
            mask.astype(wide),
            geometry=geometry,
            implementation=implementation_names(implementation),
        )
    return checkpoint_name(y, "deform_roi_pool")


def _cells_first(x: jax.Array, cells: int) -> jax.Array:
    """Orders channels by cell, then by feature: a bin then reads contiguous channels of a pixel."""
    if cells == 1:
        return x
    by_feature = parted(x, 3, x.shape[3] // cells**2)
    return merged(by_feature.swapaxes(-1, -2), 3)


def _check_effect(name: str, geometry: RoIGeometry, offset: jax.Array | None) -> None:
    if offset is not None and geometry.offset_scale == 0:
        raise ValueError(f"{name}=0 gives offset no effect: pass {name}, in the papers 0.1.")


def _check_x(x: jax.Array) -> None:
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"x must be {_X} with pixels and channels, got shape {x.shape}.")


def regions(rois: jax.Array, x: jax.Array) -> jax.Array:
    """The regions `rois` of the images `x`, as constants in the dtype of sums."""
    _check_x(x)
    rois = any_array("rois", rois, _ROIS)
    _check_rois(rois, x.shape[0])
    return jax.lax.stop_gradient(rois).astype(sum_dtype(x))


def _check_rois(rois: jax.Array, images: int) -> None:
    if rois.ndim != 2 or rois.shape[1] != 5:
        raise ValueError(f"rois must be {_ROIS}, got shape {rois.shape}.")
    if not any(jnp.issubdtype(rois.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise ValueError(f"rois must be integers or floating point, got {rois.dtype}.")
    if isinstance(rois, jax.core.Tracer) or not rois.is_fully_addressable:
        return  # then a region without an image pools to zero
    indices = np.asarray(jax.device_get(rois)[:, 0], np.float64)
    for row in np.flatnonzero(~((indices >= 0) & (indices < images)))[:1]:
        raise ValueError(
            f"rois has the batch index {indices[row]:g} in row {row}, but x has {images} images."
        )


def _check_offset(
    rois: jax.Array, offset: jax.Array | None, parts: tuple[int, int], features: int
) -> None:
    if offset is None:
        return
    expected = f"({rois.shape[0]}, {parts[0]}, {parts[1]}, classes, 2)"
    if not fits((*offset.shape[:3], *offset.shape[4:]), (rois.shape[0], *parts, 2)):
        raise ValueError(f"offset does not fit rois: expected {expected}, got {offset.shape}.")
    classes = offset.shape[3]
    if classes == 0 or features % classes:
        raise ValueError(
            f"offset has {classes} classes, which must divide the {features} features: "
            f"expected {expected}, got {offset.shape}."
        )


def _check_mask(rois: jax.Array, mask: jax.Array | None, pooled_size: tuple[int, int]) -> None:
    expected = (rois.shape[0], *pooled_size)
    if mask is not None and not fits(mask.shape, expected):
        raise ValueError(f"mask does not fit rois: expected {expected}, got {mask.shape}.")
