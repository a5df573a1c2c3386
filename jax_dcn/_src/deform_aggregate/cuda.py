# SPDX-License-Identifier: MIT
"""Deformable aggregation by the CUDA kernels.

`native` has the forward call and the tangent. The gradient of x is gathered: the kernels list the
samples that read each pixel, for some groups of channels of some images at a time.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jax_dcn._src.deform_aggregate import native
from jax_dcn._src.deform_aggregate.geometry import AggregateGeometry
from jax_dcn._src.deform_aggregate.signature import types
from jax_dcn._src.operator.chunks import chunk_bytes
from jax_dcn._src.operator.sizes import is_free
from jax_dcn._src.sampling.bins import CORNERS, bin_words

_MOST_MAPS = 16  # as in cuda/deform_aggregate/sizes.h
_MOST = 2**31 - 1


def deform_aggregate_backward(
    *operands: jax.Array, wrt: tuple[str, ...], geometry: AggregateGeometry
) -> Sequence[jax.Array]:
    """The cotangents of the operands in `wrt`."""
    by_name = types(*map(jax.typeof, operands[:3]), geometry=geometry)
    results = [by_name[name] for name in wrt]
    segments, scratch = _chunk(operands[1], geometry) if "x" in wrt else (0, [])
    call = jax.ffi.ffi_call("jax_dcn_deform_aggregate_backward", [*results, *scratch])
    attributes = native.attributes(geometry, wrt) | dict(segments=np.int64(segments))
    return call(*operands, **attributes)[: len(wrt)]


def _chunk(
    positions: jax.Array, geometry: AggregateGeometry
) -> tuple[int, list[jax.ShapeDtypeStruct]]:
    """The number of groups, over all images, whose lists are made at once, and the lists' memory."""
    batch, queries, groups, samples = positions.shape[:-1]

    def words(segments: int) -> int:
        pixels = segments * geometry.pixels
        return bin_words(segments * queries * samples, pixels, positions.dtype)

    most = max(1, chunk_bytes() // (4 * words(1)))
    chunks = max(1, -(-batch * groups // most))
    segments = max(1, -(-batch * groups // chunks))
    return segments, [jax.ShapeDtypeStruct((words(segments),), np.int32)]


def why_not(
    x: jax.Array, positions: jax.Array, *_: jax.Array, geometry: AggregateGeometry, **__: Any
) -> str | None:
    """Why the kernels cannot run; `None` where they can. The twin of `WhyNotOnCuda` in C++."""
    reason = native.why_not(geometry=geometry)
    if reason is not None:
        return reason
    if len(geometry.shapes) > _MOST_MAPS:
        return f"on cuda there must be at most {_MOST_MAPS} maps"
    batch, queries, groups, samples = positions.shape[:-1]
    if is_free(queries):
        return "on cuda the number of queries must be known"
    counts = batch * queries * groups, CORNERS * queries * samples, 8 * x.shape[-1]
    if max(counts) > _MOST:
        return (
            "on cuda the queries of all groups, the corners of the samples of a group and an image, "
            "and the bytes of a pixel must be counted in 32 bits"
        )
    return None
