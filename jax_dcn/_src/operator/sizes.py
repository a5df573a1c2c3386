# SPDX-License-Identifier: MIT
"""Sizes of axes, of which some are symbols while a program is exported."""

from collections.abc import Sequence
from typing import Any

import jax
from jax import export

from jax_dcn._src.arguments import is_integer, is_pair

# In `jax.core` before JAX 0.10.
_errors: Any = jax.errors if hasattr(jax.errors, "InconclusiveDimensionOperation") else jax.core
_Inconclusive = _errors.InconclusiveDimensionOperation


def fits(shape: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Whether two shapes are equal, as far as is known before the program runs."""
    return len(shape) == len(expected) and all(map(_may_equal, shape, expected))


def is_free(*sizes: Any) -> bool:
    """Whether a size is a symbol."""
    return any(map(export.is_symbolic_dim, sizes))


def is_image_size(value: Any) -> bool:
    """Whether `value` is `(height, width)`, each a positive integer or a symbol."""
    return is_pair(value) and all(is_free(v) or (is_integer(v) and v > 0) for v in value)


def _may_equal(a: Any, b: Any) -> bool:
    if not is_free(a, b):
        return bool(a == b)
    try:
        difference = a - b
        return not (difference >= 1 or difference <= -1)
    except _Inconclusive:
        return True
