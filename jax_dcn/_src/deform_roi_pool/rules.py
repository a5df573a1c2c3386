# SPDX-License-Identifier: MIT
"""The primitives of deformable RoI pooling: the operator, its tangent and its fused backward pass.

    y = m (1 / n) Σ_i x(q_i)      over the n samples of a bin, q_i = r_i + Δ

Operands are called `x`, `rois`, `offset` (Δ) and `mask` (m), the result `y`. There are no
derivatives for `rois`, which say what is read. Arrays are as in `jax_dcn.reference.deform_roi_pool`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.deform_roi_pool import reference
from jax_dcn._src.deform_roi_pool.geometry import RoIGeometry
from jax_dcn._src.deform_roi_pool.reference import OPERANDS
from jax_dcn._src.operator import extension
from jax_dcn._src.operator.folding import fold, mapped_size, unfold
from jax_dcn._src.operator.operator import Functions, Operator, Signature, calls

# ẏ = m (1 / n) Σ_i ẋ(q_i)  +  ṁ (1 / n) Σ_i x(q_i)  +  m (1 / n) Σ_i ∇x(q_i)·Δ̇
#     (image)                  (mask)                   (offset)
#
# The number of samples n is constant wherever there is a derivative.
_SIGNATURE = Signature(OPERANDS, primals=4)


def _types(x, rois, offset, mask, *, geometry):
    """The avals of the operands and of `y`."""
    features = x.shape[-1] // geometry.group_size**2
    y = x.update(shape=(rois.shape[0], *geometry.pooled_size, features))
    return dict(x=x, rois=rois, offset=offset, mask=mask, y=y)


# --------------------------------------------------------------------------------------- batching


def _deform_roi_pool_batching(primitive, arrays, operands, axes, **params):
    """Folds the mapped axis into the regions and, where images differ along it, into the images."""
    size = mapped_size(operands, axes)
    mapped = {name for name, axis in zip(arrays.operands, axes, strict=True) if axis is not None}
    differ = "x" in mapped.union(arrays.results)
    fold_axes = {"x": 0 if differ else None}
    folded = [
        fold(operand, axis, size, fold_axes.get(name, 0))
        for operand, axis, name in zip(operands, axes, arrays.operands, strict=True)
    ]
    if differ:
        folded[1] = _shift_images(folded[1], size, folded[0].shape[0] // size)
    results = primitive.bind(*folded, **params)
    return [unfold(result, size, 0) for result in results], (0,) * len(results)


def _shift_images(rois, size, images):
    """Batch indices into `size` times as many images; those out of range stay so."""
    rois = unfold(rois, size, 0)
    index = jnp.trunc(rois[..., 0])
    first = images * jnp.arange(size, dtype=rois.dtype)[:, None]
    shifted = jnp.where((rois[..., 0] >= 0) & (rois[..., 0] < images), index + first, -1)
    return fold(rois.at[..., 0].set(shifted), 0, size, 0)


# --------------------------------------------------------------------------------------- sharding

# Regions are independent, and their images needed whole, since regions may lie anywhere. Features
# are independent but for the positions, which those of a class share.


def _deform_roi_pool_axes(arrays, x, rois, offset, *_, geometry):
    classes = offset.shape[3]
    names: dict[str, tuple[str | None, ...]] = {
        "x": (None, None, None, "features"),
        "rois": ("regions", None),
        "offset": ("regions", None, None, "features" if classes > 1 else None, None),
        "mask": ("regions", None, None),
        "y": ("regions", None, None, "features"),
    }
    # Cells come before features in the channels of x, which then are in no few equal parts.
    features = 1 if geometry.group_size > 1 else classes if classes > 1 else x.shape[3]
    parts = {"regions": rois.shape[0], "features": features}
    return extension.Axes(names, arrays.operands, arrays.results, parts)


# --------------------------------------------------------------------------------------- lowering


def _call(target, results, operands, geometry: RoIGeometry, wrt=None):
    attributes = dict(
        spatial_scale=np.float64(geometry.spatial_scale),
        pooled_size=np.array(geometry.pooled_size, np.int64),
        samples=np.int64(geometry.samples),
        offset_scale=np.float64(geometry.offset_scale),
        group_size=np.int64(geometry.group_size),
        aligned=geometry.aligned,
    )
    if wrt is not None:
        attributes["wrt"] = np.array([OPERANDS.index(name) for name in wrt], np.int64)
    return jax.ffi.ffi_call(f"jax_dcn_deform_roi_pool_{target}", results)(*operands, **attributes)


# ---------------------------------------------------------------------------------------- summary

_NATIVE = calls(_SIGNATURE, _types, _call)
_OPERATOR = Operator(
    "deform_roi_pool",
    _SIGNATURE,
    types=_types,
    reference=Functions(
        reference.deform_roi_pool,
        reference.deform_roi_pool_jvp,
        reference.deform_roi_pool_backward,
    ),
    native={"cpu": _NATIVE, "cuda": _NATIVE},
    batching_rule=_deform_roi_pool_batching,
    axes=_deform_roi_pool_axes,
)
deform_roi_pool_p = _OPERATOR.forward_p
