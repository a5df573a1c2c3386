# SPDX-License-Identifier: MIT
"""The primitives of deformable convolution: the operator, its tangent and its fused backward pass.

    y = b + Σ_k  w_k m_k v_k      with  v_k = x(q_k),  q_k = s p + r_k + Δ_k

Every operand has a name (`x`, `kernel`, `offset`, `mask`, `bias`; the result is `y`), and a
parameter `wrt` names the operands that derivatives are taken for: others cost nothing.
Arrays are as in `jax_dcn.reference.deform_conv2d`.
"""

import dataclasses
import math

import jax

from jax_dcn import reference
from jax_dcn._primitives import _define, _derivatives, deform_conv2d_cuda
from jax_dcn._primitives._folding import fold, mapped_size, unfold
from jax_dcn._primitives.deform_conv2d_call import call
from jax_dcn.reference.deform_conv2d import OPERANDS

_PRIMALS = ("x", "kernel", "offset", "mask")  # the operands that derivatives depend on


# ---------------------------------------------------------------------------- abstract evaluation


def _deform_conv2d_abstract_eval(x, kernel, offset, mask, *_, geometry, **params):
    size = geometry.output_size(x.shape[1:3], kernel.shape[:2])
    return x.update(shape=(x.shape[0], *size, kernel.shape[-1]), weak_type=False)


def _deform_conv2d_backward_abstract_eval(x, kernel, offset, mask, grad_y, *, wrt, **params):
    bias = kernel.update(shape=kernel.shape[-1:])
    avals = dict(zip(OPERANDS, (x, kernel, offset, mask, bias), strict=True))
    return tuple(avals[name].update(weak_type=False) for name in wrt)


# ------------------------------------------------------------------------------------ derivatives

# ẏ = Σ_k  ẇ_k m_k v_k  +  w_k ṁ_k v_k  +  w_k m_k ẋ(q_k)  +  w_k m_k ∇x(q_k)·Δ̇_k  +  ḃ
#          (kernel)        (mask)          (image)           (offset)                  (bias)
#
# `deform_conv2d_jvp` is this sum: one linear map of all the tangents, whose transpose is one call
# of `deform_conv2d_backward`. Transposing that gives `deform_conv2d_jvp` again. The derivatives of
# these two in their primals are second order, and come from the reference.


def _deform_conv2d_jvp(primals, tangents, **params):
    y = deform_conv2d_p.bind(*primals, **params)
    wrt, dots = _derivatives.nonzero(OPERANDS, tangents)
    return y, deform_conv2d_jvp_p.bind(*primals[: len(_PRIMALS)], *dots, wrt=wrt, **params)


def _deform_conv2d_jvp_jvp(primals, tangents, **params):
    return _derivatives.jvp_of_linear(
        deform_conv2d_jvp_p,
        reference.deform_conv2d_jvp,
        len(_PRIMALS),
        primals,
        tangents,
        **params,
    )


def _deform_conv2d_backward_jvp(primals, tangents, **params):
    return _derivatives.jvp_of_linear(
        deform_conv2d_backward_p,
        reference.deform_conv2d_backward,
        len(_PRIMALS),
        primals,
        tangents,
        **params,
    )


def _deform_conv2d_jvp_transpose(grad_y, *operands, **params):
    return _derivatives.transpose_of_jvp(
        deform_conv2d_backward_p, len(_PRIMALS), grad_y, *operands, **params
    )


def _deform_conv2d_backward_transpose(cotangents, *operands, **params):
    return _derivatives.transpose_of_backward(
        deform_conv2d_jvp_p, len(_PRIMALS), cotangents, *operands, **params
    )


# --------------------------------------------------------------------------------------- batching

# The axes along which the operator is a set of independent operators: images that share a kernel,
# and groups (of features, of offsets, of output channels) that have a kernel each.
_BATCH_AXIS: dict[str, int | None] = {
    "x": 0,
    "kernel": None,
    "offset": 0,
    "mask": 0,
    "bias": None,
    "y": 0,
}
_GROUP_AXIS: dict[str, int | None] = {
    "x": 3,
    "kernel": 3,
    "offset": 3,
    "mask": 3,
    "bias": 0,
    "y": 3,
}


def _deform_conv2d_batching(operands, axes, **params):
    return _batched(deform_conv2d_p, OPERANDS, ("y",), operands, axes, **params)


def _deform_conv2d_jvp_batching(operands, axes, *, wrt, **params):
    names = (*_PRIMALS, *wrt)
    return _batched(deform_conv2d_jvp_p, names, ("y",), operands, axes, wrt=wrt, **params)


def _deform_conv2d_backward_batching(operands, axes, *, wrt, **params):
    names = (*_PRIMALS, "y")
    return _batched(deform_conv2d_backward_p, names, wrt, operands, axes, wrt=wrt, **params)


def _batched(primitive, names, result_names, operands, axes, *, geometry, **params):
    """Folds the mapped axis into the batch, or into the groups where kernels differ along it."""
    size = mapped_size(operands, axes)
    mapped = {name for name, axis in zip(names, axes, strict=True) if axis is not None}
    if {"kernel", "bias"} & (mapped | set(result_names)):
        fold_axes = _GROUP_AXIS
        groups = size * geometry.feature_group_count
        geometry = dataclasses.replace(geometry, feature_group_count=groups)
    else:
        fold_axes = _BATCH_AXIS
    folded = (
        fold(operand, axis, size, fold_axes[name])
        for operand, axis, name in zip(operands, axes, names, strict=True)
    )
    results = primitive.bind(*folded, geometry=geometry, **params)
    if not primitive.multiple_results:
        return unfold(results, size, fold_axes["y"]), fold_axes["y"]
    result_axes = tuple(fold_axes[name] for name in result_names)
    return tuple(unfold(r, size, a) for r, a in zip(results, result_axes, strict=True)), result_axes


# --------------------------------------------------------------------------------------- sharding

# With one feature group, channels are summed over like the terms of a matrix product; with more,
# the groups are operators of their own, each with its channels and its features. The rows and
# columns of the image are needed whole, since offsets may point anywhere.
_AXIS_NAMES: dict[str, tuple[str | None, ...]] = {
    "x": ("batch", None, None, "channels"),
    "kernel": (None, None, "channels", "features"),
    "offset": ("batch", None, None, "channels", None, None),
    "mask": ("batch", None, None, "channels", None),
    "bias": ("features",),
    "y": ("batch", None, None, "features"),
}


def _deform_conv2d_axes(x, kernel, offset, *_, geometry, **params):
    return _axes(OPERANDS, ("y",), x, kernel, offset, geometry)


def _deform_conv2d_jvp_axes(x, kernel, offset, *_, wrt, geometry, **params):
    return _axes((*_PRIMALS, *wrt), ("y",), x, kernel, offset, geometry)


def _deform_conv2d_backward_axes(x, kernel, offset, *_, wrt, geometry, **params):
    return _axes((*_PRIMALS, "y"), wrt, x, kernel, offset, geometry)


def _axes(operands, results, x, kernel, offset, geometry):
    groups, offset_groups = geometry.feature_group_count, offset.shape[3]
    names = dict(_AXIS_NAMES)
    if offset_groups == 1:  # all channels are sampled at the same positions
        names["offset"], names["mask"] = ("batch", *[None] * 5), ("batch", *[None] * 4)
    if groups == 1:
        parts = {"features": kernel.shape[3]}
        parts["channels"] = x.shape[3] if offset_groups == 1 else offset_groups
    else:
        group: dict[str | None, str] = {"features": "groups", "channels": "groups"}
        names = {name: tuple(group.get(a, a) for a in axes) for name, axes in names.items()}
        names["kernel"] = (None, None, None, "groups")
        parts = {"groups": groups if offset_groups == 1 else math.gcd(groups, offset_groups)}
    return _define.Axes(
        names,
        operands,
        results,
        parts={"batch": x.shape[0], **parts},
        apart={"channels": ("bias",)},
        local=_local_params,
    )


def _local_params(params, splits):
    """The parameters on one of the devices that the groups are split over."""
    geometry = params["geometry"]
    groups = geometry.feature_group_count // splits.get("groups", 1)
    return params | {"geometry": dataclasses.replace(geometry, feature_group_count=groups)}


# --------------------------------------------------------------------------------------- lowering


# The CPU's kernels sum in the dtype of `offset`, so that there is nothing to choose by `precision`.


def _deform_conv2d_cpu(*operands, geometry, precision):
    y = _deform_conv2d_abstract_eval(*map(jax.typeof, operands), geometry=geometry)
    return call("forward", y, operands, geometry)


def _deform_conv2d_jvp_cpu(*operands, wrt, geometry, precision):
    y_dot = _deform_conv2d_abstract_eval(*map(jax.typeof, operands[:4]), geometry=geometry)
    return call("jvp", y_dot, operands, geometry, wrt)


def _deform_conv2d_backward_cpu(*operands, wrt, geometry, precision):
    grads = _deform_conv2d_backward_abstract_eval(*map(jax.typeof, operands), wrt=wrt)
    return tuple(call("backward", grads, operands, geometry, wrt))


# ---------------------------------------------------------------------------------------- summary

deform_conv2d_p = _define.define_primitive(
    "deform_conv2d",
    abstract_eval=_deform_conv2d_abstract_eval,
    reference=reference.deform_conv2d,
    native={"cpu": _deform_conv2d_cpu, "cuda": deform_conv2d_cuda.deform_conv2d},
    jvp=_deform_conv2d_jvp,
    transpose=None,
    batching_rule=_deform_conv2d_batching,
    axes=_deform_conv2d_axes,
)

deform_conv2d_jvp_p = _define.define_primitive(
    "deform_conv2d_jvp",
    abstract_eval=_deform_conv2d_abstract_eval,
    reference=reference.deform_conv2d_jvp,
    native={"cpu": _deform_conv2d_jvp_cpu, "cuda": deform_conv2d_cuda.deform_conv2d_jvp},
    jvp=_deform_conv2d_jvp_jvp,
    transpose=_deform_conv2d_jvp_transpose,
    batching_rule=_deform_conv2d_jvp_batching,
    axes=_deform_conv2d_jvp_axes,
)

deform_conv2d_backward_p = _define.define_primitive(
    "deform_conv2d_backward",
    abstract_eval=_deform_conv2d_backward_abstract_eval,
    reference=reference.deform_conv2d_backward,
    native={"cpu": _deform_conv2d_backward_cpu, "cuda": deform_conv2d_cuda.deform_conv2d_backward},
    jvp=_deform_conv2d_backward_jvp,
    transpose=_deform_conv2d_backward_transpose,
    batching_rule=_deform_conv2d_backward_batching,
    axes=_deform_conv2d_backward_axes,
    multiple_results=True,
)
