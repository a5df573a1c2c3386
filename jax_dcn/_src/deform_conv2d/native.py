# SPDX-License-Identifier: MIT
"""Calls of the XLA targets of deformable convolution, for the lowerings of every platform."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jax_dcn._src.deform_conv2d.geometry import ConvGeometry
from jax_dcn._src.deform_conv2d.reference import OPERANDS


def call(
    target: str,
    results: Any,
    operands: Sequence[jax.Array],
    geometry: ConvGeometry,
    wrt: Sequence[str] | None = None,
    input_output_aliases: dict[int, int] | None = None,
):
    """Calls `jax_dcn_deform_conv2d_{target}` for results of the given shapes and dtypes."""
    attributes: dict[str, Any] = dict(
        strides=np.array(geometry.strides, np.int64),
        padding=np.array(geometry.padding, np.int64).ravel(),
        kernel_dilation=np.array(geometry.kernel_dilation, np.int64),
        feature_group_count=np.int64(geometry.feature_group_count),
        legacy_boundary=geometry.boundary == "legacy",
    )
    if wrt is not None:
        attributes["wrt"] = np.array([OPERANDS.index(name) for name in wrt], np.int64)
    f = jax.ffi.ffi_call(
        f"jax_dcn_deform_conv2d_{target}", results, input_output_aliases=input_output_aliases
    )
    return f(*operands, **attributes)
