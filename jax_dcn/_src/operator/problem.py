# SPDX-License-Identifier: MIT
"""The problems of an operator on which an installation is checked and timed."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np

NumPyArrays = tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class KnownResult:
    """A result that is known without the operator.

    Attributes:
      title: When the result is known, for the report.
      arrays: The arrays to call the problem's function with, in float32.
      result: `()` to the expected result, from XLA's own operators.
    """

    title: str
    arrays: Callable[[], NumPyArrays]
    result: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Problem:
    """An operator with its options, and the arrays to call it with.

    Attributes:
      function: The operator as a function of the arrays and of the keyword `implementation`.
      arrays: `(dtype)` to the arrays.
      known: A result to check the reference against, if there is one.
    """

    function: Callable[..., jax.Array]
    arrays: Callable[[np.dtype], NumPyArrays]
    known: KnownResult | None = None


def draw(seed: int, *shape: int) -> np.ndarray:
    """Normal random numbers in float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def draw_mask(seed: int, *shape: int) -> np.ndarray:
    """Uniform random numbers between 0 and 1 in float32."""
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """The layers on which an operator is timed.

    Attributes:
      title: The dtype and the batch of all layers, for the report.
      functions: The functions to time, by name: of the arrays of a layer.
      layers: `()` to the arrays of a layer, by name.
    """

    title: str
    functions: Mapping[str, Callable[..., jax.Array]]
    layers: Mapping[str, Callable[[], tuple[jax.Array, ...]]]
