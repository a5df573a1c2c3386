# SPDX-License-Identifier: MIT
"""The dtype that every operator computes in."""

import jax
import jax.numpy as jnp
import numpy as np


def sum_dtype(x: jax.Array) -> np.dtype:
    """The dtype of coordinates and sums: never narrower than float32, and as wide as `x`."""
    return np.dtype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)
