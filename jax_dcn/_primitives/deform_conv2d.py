# SPDX-License-Identifier: MIT
"""The primitives of deformable convolution: the operator, its tangent and its fused backward pass.

    y = b + Σ_k  w_k m_k v_k      with  v_k = x(q_k),  q_k = s p + r_k + Δ_k

Every operand has a name (`x`, `kernel`, `offset`, `mask`, `bias`; the result is `y`), and a
parameter `wrt` names the operands that derivatives are taken for: others cost nothing.
Arrays are as in `jax_dcn.reference.deform_conv2d`.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn import reference
from jax_dcn._primitives import _define
from jax_dcn.geometry import ConvGeometry
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
    wrt, dots = _nonzero(OPERANDS, tangents)
    return y, deform_conv2d_jvp_p.bind(*primals[:4], *dots, wrt=wrt, **params)


def _deform_conv2d_jvp_jvp(primals, tangents, *, wrt, **params):
    return _derivative_of_linear(
        deform_conv2d_jvp_p, reference.deform_conv2d_jvp, primals, tangents, wrt=wrt, **params
    )


def _deform_conv2d_backward_jvp(primals, tangents, *, wrt, **params):
    return _derivative_of_linear(
        deform_conv2d_backward_p,
        reference.deform_conv2d_backward,
        primals,
        tangents,
        wrt=wrt,
        **params,
    )


def _derivative_of_linear(primitive, reference, primals, tangents, *, implementation, **params):
    """JVP of a primitive that is linear in its operands after the first four."""
    result = primitive.bind(*primals, implementation=implementation, **params)
    indices, dots = _nonzero(range(len(primals)), tangents)
    if min(indices) >= len(_PRIMALS):
        linear = map(_define.instantiate_zeros, tangents[len(_PRIMALS) :])
        result_dot = primitive.bind(
            *primals[: len(_PRIMALS)], *linear, implementation=implementation, **params
        )
        return result, result_dot

    def f(*active):
        operands = list(primals)
        for index, operand in zip(indices, active, strict=True):
            operands[index] = operand
        return reference(*operands, **params)

    return result, jax.jvp(f, tuple(primals[index] for index in indices), tuple(dots))[1]


def _nonzero(names, tangents):
    """The names of the operands that have a tangent, and these tangents."""
    pairs = [(n, t) for n, t in zip(names, tangents, strict=True) if type(t) is not _define.Zero]
    return tuple(name for name, _ in pairs), [tangent for _, tangent in pairs]


def _deform_conv2d_jvp_transpose(grad_y, *operands, wrt, **params):
    primals, dots = operands[: len(_PRIMALS)], operands[len(_PRIMALS) :]
    asked = tuple(n for n, d in zip(wrt, dots, strict=True) if _define.is_undefined_primal(d))
    if type(grad_y) is _define.Zero:
        return [None] * len(_PRIMALS) + [_define.Zero(d.aval) for d in dots]
    grads = deform_conv2d_backward_p.bind(*primals, grad_y, wrt=asked, **params)
    by_name = dict(zip(asked, grads, strict=True))
    return [None] * len(_PRIMALS) + [by_name.get(name) for name in wrt]


def _deform_conv2d_backward_transpose(cotangents, *operands, wrt, **params):
    wrt, dots = _nonzero(wrt, cotangents)
    if not dots:
        return [None] * len(_PRIMALS) + [_define.Zero(operands[-1].aval)]
    primals = operands[: len(_PRIMALS)]
    return [None] * len(_PRIMALS) + [deform_conv2d_jvp_p.bind(*primals, *dots, wrt=wrt, **params)]


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
    size = next(o.shape[a] for o, a in zip(operands, axes, strict=True) if a is not None)
    mapped = {name for name, axis in zip(names, axes, strict=True) if axis is not None}
    if {"kernel", "bias"} & (mapped | set(result_names)):
        fold_axes = _GROUP_AXIS
        groups = size * geometry.feature_group_count
        geometry = dataclasses.replace(geometry, feature_group_count=groups)
    else:
        fold_axes = _BATCH_AXIS
    folded = (
        _fold(operand, axis, size, fold_axes[name])
        for operand, axis, name in zip(operands, axes, names, strict=True)
    )
    results = primitive.bind(*folded, geometry=geometry, **params)
    if not primitive.multiple_results:
        return _unfold(results, size, fold_axes["y"]), fold_axes["y"]
    result_axes = tuple(fold_axes[name] for name in result_names)
    return tuple(
        _unfold(r, size, a) for r, a in zip(results, result_axes, strict=True)
    ), result_axes


def _fold(operand, mapped_axis, size, axis):
    """Merges the mapped axis, made if there is none, into the one at `axis`, as its slower part."""
    if axis is None:
        return operand
    if mapped_axis is None:
        shape = (*operand.shape[:axis], size, *operand.shape[axis:])
        operand = jnp.broadcast_to(jnp.expand_dims(operand, axis), shape)
    else:
        operand = jnp.moveaxis(operand, mapped_axis, axis)
    merged = math.prod(operand.shape[axis : axis + 2])
    return operand.reshape(*operand.shape[:axis], merged, *operand.shape[axis + 2 :])


def _unfold(result, size, axis):
    """Splits the mapped axis off the one at `axis`."""
    shape = result.shape
    return result.reshape(*shape[:axis], size, shape[axis] // size, *shape[axis + 1 :])


# --------------------------------------------------------------------------------------- lowering


def _deform_conv2d_native(*operands, geometry, precision):
    y = _deform_conv2d_abstract_eval(*map(jax.typeof, operands), geometry=geometry)
    return _call("forward", y, operands, geometry)


def _deform_conv2d_jvp_native(*operands, wrt, geometry, precision):
    y_dot = _deform_conv2d_abstract_eval(*map(jax.typeof, operands[:4]), geometry=geometry)
    return _call("jvp", y_dot, operands, geometry, wrt=_indices(wrt))


def _deform_conv2d_backward_native(*operands, wrt, geometry, precision):
    grads = _deform_conv2d_backward_abstract_eval(*map(jax.typeof, operands), wrt=wrt)
    return tuple(_call("backward", grads, operands, geometry, wrt=_indices(wrt)))


def _call(target, results, operands, geometry: ConvGeometry, **attributes):
    # The kernels sum in the dtype of `offset`, so that there is nothing to choose by `precision`.
    return jax.ffi.ffi_call(f"jax_dcn_deform_conv2d_{target}", results)(
        *operands,
        strides=np.array(geometry.strides, np.int64),
        padding=np.array(geometry.padding, np.int64).ravel(),
        kernel_dilation=np.array(geometry.kernel_dilation, np.int64),
        feature_group_count=np.int64(geometry.feature_group_count),
        legacy_boundary=geometry.boundary == "legacy",
        **attributes,
    )


def _indices(wrt: Sequence[str]) -> np.ndarray:
    return np.array([OPERANDS.index(name) for name in wrt], np.int64)


# ---------------------------------------------------------------------------------------- summary

deform_conv2d_p = _define.define_primitive(
    "deform_conv2d",
    abstract_eval=_deform_conv2d_abstract_eval,
    reference=reference.deform_conv2d,
    native=_deform_conv2d_native,
    jvp=_deform_conv2d_jvp,
    transpose=None,
    batching_rule=_deform_conv2d_batching,
)

deform_conv2d_jvp_p = _define.define_primitive(
    "deform_conv2d_jvp",
    abstract_eval=_deform_conv2d_abstract_eval,
    reference=reference.deform_conv2d_jvp,
    native=_deform_conv2d_jvp_native,
    jvp=_deform_conv2d_jvp_jvp,
    transpose=_deform_conv2d_jvp_transpose,
    batching_rule=_deform_conv2d_jvp_batching,
)

deform_conv2d_backward_p = _define.define_primitive(
    "deform_conv2d_backward",
    abstract_eval=_deform_conv2d_backward_abstract_eval,
    reference=reference.deform_conv2d_backward,
    native=_deform_conv2d_backward_native,
    jvp=_deform_conv2d_backward_jvp,
    transpose=_deform_conv2d_backward_transpose,
    batching_rule=_deform_conv2d_backward_batching,
    multiple_results=True,
)
