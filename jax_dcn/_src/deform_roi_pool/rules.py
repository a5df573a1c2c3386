# SPDX-License-Identifier: MIT
"""The primitives of deformable RoI pooling: the operator, its tangent and its fused backward pass.

    y = m (1 / n) Σ_i x(q_i)      over the n samples of a bin, q_i = r_i + Δ

Operands are called `x`, `rois`, `offset` (Δ) and `mask` (m), the result `y`. `rois` say where to read
and have no derivatives. Arrays are as in `jax_dcn.reference.deform_roi_pool`.
"""

import jax.numpy as jnp

from jax_dcn._src.deform_roi_pool import native, reference
from jax_dcn._src.deform_roi_pool.signature import SIGNATURE, types
from jax_dcn._src.operator import rules
from jax_dcn._src.operator.extension import define_primitive
from jax_dcn._src.operator.folding import (
    bind_folded,
    bounded,
    copied_beside_images,
    images_differ,
    mapped_first,
    mapped_size,
)
from jax_dcn._src.operator.native import Native
from jax_dcn._src.operator.sharding import Axes

# --------------------------------------------------------------------------------------- batching

_REGION_AXIS = {"rois": -2, "offset": -5, "mask": -3, "y": -4}
_IMAGE_AXIS = {"x": -4}


@bounded(copied_beside_images)
def _deform_roi_pool_batching(primitive, operands, axes, **params):
    """Folds the mapped axis into the regions and, where images differ along it, into the images."""
    if not images_differ(primitive, axes, **params):
        return bind_folded(primitive, operands, axes, _REGION_AXIS, **params)
    x, rois, *others = operands
    images = x.shape[1 if axes[0] == 0 else 0]
    rois = _shift_images(mapped_first(rois, axes[1], mapped_size(operands, axes)), images)
    operands, axes = (x, rois, *others), (axes[0], 0, *axes[2:])
    return bind_folded(primitive, operands, axes, _REGION_AXIS | _IMAGE_AXIS, **params)


def _shift_images(rois, images):
    """Batch indices of `rois [size, R, 5]` into `size` times as many images.

    An index out of range stays out of range.
    """
    index = jnp.trunc(rois[..., 0])
    first = images * jnp.arange(rois.shape[0], dtype=rois.dtype)[:, None]
    inside = (rois[..., 0] >= 0) & (rois[..., 0] < images)
    return rois.at[..., 0].set(jnp.where(inside, index + first, -1))


# --------------------------------------------------------------------------------------- sharding

# Regions are independent. Every device needs the images whole, since regions may lie anywhere.
# Features are independent, except that the features of a class share their positions.


def _deform_roi_pool_axes(arrays, x, rois, offset, *_, geometry):
    classes = offset.shape[3]
    names: dict[str, tuple[str | None, ...]] = {
        "x": (None, None, None, "features"),
        "rois": ("regions", None),
        "offset": ("regions", None, None, "features" if classes > 1 else None, None),
        "mask": ("regions", None, None),
        "y": ("regions", None, None, "features"),
    }
    # Channels of x are ordered by cell, then by feature. With several cells, no equal parts of the
    # channels hold whole features.
    features = 1 if geometry.group_size > 1 else classes if classes > 1 else x.shape[3]
    parts = {"regions": rois.shape[0], "features": features}
    return Axes(names, arrays.operands, arrays.results, parts)


# ------------------------------------------------------------------------------------- primitives

deform_roi_pool_p = define_primitive(
    "deform_roi_pool",
    arrays=SIGNATURE.forward,
    types=types,
    reference=reference.deform_roi_pool,
    native=(
        Native("cpu", "jax_dcn_deform_roi_pool_forward", native.deform_roi_pool, native.why_not),
        Native(
            "cuda",
            "jax_dcn_deform_roi_pool_forward",
            native.deform_roi_pool,
            native.why_not_on_cuda,
        ),
    ),
    batching_rule=_deform_roi_pool_batching,
    axes=_deform_roi_pool_axes,
)

deform_roi_pool_jvp_p = define_primitive(
    "deform_roi_pool_jvp",
    arrays=SIGNATURE.jvp,
    types=types,
    reference=reference.deform_roi_pool_jvp,
    native=(
        Native("cpu", "jax_dcn_deform_roi_pool_jvp", native.deform_roi_pool_jvp, native.why_not),
        Native(
            "cuda",
            "jax_dcn_deform_roi_pool_jvp",
            native.deform_roi_pool_jvp,
            native.why_not_on_cuda,
        ),
    ),
    batching_rule=_deform_roi_pool_batching,
    axes=_deform_roi_pool_axes,
)

deform_roi_pool_backward_p = define_primitive(
    "deform_roi_pool_backward",
    arrays=SIGNATURE.backward,
    types=types,
    reference=reference.deform_roi_pool_backward,
    native=(
        Native(
            "cpu",
            "jax_dcn_deform_roi_pool_backward",
            native.deform_roi_pool_backward,
            native.why_not,
        ),
        Native(
            "cuda",
            "jax_dcn_deform_roi_pool_backward",
            native.deform_roi_pool_backward,
            native.why_not_on_cuda,
        ),
    ),
    batching_rule=_deform_roi_pool_batching,
    axes=_deform_roi_pool_axes,
)

# ------------------------------------------------------------------------------------ derivatives

# ẏ = m (1 / n) Σ_i ẋ(q_i)  +  ṁ (1 / n) Σ_i x(q_i)  +  m (1 / n) Σ_i ∇x(q_i)·Δ̇
#     (image)                  (mask)                   (offset)
#
# The number of samples n is constant wherever there is a derivative.
rules.define_derivatives(deform_roi_pool_p, deform_roi_pool_jvp_p, deform_roi_pool_backward_p)
