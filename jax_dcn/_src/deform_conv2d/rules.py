# SPDX-License-Identifier: MIT
"""The primitives of deformable convolution: the operator, its tangent and its fused backward pass.

    y = b + Σ_k  w_k m_k v_k      with  v_k = x(q_k),  q_k = s p + r_k + Δ_k

Arrays are as in `jax_dcn.reference.deform_conv2d`, but with one or more batch axes. Merged into one
axis, batch axes could no longer be split over devices each by itself.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.deform_conv2d import cuda, fused, native, reference
from jax_dcn._src.deform_conv2d.signature import ITEM_RANKS, SIGNATURE, types
from jax_dcn._src.operator import rules
from jax_dcn._src.operator.extension import define_primitive
from jax_dcn._src.operator.folding import (
    bind_batched,
    bind_folded,
    bounded,
    looped,
    mapped_arrays,
    mapped_first,
    mapped_size,
)
from jax_dcn._src.operator.merging import merged, parted
from jax_dcn._src.operator.native import Native
from jax_dcn._src.operator.sharding import Axes
from jax_dcn._src.operator.sizes import is_free

# --------------------------------------------------------------------------------------- batching

# Where the mapped images share a kernel, the mapped axis is one more batch axis. Where several kernels
# share the samples, the features of all kernels are features of one. Where each image has a kernel of
# its own, the images become groups of channels, offsets and features, along these axes.
_OF_FEATURES = {"kernel", "bias", "y"}
_GROUP_AXIS = {"x": -1, "kernel": -1, "offset": -3, "mask": -2, "bias": -1, "y": -1}


def _copied(primitive, operands, axes, **params):
    """The arrays that batching copies: operands that are not mapped, or transposed results."""
    mapped = mapped_arrays(primitive, axes, **params)
    if mapped <= _OF_FEATURES:
        return _results(primitive, operands, axes, **params)
    shared = set() if mapped & {"kernel", "bias"} else {"kernel", "bias"}
    names = primitive.arrays(**params).operands
    return [
        operand
        for name, operand, axis in zip(names, operands, axes, strict=True)
        if axis is None and name not in shared
    ]


def _results(primitive, operands, axes, **params):
    """The types of the results for one element of the mapped axis."""
    arrays = primitive.arrays(**params)
    one = [
        jax.ShapeDtypeStruct(
            operand.shape if axis is None else np.delete(operand.shape, axis), operand.dtype
        )
        for operand, axis in zip(operands, axes, strict=True)
    ]
    by_name = types(*one[: arrays.primals], geometry=params["geometry"])
    return [by_name[name] for name in arrays.results]


@bounded(_copied)
def _deform_conv2d_batching(primitive, operands, axes, **params):
    mapped = mapped_arrays(primitive, axes, **params)
    if mapped <= _OF_FEATURES:
        return _as_features(primitive, operands, axes, **params)
    batched = _as_groups if mapped & {"kernel", "bias"} else bind_batched
    return batched(primitive, operands, axes, **params)


def _as_features(primitive, operands, axes, *, geometry, **params):
    """Folds the mapped axis into the features: images are sampled once for all kernels."""
    arrays, size = primitive.arrays(**params), mapped_size(operands, axes)
    groups = geometry.feature_group_count

    def folded(name, operand, axis):
        if name not in _OF_FEATURES:
            return operand
        moved = mapped_first(operand, axis, size)
        by_group = jnp.moveaxis(parted(moved, moved.ndim - 1, groups), 0, -2)
        return merged(merged(by_group, by_group.ndim - 3), by_group.ndim - 3)

    def unfolded(result):
        axis = result.ndim - 1
        by_group = parted(parted(result, axis, groups), axis + 1, size)
        return merged(jnp.moveaxis(by_group, -2, 0), axis + 1)

    folds = map(folded, arrays.operands, operands, axes)
    results = primitive.bind(*folds, geometry=geometry, **params)
    return list(map(unfolded, results)), (0,) * len(results)


def _as_groups(primitive, operands, axes, *, geometry, **params):
    """Folds the mapped axis, along which kernels differ, into the groups."""
    size = mapped_size(operands, axes)
    if is_free(size):  # implementations know the number of groups when a program is lowered
        return looped(primitive, operands, axes, geometry=geometry, **params)
    groups = size * geometry.feature_group_count
    geometry = dataclasses.replace(geometry, feature_group_count=groups)
    return bind_folded(primitive, operands, axes, _GROUP_AXIS, geometry=geometry, **params)


# --------------------------------------------------------------------------------------- sharding

# With one feature group, channels are summed over, as in a matrix product. With more, each group is
# an operator of its own, with its channels and its features. Every device needs the rows and columns
# of the image whole, since offsets may point anywhere.
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
    return Axes(
        {name: (*batch, *axes) if name in ITEM_RANKS else axes for name, axes in names.items()},
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


# ------------------------------------------------------------------------------------- primitives

deform_conv2d_p = define_primitive(
    "deform_conv2d",
    arrays=SIGNATURE.forward,
    types=types,
    reference=reference.deform_conv2d,
    native=(
        Native("cpu", "jax_dcn_deform_conv2d_forward", native.deform_conv2d),
        Native("cuda", "jax_dcn_deform_conv2d_forward", native.deform_conv2d, fused.refuses),
        Native("cuda", "jax_dcn_deform_conv2d_columns", cuda.deform_conv2d),
    ),
    batching_rule=_deform_conv2d_batching,
    axes=_deform_conv2d_axes,
    item_ranks=ITEM_RANKS,
)

deform_conv2d_jvp_p = define_primitive(
    "deform_conv2d_jvp",
    arrays=SIGNATURE.jvp,
    types=types,
    reference=reference.deform_conv2d_jvp,
    native=(
        Native("cpu", "jax_dcn_deform_conv2d_jvp", native.deform_conv2d_jvp),
        Native("cuda", "jax_dcn_deform_conv2d_columns_jvp", cuda.deform_conv2d_jvp),
    ),
    batching_rule=_deform_conv2d_batching,
    axes=_deform_conv2d_axes,
    item_ranks=ITEM_RANKS,
)

deform_conv2d_backward_p = define_primitive(
    "deform_conv2d_backward",
    arrays=SIGNATURE.backward,
    types=types,
    reference=reference.deform_conv2d_backward,
    native=(
        Native("cpu", "jax_dcn_deform_conv2d_backward", native.deform_conv2d_backward),
        Native(
            "cuda",
            "jax_dcn_deform_conv2d_samples_backward",
            fused.deform_conv2d_backward,
            fused.refuses,
        ),
        Native("cuda", "jax_dcn_deform_conv2d_columns_backward", cuda.deform_conv2d_backward),
    ),
    batching_rule=_deform_conv2d_batching,
    axes=_deform_conv2d_axes,
    item_ranks=ITEM_RANKS,
)

# ------------------------------------------------------------------------------------ derivatives

# ẏ = Σ_k  ẇ_k m_k v_k  +  w_k ṁ_k v_k  +  w_k m_k ẋ(q_k)  +  w_k m_k ∇x(q_k)·Δ̇_k  +  ḃ
#          (kernel)        (mask)          (image)           (offset)                  (bias)
rules.define_derivatives(deform_conv2d_p, deform_conv2d_jvp_p, deform_conv2d_backward_p)
