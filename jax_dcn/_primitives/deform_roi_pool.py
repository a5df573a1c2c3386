# SPDX-License-Identifier: MIT
"""The primitives of deformable RoI pooling: the operator, its tangent and its fused backward pass.

    y = m (1 / n) Σ_i x(q_i)      over the n samples of a bin, q_i = r_i + Δ

Operands are called `x`, `rois`, `offset` (Δ) and `mask` (m), the result `y`; a parameter `wrt` names
the operands that derivatives are taken for: others cost nothing. There are none for `rois`, which
say what is read. Arrays are as in `jax_dcn.reference.deform_roi_pool`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn import reference
from jax_dcn._primitives import _define, _derivatives
from jax_dcn._primitives._folding import fold, mapped_size, unfold
from jax_dcn.reference.deform_roi_pool import OPERANDS
from jax_dcn.roi_geometry import RoIGeometry

_PRIMALS = len(OPERANDS)  # derivatives depend on all the operands
_KERNELS = ("cpu", "cuda")  # the platforms that have kernels, called alike


# ---------------------------------------------------------------------------- abstract evaluation


def _deform_roi_pool_abstract_eval(x, rois, offset, mask, *_, geometry, **params):
    features = x.shape[-1] // geometry.group_size**2
    return x.update(shape=(rois.shape[0], *geometry.pooled_size, features), weak_type=False)


def _deform_roi_pool_backward_abstract_eval(x, rois, offset, mask, grad_y, *, wrt, **params):
    avals = dict(zip(OPERANDS, (x, rois, offset, mask), strict=True))
    return tuple(avals[name].update(weak_type=False) for name in wrt)


# ------------------------------------------------------------------------------------ derivatives

# ẏ = m (1 / n) Σ_i ẋ(q_i)  +  ṁ (1 / n) Σ_i x(q_i)  +  m (1 / n) Σ_i ∇x(q_i)·Δ̇
#     (image)                  (mask)                   (offset)
#
# The number of samples n is constant wherever there is a derivative.


def _deform_roi_pool_jvp(primals, tangents, **params):
    y = deform_roi_pool_p.bind(*primals, **params)
    wrt, dots = _derivatives.nonzero(OPERANDS, tangents)
    return y, deform_roi_pool_jvp_p.bind(*primals, *dots, wrt=wrt, **params)


def _deform_roi_pool_jvp_jvp(primals, tangents, **params):
    return _derivatives.jvp_of_linear(
        deform_roi_pool_jvp_p, reference.deform_roi_pool_jvp, _PRIMALS, primals, tangents, **params
    )


def _deform_roi_pool_backward_jvp(primals, tangents, **params):
    return _derivatives.jvp_of_linear(
        deform_roi_pool_backward_p,
        reference.deform_roi_pool_backward,
        _PRIMALS,
        primals,
        tangents,
        **params,
    )


def _deform_roi_pool_jvp_transpose(grad_y, *operands, **params):
    return _derivatives.transpose_of_jvp(
        deform_roi_pool_backward_p, _PRIMALS, grad_y, *operands, **params
    )


def _deform_roi_pool_backward_transpose(cotangents, *operands, **params):
    return _derivatives.transpose_of_backward(
        deform_roi_pool_jvp_p, _PRIMALS, cotangents, *operands, **params
    )


# --------------------------------------------------------------------------------------- batching


def _deform_roi_pool_batching(operands, axes, **params):
    return _batched(deform_roi_pool_p, OPERANDS, ("y",), operands, axes, **params)


def _deform_roi_pool_jvp_batching(operands, axes, *, wrt, **params):
    names = (*OPERANDS, *wrt)
    return _batched(deform_roi_pool_jvp_p, names, ("y",), operands, axes, wrt=wrt, **params)


def _deform_roi_pool_backward_batching(operands, axes, *, wrt, **params):
    names = (*OPERANDS, "y")
    return _batched(deform_roi_pool_backward_p, names, wrt, operands, axes, wrt=wrt, **params)


def _batched(primitive, names, result_names, operands, axes, **params):
    """Folds the mapped axis into the regions and, where images differ along it, into the images."""
    size = mapped_size(operands, axes)
    images = operands[0].shape[0] if axes[0] is None else np.delete(operands[0].shape, axes[0])[0]
    mapped = {name for name, axis in zip(names, axes, strict=True) if axis is not None}
    differ = "x" in mapped or "x" in result_names
    fold_axes = {name: 0 for name in (*names, *result_names)} | {"x": 0 if differ else None}
    folded = [
        fold(operand, axis, size, fold_axes[name])
        for operand, axis, name in zip(operands, axes, names, strict=True)
    ]
    if differ:
        folded[1] = _shift_images(folded[1], size, int(images))
    results = primitive.bind(*folded, **params)
    if not primitive.multiple_results:
        return unfold(results, size, 0), 0
    return tuple(unfold(result, size, 0) for result in results), (0,) * len(results)


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


def _deform_roi_pool_axes(x, rois, offset, *_, geometry, **params):
    return _axes(OPERANDS, ("y",), x, rois, offset, geometry)


def _deform_roi_pool_jvp_axes(x, rois, offset, *_, wrt, geometry, **params):
    return _axes((*OPERANDS, *wrt), ("y",), x, rois, offset, geometry)


def _deform_roi_pool_backward_axes(x, rois, offset, *_, wrt, geometry, **params):
    return _axes((*OPERANDS, "y"), wrt, x, rois, offset, geometry)


def _axes(operands, results, x, rois, offset, geometry):
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
    return _define.Axes(names, operands, results, parts)


# --------------------------------------------------------------------------------------- lowering


def _deform_roi_pool_native(*operands, geometry):
    y = _deform_roi_pool_abstract_eval(*map(jax.typeof, operands), geometry=geometry)
    return _call("forward", y, operands, geometry)


def _deform_roi_pool_jvp_native(*operands, wrt, geometry):
    y_dot = _deform_roi_pool_abstract_eval(*map(jax.typeof, operands), geometry=geometry)
    return _call("jvp", y_dot, operands, geometry, wrt=_indices(wrt))


def _deform_roi_pool_backward_native(*operands, wrt, geometry):
    grads = _deform_roi_pool_backward_abstract_eval(*map(jax.typeof, operands), wrt=wrt)
    return tuple(_call("backward", grads, operands, geometry, wrt=_indices(wrt)))


def _call(target, results, operands, geometry: RoIGeometry, **attributes):
    return jax.ffi.ffi_call(f"jax_dcn_deform_roi_pool_{target}", results)(
        *operands,
        spatial_scale=np.float64(geometry.spatial_scale),
        pooled_size=np.array(geometry.pooled_size, np.int64),
        samples=np.int64(geometry.samples),
        offset_scale=np.float64(geometry.offset_scale),
        group_size=np.int64(geometry.group_size),
        aligned=geometry.aligned,
        **attributes,
    )


def _indices(wrt: Sequence[str]) -> np.ndarray:
    return np.array([OPERANDS.index(name) for name in wrt], np.int64)


# ---------------------------------------------------------------------------------------- summary

deform_roi_pool_p = _define.define_primitive(
    "deform_roi_pool",
    abstract_eval=_deform_roi_pool_abstract_eval,
    reference=reference.deform_roi_pool,
    native=dict.fromkeys(_KERNELS, _deform_roi_pool_native),
    jvp=_deform_roi_pool_jvp,
    transpose=None,
    batching_rule=_deform_roi_pool_batching,
    axes=_deform_roi_pool_axes,
)

deform_roi_pool_jvp_p = _define.define_primitive(
    "deform_roi_pool_jvp",
    abstract_eval=_deform_roi_pool_abstract_eval,
    reference=reference.deform_roi_pool_jvp,
    native=dict.fromkeys(_KERNELS, _deform_roi_pool_jvp_native),
    jvp=_deform_roi_pool_jvp_jvp,
    transpose=_deform_roi_pool_jvp_transpose,
    batching_rule=_deform_roi_pool_jvp_batching,
    axes=_deform_roi_pool_jvp_axes,
)

deform_roi_pool_backward_p = _define.define_primitive(
    "deform_roi_pool_backward",
    abstract_eval=_deform_roi_pool_backward_abstract_eval,
    reference=reference.deform_roi_pool_backward,
    native=dict.fromkeys(_KERNELS, _deform_roi_pool_backward_native),
    jvp=_deform_roi_pool_backward_jvp,
    transpose=_deform_roi_pool_backward_transpose,
    batching_rule=_deform_roi_pool_backward_batching,
    axes=_deform_roi_pool_backward_axes,
    multiple_results=True,
)
