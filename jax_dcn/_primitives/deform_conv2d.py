# SPDX-License-Identifier: MIT
"""The primitives of deformable convolution: the operator, its tangent and its fused backward pass.

    y = b + Σ_k  w_k m_k v_k      with  v_k = x(q_k),  q_k = s p + r_k + Δ_k

Every operand has a name (`x`, `kernel`, `offset`, `mask`, `bias`; the result is `y`), and a
parameter `wrt` names the operands that derivatives are taken for: others cost nothing.
Arrays are as in `jax_dcn.reference.deform_conv2d`, but with any number of batch axes from one on:
merged into one, they could no longer be split over devices each by itself.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jax_dcn import reference
from jax_dcn._primitives import _define, _derivatives, deform_conv2d_cuda
from jax_dcn._primitives._folding import fold, mapped_size, unfold
from jax_dcn._primitives.deform_conv2d_call import call
from jax_dcn.reference.deform_conv2d import OPERANDS

_PRIMALS = ("x", "kernel", "offset", "mask")  # the operands that derivatives depend on


# The names of operands and results.
def _arrays(_wrt=()):
    return OPERANDS, ("y",)


def _jvp_arrays(wrt):
    return (*_PRIMALS, *wrt), ("y",)


def _backward_arrays(wrt):
    return (*_PRIMALS, "y"), wrt


# The axes of an image, after the batch axes; other arrays have none of the latter.
_IMAGE_RANK = {"x": 3, "offset": 5, "mask": 4, "y": 3}


def _on_one_batch_axis(f, arrays):
    """`f`, a function of images with one batch axis, as one of images with any number of them."""

    def reshaped(names, values, batch):
        for name, value in zip(names, values, strict=True):
            rank = _IMAGE_RANK.get(name)
            yield value.reshape(*batch, *value.shape[-rank:]) if rank else value

    def call(x, *rest, **params):
        operand_names, result_names = arrays(params.get("wrt"))
        batch = x.shape[:-3]
        flat = reshaped(operand_names, (x, *rest), (math.prod(batch),))
        results = f(*flat, **params)
        if isinstance(results, tuple):
            return tuple(reshaped(result_names, results, batch))
        return next(reshaped(result_names, (results,), batch))

    return call


# ---------------------------------------------------------------------------- abstract evaluation


def _deform_conv2d_abstract_eval(x, kernel, offset, mask, *_, geometry, **params):
    size = geometry.output_size(x.shape[-3:-1], kernel.shape[:2])
    return x.update(shape=(*x.shape[:-3], *size, kernel.shape[-1]), weak_type=False)


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
        _on_one_batch_axis(reference.deform_conv2d_jvp, _jvp_arrays),
        len(_PRIMALS),
        primals,
        tangents,
        **params,
    )


def _deform_conv2d_backward_jvp(primals, tangents, **params):
    return _derivatives.jvp_of_linear(
        deform_conv2d_backward_p,
        _on_one_batch_axis(reference.deform_conv2d_backward, _backward_arrays),
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

# Images that share a kernel are one more batch axis. Where each has its own, they become groups (of
# features, of offsets, of output channels), which lie along these axes.
_GROUP_AXIS = {"x": -1, "kernel": -1, "offset": -3, "mask": -2, "bias": -1, "y": -1}


def _deform_conv2d_batching(operands, axes, **params):
    return _batched(deform_conv2d_p, _arrays(), operands, axes, **params)


def _deform_conv2d_jvp_batching(operands, axes, *, wrt, **params):
    return _batched(deform_conv2d_jvp_p, _jvp_arrays(wrt), operands, axes, wrt=wrt, **params)


def _deform_conv2d_backward_batching(operands, axes, *, wrt, **params):
    arrays = _backward_arrays(wrt)
    return _batched(deform_conv2d_backward_p, arrays, operands, axes, wrt=wrt, **params)


def _batched(primitive, arrays, operands, axes, **params):
    names, result_names = arrays
    mapped = {name for name, axis in zip(names, axes, strict=True) if axis is not None}
    batched = _grouped if {"kernel", "bias"} & (mapped | set(result_names)) else _as_batch_axis
    return batched(primitive, arrays, operands, axes, **params)


def _as_batch_axis(primitive, arrays, operands, axes, **params):
    """Makes the mapped axis a batch axis."""
    names, _ = arrays
    size = mapped_size(operands, axes)

    def batch_first(name, operand, axis):
        if name not in _IMAGE_RANK:
            return operand
        if axis is None:
            return jnp.broadcast_to(operand[None], (size, *operand.shape))
        return jnp.moveaxis(operand, axis, 0)

    results = primitive.bind(*map(batch_first, names, operands, axes), **params)
    return results, (0,) * len(results) if primitive.multiple_results else 0


def _grouped(primitive, arrays, operands, axes, *, geometry, **params):
    """Folds the mapped axis, along which kernels differ, into the groups."""
    names, result_names = arrays
    size = mapped_size(operands, axes)
    groups = size * geometry.feature_group_count
    geometry = dataclasses.replace(geometry, feature_group_count=groups)

    def folded(name, operand, axis):
        rank = operand.ndim - (axis is not None)
        return fold(operand, axis, size, rank + _GROUP_AXIS[name])

    results = primitive.bind(*map(folded, names, operands, axes), geometry=geometry, **params)
    if not primitive.multiple_results:
        results = (results,)
    places = [r.ndim + _GROUP_AXIS[n] for r, n in zip(results, result_names, strict=True)]
    unfolded = [unfold(r, size, a) for r, a in zip(results, places, strict=True)]
    return (unfolded, places) if primitive.multiple_results else (unfolded[0], places[0])


# --------------------------------------------------------------------------------------- sharding

# With one feature group, channels are summed over like the terms of a matrix product; with more,
# the groups are operators of their own, each with its channels and its features. The rows and
# columns of the image are needed whole, since offsets may point anywhere.
_AXIS_NAMES: dict[str, tuple[str | None, ...]] = {
    "x": (None, None, "channels"),
    "kernel": (None, None, "channels", "features"),
    "offset": (None, None, "channels", None, None),
    "mask": (None, None, "channels", None),
    "bias": ("features",),
    "y": (None, None, "features"),
}


def _deform_conv2d_axes(*operands, geometry, **params):
    return _axes(_arrays(), operands, geometry)


def _deform_conv2d_jvp_axes(*operands, wrt, geometry, **params):
    return _axes(_jvp_arrays(wrt), operands, geometry)


def _deform_conv2d_backward_axes(*operands, wrt, geometry, **params):
    return _axes(_backward_arrays(wrt), operands, geometry)


def _axes(arrays, operands, geometry):
    x, kernel, offset, *_ = operands
    groups, offset_groups = geometry.feature_group_count, offset.shape[-3]
    names = dict(_AXIS_NAMES)
    if offset_groups == 1:  # all channels are sampled at the same positions
        names["offset"], names["mask"] = (None,) * 5, (None,) * 4
    if groups == 1:
        parts = {"features": kernel.shape[3]}
        parts["channels"] = x.shape[-1] if offset_groups == 1 else offset_groups
    else:
        group: dict[str | None, str] = {"features": "groups", "channels": "groups"}
        names = {name: tuple(group.get(a, a) for a in axes) for name, axes in names.items()}
        names["kernel"] = (None, None, None, "groups")
        parts = {"groups": groups if offset_groups == 1 else math.gcd(groups, offset_groups)}
    operand_names, result_names = arrays
    batch = {f"batch{index}": size for index, size in enumerate(x.shape[:-3])}
    return _define.Axes(
        {name: (*batch, *axes) if name in _IMAGE_RANK else axes for name, axes in names.items()},
        operand_names,
        result_names,
        parts=batch | parts,
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


def _implementations(arrays, reference, **native):
    native = {platform: _on_one_batch_axis(f, arrays) for platform, f in native.items()}
    return {"reference": _on_one_batch_axis(reference, arrays), "native": native}


deform_conv2d_p = _define.define_primitive(
    "deform_conv2d",
    abstract_eval=_deform_conv2d_abstract_eval,
    **_implementations(
        _arrays,
        reference.deform_conv2d,
        cpu=_deform_conv2d_cpu,
        cuda=deform_conv2d_cuda.deform_conv2d,
    ),
    jvp=_deform_conv2d_jvp,
    transpose=None,
    batching_rule=_deform_conv2d_batching,
    axes=_deform_conv2d_axes,
)

deform_conv2d_jvp_p = _define.define_primitive(
    "deform_conv2d_jvp",
    abstract_eval=_deform_conv2d_abstract_eval,
    **_implementations(
        _jvp_arrays,
        reference.deform_conv2d_jvp,
        cpu=_deform_conv2d_jvp_cpu,
        cuda=deform_conv2d_cuda.deform_conv2d_jvp,
    ),
    jvp=_deform_conv2d_jvp_jvp,
    transpose=_deform_conv2d_jvp_transpose,
    batching_rule=_deform_conv2d_jvp_batching,
    axes=_deform_conv2d_jvp_axes,
)

deform_conv2d_backward_p = _define.define_primitive(
    "deform_conv2d_backward",
    abstract_eval=_deform_conv2d_backward_abstract_eval,
    **_implementations(
        _backward_arrays,
        reference.deform_conv2d_backward,
        cpu=_deform_conv2d_backward_cpu,
        cuda=deform_conv2d_cuda.deform_conv2d_backward,
    ),
    jvp=_deform_conv2d_backward_jvp,
    transpose=_deform_conv2d_backward_transpose,
    batching_rule=_deform_conv2d_backward_batching,
    axes=_deform_conv2d_backward_axes,
    multiple_results=True,
)
