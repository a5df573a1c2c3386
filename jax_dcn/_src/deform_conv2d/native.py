# SPDX-License-Identifier: MIT
"""Deformable convolution by the C++ kernels: one XLA call each for forward, tangent and backward.

The functions have the signatures of the functions in `jax_dcn.reference`. The kernels sum in the
dtype of `offset`. By default, processors that multiply bfloat16 round the sampled columns of
bfloat16 images to bfloat16; a higher `precision` keeps the columns in float32.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jax_dcn._src.deform_conv2d.geometry import ConvGeometry
from jax_dcn._src.deform_conv2d.signature import SIGNATURE, types


def deform_conv2d(
    *operands: jax.Array, geometry: ConvGeometry, precision: jax.lax.PrecisionLike
) -> jax.Array:
    """The operator."""
    y = types(*map(jax.typeof, operands[:4]), geometry=geometry)["y"]
    call = jax.ffi.ffi_call("jax_dcn_deform_conv2d_forward", y)
    return call(*operands, **attributes(geometry, precision=precision))


def deform_conv2d_jvp(
    *operands: jax.Array,
    wrt: tuple[str, ...],
    geometry: ConvGeometry,
    precision: jax.lax.PrecisionLike,
) -> jax.Array:
    """The tangent of the output along the tangents of the operands in `wrt`."""
    y = types(*map(jax.typeof, operands[:4]), geometry=geometry)["y"]
    call = jax.ffi.ffi_call("jax_dcn_deform_conv2d_jvp", y)
    return call(*operands, **attributes(geometry, wrt, precision))


def deform_conv2d_backward(
    *operands: jax.Array,
    wrt: tuple[str, ...],
    geometry: ConvGeometry,
    precision: jax.lax.PrecisionLike,
) -> Sequence[jax.Array]:
    """The cotangents of the operands in `wrt`."""
    by_name = types(*map(jax.typeof, operands[:4]), geometry=geometry)
    call = jax.ffi.ffi_call("jax_dcn_deform_conv2d_backward", [by_name[name] for name in wrt])
    return call(*operands, **attributes(geometry, wrt, precision))


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
        float32_columns=not is_default(precision),
    )
    if wrt is not None:
        found["wrt"] = np.array(SIGNATURE.indices(wrt), np.int64)
    return found


def is_default(precision: jax.lax.PrecisionLike) -> bool:
    """Whether XLA may choose the precision of a product."""
    if precision is None:
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    operands = precision if isinstance(precision, tuple) else (precision,)
    try:
        return all(jax.lax.Precision(p) is jax.lax.Precision.DEFAULT for p in operands)
    except ValueError:  # an algorithm by name
        return False
