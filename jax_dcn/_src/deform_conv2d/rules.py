# SPDX-License-Identifier: MIT
"""The primitives of deformable convolution: the operator, its tangent and its fused backward pass.

    y = b + Σ_k  w_k m_k v_k      with  v_k = x(q_k),  q_k = s p + r_k + Δ_k

Every operand has a name (`x`, `kernel`, `offset`, `mask`, `bias`; the result is `y`). Arrays are as
in `jax_dcn.reference.deform_conv2d`, but with any number of batch axes from one on: merged into one,
they could no longer be split over devices each by itself.
"""

import dataclasses
import math

import jax.numpy as jnp

from jax_dcn._src.deform_conv2d import cuda, reference
from jax_dcn._src.deform_conv2d.native import call
from jax_dcn._src.deform_conv2d.reference import OPERANDS
from jax_dcn._src.operator import extension
from jax_dcn._src.operator.folding import fold, mapped_size, unfold
from jax_dcn._src.operator.operator import Functions, Operator, Signature, calls

# ẏ = Σ_k  ẇ_k m_k v_k  +  w_k ṁ_k v_k  +  w_k m_k ẋ(q_k)  +  w_k m_k ∇x(q_k)·Δ̇_k  +  ḃ
#          (kernel)        (mask)          (image)           (offset)                  (bias)
#
# The derivatives depend on all operands but the last, the bias.
_SIGNATURE = Signature(OPERANDS, primals=4)

# The axes of an image, after the batch axes; other arrays have none of the latter.
_IMAGE_RANK = {"x": 3, "offset": 5, "mask": 4, "y": 3}


def _types(x, kernel, offset, mask, *, geometry):
    """The avals of the operands and of `y`."""
    features = kernel.shape[-1]
    size = geometry.output_size(x.shape[-3:-1], kernel.shape[:2])
    bias, y = kernel.update(shape=(features,)), x.update(shape=(*x.shape[:-3], *size, features))
    return dict(x=x, kernel=kernel, offset=offset, mask=mask, bias=bias, y=y)


# --------------------------------------------------------------------------------------- batching

# Images that share a kernel are one more batch axis. Where each has its own, they become groups (of
# features, of offsets, of output channels), which lie along these axes.
_GROUP_AXIS = {"x": -1, "kernel": -1, "offset": -3, "mask": -2, "bias": -1, "y": -1}


def _deform_conv2d_batching(primitive, arrays, operands, axes, **params):
    mapped = {name for name, axis in zip(arrays.operands, axes, strict=True) if axis is not None}
    kernels_differ = {"kernel", "bias"} & mapped.union(arrays.results)
    batched = _grouped if kernels_differ else _as_batch_axis
    return batched(primitive, arrays, operands, axes, **params)


def _as_batch_axis(primitive, arrays, operands, axes, **params):
    """Makes the mapped axis a batch axis."""
    size = mapped_size(operands, axes)

    def batch_first(name, operand, axis):
        if name not in _IMAGE_RANK:
            return operand
        if axis is None:
            return jnp.broadcast_to(operand[None], (size, *operand.shape))
        return jnp.moveaxis(operand, axis, 0)

    results = primitive.bind(*map(batch_first, arrays.operands, operands, axes), **params)
    return results, (0,) * len(results)


def _grouped(primitive, arrays, operands, axes, *, geometry, **params):
    """Folds the mapped axis, along which kernels differ, into the groups."""
    size = mapped_size(operands, axes)
    groups = size * geometry.feature_group_count
    geometry = dataclasses.replace(geometry, feature_group_count=groups)

    def folded(name, operand, axis):
        rank = operand.ndim - (axis is not None)
        return fold(operand, axis, size, rank + _GROUP_AXIS[name])

    folds = map(folded, arrays.operands, operands, axes)
    results = primitive.bind(*folds, geometry=geometry, **params)
    places = [r.ndim + _GROUP_AXIS[n] for r, n in zip(results, arrays.results, strict=True)]
    return [unfold(r, size, place) for r, place in zip(results, places, strict=True)], places


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


def _deform_conv2d_axes(arrays, x, kernel, offset, *_, geometry):
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
    batch = {f"batch{index}": size for index, size in enumerate(x.shape[:-3])}
    return extension.Axes(
        {name: (*batch, *axes) if name in _IMAGE_RANK else axes for name, axes in names.items()},
        arrays.operands,
        arrays.results,
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


def _on_one_batch_axis(functions):
    """`functions` of images with one batch axis, as functions of images with any number of them."""

    def reshaped(names, values, batch):
        for name, value in zip(names, values, strict=True):
            rank = _IMAGE_RANK.get(name)
            yield value.reshape(*batch, *value.shape[-rank:]) if rank else value

    def f(kind, *operands, **params):
        arrays = _SIGNATURE.arrays(kind, params.get("wrt", ()))
        batch = operands[0].shape[:-3]
        flat = reshaped(arrays.operands, operands, (math.prod(batch),))
        results = extension.as_tuple(getattr(functions, kind)(*flat, **params))
        return tuple(reshaped(arrays.results, results, batch))

    return Functions.of_kinds(f)


# ---------------------------------------------------------------------------------------- summary

_OPERATOR = Operator(
    "deform_conv2d",
    _SIGNATURE,
    types=_types,
    reference=_on_one_batch_axis(
        Functions(
            reference.deform_conv2d,
            reference.deform_conv2d_jvp,
            reference.deform_conv2d_backward,
        )
    ),
    native={
        # Its kernels sum in the dtype of `offset`: there is nothing to choose by `precision`.
        "cpu": _on_one_batch_axis(calls(_SIGNATURE, _types, call)),
        "cuda": _on_one_batch_axis(
            Functions(
                cuda.deform_conv2d,
                cuda.deform_conv2d_jvp,
                cuda.deform_conv2d_backward,
            )
        ),
    },
    batching_rule=_deform_conv2d_batching,
    axes=_deform_conv2d_axes,
)
deform_conv2d_p = _OPERATOR.forward_p
