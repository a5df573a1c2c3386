# SPDX-License-Identifier: MIT
"""Deformable aggregation by the C++ kernels: one XLA call each for forward, tangent and backward.

The functions have the signatures of the functions in `jax_dcn.reference`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jax_dcn._src.deform_aggregate.geometry import AggregateGeometry
from jax_dcn._src.deform_aggregate.signature import SIGNATURE, types
from jax_dcn._src.operator.sizes import is_free


def deform_aggregate(*operands: jax.Array, geometry: AggregateGeometry) -> jax.Array:
    """The operator."""
    y = types(*map(jax.typeof, operands), geometry=geometry)["y"]
    call = jax.ffi.ffi_call("jax_dcn_deform_aggregate_forward", y)
    return call(*operands, **attributes(geometry))


def deform_aggregate_jvp(
    *operands: jax.Array, wrt: tuple[str, ...], geometry: AggregateGeometry
) -> jax.Array:
    """The tangent of the output along the tangents of the operands in `wrt`."""
    y = types(*map(jax.typeof, operands[:3]), geometry=geometry)["y"]
    call = jax.ffi.ffi_call("jax_dcn_deform_aggregate_jvp", y)
    return call(*operands, **attributes(geometry, wrt))


def deform_aggregate_backward(
    *operands: jax.Array, wrt: tuple[str, ...], geometry: AggregateGeometry
) -> Sequence[jax.Array]:
    """The cotangents of the operands in `wrt`."""
    by_name = types(*map(jax.typeof, operands[:3]), geometry=geometry)
    call = jax.ffi.ffi_call("jax_dcn_deform_aggregate_backward", [by_name[name] for name in wrt])
    return call(*operands, **attributes(geometry, wrt))


def why_not(*_: jax.Array, geometry: AggregateGeometry, **__: Any) -> str | None:
    """Why the kernels cannot run; `None` where they can."""
    if any(is_free(*shape) for shape in geometry.shapes):
        return "the native kernels need maps of known height and width"
    return None


def attributes(geometry: AggregateGeometry, wrt: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The attributes of a call, which common/deform_aggregate/call.h reads."""
    found: dict[str, Any] = dict(
        shapes=np.array(geometry.shapes, np.int64).ravel(),
        points=np.array(geometry.points, np.int64),
        legacy_boundary=geometry.boundary == "legacy",
        unit_square=geometry.unit_square,
    )
    if wrt is not None:
        found["wrt"] = np.array(SIGNATURE.indices(wrt), np.int64)
    return found
