# SPDX-License-Identifier: MIT
"""Deformable RoI pooling by the kernels: one XLA call each for forward, tangent and backward.

The functions have the signatures of the functions in `jax_dcn.reference`. The calls are the same for
the C++ kernels and the CUDA kernels.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jax_dcn._src.deform_roi_pool.geometry import RoIGeometry
from jax_dcn._src.deform_roi_pool.signature import SIGNATURE, types

# The shared memory of the CUDA kernels, in bytes, as in cuda/deform_roi_pool/: all that a block may
# have; what a block needs for sums in float64; and for each pixel that a bin may read.
_MOST_SHARED = 96 * 1024
_SUMS_BYTES = 32 * 128 * 8 + (128 + 2 * 128 // 32) * 4 + 2 * 16
_PIXEL_BYTES = 24


def why_not_on_cuda(x: jax.Array, *_: Any, geometry: RoIGeometry, **__: Any) -> str | None:
    """Why the CUDA kernels cannot run; `None` where they can. The twin of `WhyNotOnCuda` in C++."""
    most = [2 * geometry.samples] * 2 if geometry.samples else x.shape[1:3]
    if _SUMS_BYTES + _PIXEL_BYTES * sum(most) <= _MOST_SHARED:
        return None
    return (
        "the pixels of a bin do not fit into shared memory: take fewer samples, or "
        'implementation="xla"'
    )


def deform_roi_pool(*operands: jax.Array, geometry: RoIGeometry) -> jax.Array:
    """The operator."""
    y = types(*map(jax.typeof, operands), geometry=geometry)["y"]
    call = jax.ffi.ffi_call("jax_dcn_deform_roi_pool_forward", y)
    return call(*operands, **attributes(geometry))


def deform_roi_pool_jvp(
    *operands: jax.Array, wrt: tuple[str, ...], geometry: RoIGeometry
) -> jax.Array:
    """The tangent of the output along the tangents of the operands in `wrt`."""
    y = types(*map(jax.typeof, operands[:4]), geometry=geometry)["y"]
    call = jax.ffi.ffi_call("jax_dcn_deform_roi_pool_jvp", y)
    return call(*operands, **attributes(geometry, wrt))


def deform_roi_pool_backward(
    *operands: jax.Array, wrt: tuple[str, ...], geometry: RoIGeometry
) -> Sequence[jax.Array]:
    """The cotangents of the operands in `wrt`."""
    by_name = types(*map(jax.typeof, operands[:4]), geometry=geometry)
    call = jax.ffi.ffi_call("jax_dcn_deform_roi_pool_backward", [by_name[name] for name in wrt])
    return call(*operands, **attributes(geometry, wrt))


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
