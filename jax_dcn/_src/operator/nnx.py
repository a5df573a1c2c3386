# SPDX-License-Identifier: MIT
"""The parts that the Flax NNX modules of all operators share."""

from typing import Any

from flax import nnx


def check_rngs(rngs: Any) -> None:
    """Raises `ValueError` for random streams of another kind, such as a key of `jax.random`."""
    if not isinstance(rngs, nnx.Rngs):
        raise ValueError(f"rngs must be nnx.Rngs, got {rngs!r}.")


def is_captured(layer: nnx.Module) -> bool:
    """Whether `nnx.capture` listens. Otherwise each call would store the arrays that it sows in `layer`."""
    return hasattr(layer, "__captures__")
