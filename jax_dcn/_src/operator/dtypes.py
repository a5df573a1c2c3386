# SPDX-License-Identifier: MIT
"""The dtypes that every operator takes, and the dtype that it computes in."""

import jax
import jax.numpy as jnp
import numpy as np

DTYPES = ("float32", "float64", "bfloat16", "float16")


def check_dtypes(**arrays: jax.Array | None) -> None:
    """Raises `ValueError` for an array, given by its name, of a dtype that operators do not take."""
    for name, array in arrays.items():
        if array is not None and array.dtype.name not in DTYPES:
            raise ValueError(f"{name} must be one of {DTYPES}, got {array.dtype.name}.")


def sum_dtype(x: jax.Array) -> np.dtype:
    """The dtype of coordinates and sums: never narrower than float32, and as wide as `x`."""
    return np.dtype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)
