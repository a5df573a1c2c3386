# SPDX-License-Identifier: MIT
"""The primitives of deformable aggregation: the operator, its tangent and its fused backward pass.

    y = Σ_t  w_t v_t      with  v_t = x(q_t)

Arrays are as in `jax_dcn.reference.deform_aggregate`, but with one or more batch axes.
"""

import jax.numpy as jnp

from jax_dcn._src.deform_aggregate import cuda, native, reference
from jax_dcn._src.deform_aggregate.signature import ITEM_RANKS, SIGNATURE, types
from jax_dcn._src.operator import rules
from jax_dcn._src.operator.extension import define_primitive
from jax_dcn._src.operator.folding import (
    bounded,
    copied_beside_images,
    fold,
    images_differ,
    mapped_size,
    unfold,
)
from jax_dcn._src.operator.native import Native
from jax_dcn._src.operator.sharding import Axes

# ------------------------------------------------------------------------------------ derivatives

# ẏ = Σ_t  ẇ_t v_t  +  w_t ẋ(q_t)  +  w_t ∇x(q_t)·q̇_t
#          (weights)   (image)        (positions)


def _deform_aggregate_jvp(operands, tangents, **params):
    return rules.jvp_of_forward(
        deform_aggregate_p, deform_aggregate_jvp_p, operands, tangents, **params
    )


def _deform_aggregate_jvp_jvp(operands, tangents, **params):
    return rules.jvp_of_linear(deform_aggregate_jvp_p, operands, tangents, **params)


def _deform_aggregate_jvp_transpose(cotangents, *operands, **params):
    return rules.transpose_of_jvp(deform_aggregate_backward_p, cotangents, *operands, **params)


def _deform_aggregate_backward_jvp(operands, tangents, **params):
    return rules.jvp_of_linear(deform_aggregate_backward_p, operands, tangents, **params)


def _deform_aggregate_backward_transpose(cotangents, *operands, **params):
    return rules.transpose_of_backward(deform_aggregate_jvp_p, cotangents, *operands, **params)


# --------------------------------------------------------------------------------------- batching

# The axis of the queries, into which a mapped axis folds where all its elements read one image.
_QUERY_AXIS = {"positions": -4, "weights": -3, "y": -2}


@bounded(copied_beside_images)
def _deform_aggregate_batching(primitive, operands, axes, **params):
    differ = images_differ(primitive, axes, **params)
    batched = _as_batch_axis if differ else _as_queries
    return batched(primitive, operands, axes, **params)


def _as_batch_axis(primitive, operands, axes, **params):
    """Makes the mapped axis a batch axis."""
    size = mapped_size(operands, axes)

    def batch_first(operand, axis):
        if axis is None:
            return jnp.broadcast_to(operand[None], (size, *operand.shape))
        return jnp.moveaxis(operand, axis, 0)

    results = primitive.bind(*map(batch_first, operands, axes), **params)
    return results, (0,) * len(results)


def _as_queries(primitive, operands, axes, **params):
    """Folds the mapped axis into the queries, so that the one image is not copied."""
    arrays, size = primitive.arrays(**params), mapped_size(operands, axes)

    def folded(name, operand, axis):
        if name == "x":
            return operand
        rank = operand.ndim - (axis is not None)
        return fold(operand, axis, size, rank + _QUERY_AXIS[name])

    results = primitive.bind(*map(folded, arrays.operands, operands, axes), **params)
    places = [r.ndim + _QUERY_AXIS[n] for r, n in zip(results, arrays.results, strict=True)]
    return [unfold(r, size, place) for r, place in zip(results, places, strict=True)], places


# --------------------------------------------------------------------------------------- sharding

# Queries are independent, and so are channels, except that the channels of a group share their
# positions. Every device needs the pixels of its channels whole, since positions may lie anywhere.


def _deform_aggregate_axes(arrays, x, positions, *_, geometry):
    groups = positions.shape[-3]
    shared = "channels" if groups > 1 else None
    batch = {f"batch{index}": size for index, size in enumerate(x.shape[:-2])}
    names = {
        "x": (*batch, None, "channels"),
        "positions": (*batch, "queries", shared, None, None),
        "weights": (*batch, "queries", shared, None),
        "y": (*batch, "queries", "channels"),
    }
    parts = {"queries": positions.shape[-4], "channels": groups if groups > 1 else x.shape[-1]}
    return Axes(names, arrays.operands, arrays.results, batch | parts)


# ------------------------------------------------------------------------------------- primitives

deform_aggregate_p = define_primitive(
    "deform_aggregate",
    arrays=SIGNATURE.forward,
    types=types,
    reference=reference.deform_aggregate,
    native=(
        Native("cpu", "jax_dcn_deform_aggregate_forward", native.deform_aggregate, native.why_not),
        Native("cuda", "jax_dcn_deform_aggregate_forward", native.deform_aggregate, cuda.why_not),
    ),
    jvp=_deform_aggregate_jvp,
    transpose=None,
    batching_rule=_deform_aggregate_batching,
    axes=_deform_aggregate_axes,
    item_ranks=ITEM_RANKS,
)

deform_aggregate_jvp_p = define_primitive(
    "deform_aggregate_jvp",
    arrays=SIGNATURE.jvp,
    types=types,
    reference=reference.deform_aggregate_jvp,
    native=(
        Native("cpu", "jax_dcn_deform_aggregate_jvp", native.deform_aggregate_jvp, native.why_not),
        Native("cuda", "jax_dcn_deform_aggregate_jvp", native.deform_aggregate_jvp, cuda.why_not),
    ),
    jvp=_deform_aggregate_jvp_jvp,
    transpose=_deform_aggregate_jvp_transpose,
    batching_rule=_deform_aggregate_batching,
    axes=_deform_aggregate_axes,
    item_ranks=ITEM_RANKS,
)

deform_aggregate_backward_p = define_primitive(
    "deform_aggregate_backward",
    arrays=SIGNATURE.backward,
    types=types,
    reference=reference.deform_aggregate_backward,
    native=(
        Native(
            "cpu",
            "jax_dcn_deform_aggregate_backward",
            native.deform_aggregate_backward,
            native.why_not,
        ),
        Native(
            "cuda",
            "jax_dcn_deform_aggregate_backward",
            cuda.deform_aggregate_backward,
            cuda.why_not,
        ),
    ),
    jvp=_deform_aggregate_backward_jvp,
    transpose=_deform_aggregate_backward_transpose,
    batching_rule=_deform_aggregate_batching,
    axes=_deform_aggregate_axes,
    item_ranks=ITEM_RANKS,
)
