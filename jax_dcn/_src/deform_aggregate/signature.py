# SPDX-License-Identifier: MIT
"""The arrays of deformable aggregation: their names and types."""

from typing import Any

from jax_dcn._src.deform_aggregate.geometry import AggregateGeometry
from jax_dcn._src.operator.signature import Signature

# The derivatives depend on all operands.
SIGNATURE = Signature(("x", "positions", "weights"), primals=3)

# Number of axes after the batch axes.
ITEM_RANKS = {"x": 2, "positions": 4, "weights": 3, "y": 2}


def types(x: Any, positions: Any, weights: Any, *, geometry: AggregateGeometry) -> dict[str, Any]:
    """The types of the operands and of `y`, by name."""
    y = x.update(shape=(*x.shape[:-2], positions.shape[-4], x.shape[-1]))
    return dict(x=x, positions=positions, weights=weights, y=y)
