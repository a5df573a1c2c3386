# SPDX-License-Identifier: MIT
"""The primitives of deformable aggregation: the operator, its tangent and its fused backward pass.

    y = Σ_t  w_t v_t      with  v_t = x(q_t)

Arrays are as in `jax_dcn.reference.deform_aggregate`, but with one or more batch axes.
"""

from jax_dcn._src.deform_aggregate import cuda, native, reference
from jax_dcn._src.deform_aggregate.signature import ITEM_RANKS, SIGNATURE, types
from jax_dcn._src.operator import rules
from jax_dcn._src.operator.extension import define_primitive
from jax_dcn._src.operator.folding import (
    bind_batched,
    bind_folded,
    bounded,
    copied_beside_images,
    images_differ,
)
from jax_dcn._src.operator.native import Native
from jax_dcn._src.operator.sharding import Axes

# --------------------------------------------------------------------------------------- batching

# The axis of the queries. Folded into this axis, the one image is not copied.
_QUERY_AXIS = {"positions": -4, "weights": -3, "y": -2}


@bounded(copied_beside_images)
def _deform_aggregate_batching(primitive, operands, axes, **params):
    """Makes the mapped axis a batch axis or, where all its elements read one image, folds it."""
    if images_differ(primitive, axes, **params):
        return bind_batched(primitive, operands, axes, **params)
    return bind_folded(primitive, operands, axes, _QUERY_AXIS, **params)


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
    batching_rule=_deform_aggregate_batching,
    axes=_deform_aggregate_axes,
    item_ranks=ITEM_RANKS,
)

# ------------------------------------------------------------------------------------ derivatives

# ẏ = Σ_t  ẇ_t v_t  +  w_t ẋ(q_t)  +  w_t ∇x(q_t)·q̇_t
#          (weights)   (image)        (positions)
rules.define_derivatives(deform_aggregate_p, deform_aggregate_jvp_p, deform_aggregate_backward_p)
