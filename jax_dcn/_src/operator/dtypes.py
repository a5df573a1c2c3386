# SPDX-License-Identifier: MIT
"""The dtypes that every operator, and every branch of a layer, computes in."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def sum_dtype(x: jax.Array) -> np.dtype:
    """The dtype of coordinates and sums: never narrower than float32, and as wide as `x`."""
    return np.dtype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def branch_dtype(param_dtype: Any) -> Any:
    """The dtype of a branch that predicts positions: never narrower than float32.

    `None` promotes the branch's input and its parameters, which have `param_dtype`.
    """
    return jnp.float32 if jnp.dtype(param_dtype).itemsize < 4 else None
