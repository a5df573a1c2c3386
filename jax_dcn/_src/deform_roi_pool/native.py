# SPDX-License-Identifier: MIT
"""Deformable RoI pooling by the kernels: one XLA call each for forward, tangent and backward.

The calls are the same for the C++ kernels and the CUDA kernels.
"""

import math
from typing import Any

import jax
import numpy as np

from jax_dcn._src.deform_roi_pool.geometry import RoIGeometry
from jax_dcn._src.deform_roi_pool.signature import SIGNATURE, types
from jax_dcn._src.operator.native import xla_call
from jax_dcn._src.operator.sizes import is_free

_MOST_PIXELS = 2**24  # along an axis: float32 counts no further
_MOST_BINS = 2**31 - 1  # of a region, times its displacements: the CUDA kernels count in 32 bits

# Bytes of shared memory of a block of cuda/deform_roi_pool/backward.cu, at the most threads.
_MOST_SHARED = 99 * 1024  # kMostSharedBytes of cuda/runtime/launch.cuh
_SUMS_BYTES = 32 * 128 * 8 + (128 + 2 * 128 // 32) * 4 + 2 * 16  # sums in float64, and counts
_PIXEL_BYTES = 24  # for each row and each column that a bin may read


def why_not(x: jax.Array, *_: Any, **__: Any) -> str | None:
    """Why the kernels cannot run; `None` where they can."""
    if any(not is_free(size) and size > _MOST_PIXELS for size in x.shape[1:3]):
        return "the native kernels need images of at most 2**24 pixels along an axis"
    return None


def why_not_on_cuda(
    x: jax.Array, rois: jax.Array, offset: jax.Array, *_: Any, geometry: RoIGeometry, **__: Any
) -> str | None:
    """Why the CUDA kernels cannot run; `None` where they can. The twin of `WhyNotOnCuda` in C++."""
    reason = why_not(x)
    if reason is not None:
        return reason
    bins = math.prod(size + 1 for size in geometry.pooled_size)
    if bins * (math.prod(p for p in offset.shape[1:3] if not is_free(p)) or 1) > _MOST_BINS:
        return 'a region has too many bins and displacements: take fewer, or implementation="xla"'
    most = [2 * geometry.samples] * 2 if geometry.samples else x.shape[1:3]
    if _SUMS_BYTES + _PIXEL_BYTES * sum(most) > _MOST_SHARED:
        return (
            "the pixels of a bin do not fit into shared memory: take fewer samples, or "
            'implementation="xla"'
        )
    return None


def attributes(geometry: RoIGeometry, wrt: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The attributes of a call, which common/deform_roi_pool/call.h reads."""
    found: dict[str, Any] = dict(
        spatial_scale=np.float64(geometry.spatial_scale),
        pooled_size=np.array(geometry.pooled_size, np.int64),
        samples=np.int64(geometry.samples),
        offset_scale=np.float64(geometry.offset_scale),
        group_size=np.int64(geometry.group_size),
        aligned=geometry.aligned,
    )
    if wrt is not None:
        found["wrt"] = np.array(SIGNATURE.indices(wrt), np.int64)
    return found


deform_roi_pool = xla_call("jax_dcn_deform_roi_pool_forward", SIGNATURE.forward, types, attributes)
deform_roi_pool_jvp = xla_call("jax_dcn_deform_roi_pool_jvp", SIGNATURE.jvp, types, attributes)
deform_roi_pool_backward = xla_call(
    "jax_dcn_deform_roi_pool_backward", SIGNATURE.backward, types, attributes
)
