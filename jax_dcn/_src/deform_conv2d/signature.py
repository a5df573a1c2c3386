# SPDX-License-Identifier: MIT
"""The arrays of deformable convolution: their names and types."""

from typing import Any

from jax_dcn._src.deform_conv2d.geometry import ConvGeometry
from jax_dcn._src.operator.signature import Signature

# The derivatives depend on all operands but the last, the bias.
SIGNATURE = Signature(("x", "kernel", "offset", "mask", "bias"), primals=4)

# Number of axes after the batch axes; arrays that are not listed have no batch axes.
ITEM_RANKS = {"x": 3, "offset": 5, "mask": 4, "y": 3}


def types(x: Any, kernel: Any, offset: Any, mask: Any, *, geometry: ConvGeometry) -> dict[str, Any]:
    """The types of the operands and of `y`, by name, from the types of the primals."""
    features = kernel.shape[-1]
    # Not computed from x: a free size can be written in several ways.
    size = offset.shape[-5:-3]
    bias, y = kernel.update(shape=(features,)), x.update(shape=(*x.shape[:-3], *size, features))
    return dict(x=x, kernel=kernel, offset=offset, mask=mask, bias=bias, y=y)
