# SPDX-License-Identifier: MIT
"""The dtypes of the layers on deformable aggregation, in both Flaxes."""

from typing import Any

import jax

from jax_dcn._src.operator.dtypes import branch_dtype, sum_dtype


def branch_options(param_dtype: Any) -> dict[str, Any]:
    """The dtypes of a dense layer that predicts, as both Flaxes name them."""
    return dict(dtype=branch_dtype(param_dtype), param_dtype=param_dtype)


def branch_input(x: jax.Array) -> jax.Array:
    """`x` as a dense layer that predicts reads it: at least in float32.

    In bfloat16, a position would miss by half a pixel of a map that is 167 pixels wide.
    """
    return x.astype(sum_dtype(x))


def cast(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` in the dtype that a projection would give it; `None` leaves `x` as it is."""
    return x if dtype is None else x.astype(dtype)
