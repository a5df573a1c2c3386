# SPDX-License-Identifier: MIT
"""The geometry of pooling regions of interest: bins, samples and scales."""

import dataclasses

from jax_dcn._src.public import public


@public("jax_dcn.reference")
@dataclasses.dataclass(frozen=True)
class RoIGeometry:
    """The places of the samples: the options of a pooling, no sizes of arrays.

    Attributes:
      spatial_scale: Pixels of the images `x` in a pixel of the image that regions are given in.
      pooled_size: Number of bins that a region is divided into, `(height, width)`.
      samples: Samples of a bin along each axis; 0 takes as many as the bin has pixels of `x`.
      offset_scale: How far an offset of one moves a bin, in sizes of the region.
      group_size: Number of cells, along each axis of a region, that have channels of their own.
      aligned: Which rule places the samples, see `jax_dcn.deform_roi_pool` (`False`) and
        `jax_dcn.deform_roi_align` (`True`).
    """

    spatial_scale: float
    pooled_size: tuple[int, int]
    samples: int
    offset_scale: float
    group_size: int = 1
    aligned: bool = False
