# SPDX-License-Identifier: MIT
"""The arrays of deformable RoI pooling: their names and types."""

from typing import Any

from jax_dcn._src.deform_roi_pool.geometry import RoIGeometry
from jax_dcn._src.operator.signature import Signature

# The derivatives read the values of all operands. There is no derivative by rois.
SIGNATURE = Signature(("x", "rois", "offset", "mask"), primals=4)


def types(x: Any, rois: Any, offset: Any, mask: Any, *, geometry: RoIGeometry) -> dict[str, Any]:
    """The types of the operands and of `y`, by name."""
    features = x.shape[-1] // geometry.group_size**2
    y = x.update(shape=(rois.shape[0], *geometry.pooled_size, features))
    return dict(x=x, rois=rois, offset=offset, mask=mask, y=y)
