# SPDX-License-Identifier: MIT
"""Deformable aggregation by native kernels: one XLA call each for forward, tangent and backward.

The kernels of CUDA have the same call for the forward pass and the tangent.
"""

from typing import Any

import jax
import numpy as np

from jax_dcn._src.deform_aggregate.geometry import AggregateGeometry
from jax_dcn._src.deform_aggregate.signature import SIGNATURE, types
from jax_dcn._src.operator.native import xla_call
from jax_dcn._src.operator.sizes import is_free


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
        whole_positions=geometry.whole_positions,
    )
    if wrt is not None:
        found["wrt"] = np.array(SIGNATURE.indices(wrt), np.int64)
    return found


deform_aggregate = xla_call(
    "jax_dcn_deform_aggregate_forward", SIGNATURE.forward, types, attributes
)
deform_aggregate_jvp = xla_call("jax_dcn_deform_aggregate_jvp", SIGNATURE.jvp, types, attributes)
deform_aggregate_backward = xla_call(
    "jax_dcn_deform_aggregate_backward", SIGNATURE.backward, types, attributes
)
