# SPDX-License-Identifier: MIT
"""Deformable convolution by native kernels: one XLA call each for forward, tangent and backward.

The fused kernels of CUDA have the same call for the forward pass.

The kernels sum in the dtype of `offset`. By default, processors that multiply bfloat16 round the
sampled columns of bfloat16 images to bfloat16; a higher `precision` keeps the columns in float32.
"""

from typing import Any

import jax
import numpy as np

from jax_dcn._src.deform_conv2d.geometry import ConvGeometry
from jax_dcn._src.deform_conv2d.signature import SIGNATURE, types
from jax_dcn._src.operator.native import xla_call


def attributes(
    geometry: ConvGeometry,
    wrt: tuple[str, ...] | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> dict[str, Any]:
    """The attributes of a call, which common/deform_conv2d/call.h reads."""
    found: dict[str, Any] = dict(
        strides=np.array(geometry.strides, np.int64),
        padding=np.array(geometry.padding, np.int64).ravel(),
        kernel_dilation=np.array(geometry.kernel_dilation, np.int64),
        feature_group_count=np.int64(geometry.feature_group_count),
        legacy_boundary=geometry.boundary == "legacy",
        float32_columns=precisions(precision) != {jax.lax.Precision.DEFAULT},
    )
    if wrt is not None:
        found["wrt"] = np.array(SIGNATURE.indices(wrt), np.int64)
    return found


def precisions(precision: jax.lax.PrecisionLike) -> set[jax.lax.Precision]:
    """The precision of each operand of a product; a named algorithm counts as the highest precision."""
    operands = precision if isinstance(precision, tuple) else (precision,)
    try:
        return set(map(jax.lax.Precision, operands))
    except ValueError:
        return {jax.lax.Precision.HIGHEST}


deform_conv2d = xla_call("jax_dcn_deform_conv2d_forward", SIGNATURE.forward, types, attributes)
deform_conv2d_jvp = xla_call("jax_dcn_deform_conv2d_jvp", SIGNATURE.jvp, types, attributes)
deform_conv2d_backward = xla_call(
    "jax_dcn_deform_conv2d_backward", SIGNATURE.backward, types, attributes
)
