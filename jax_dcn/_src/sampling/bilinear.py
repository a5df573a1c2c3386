# SPDX-License-Identifier: MIT
"""Multilinear interpolation of a map at any positions, and the boundary rules, in `jax.numpy`."""

import functools
import itertools
import operator
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Boundary = Literal["padded", "legacy"]
BOUNDARIES = ("padded", "legacy")
"""The rules of which positions are inside a map, see `is_inside`."""

# Pixels along an axis: of one map, or of the map of each position.
Size = int | jax.Array


def sample(x: jax.Array, positions: Sequence[jax.Array], boundary: str) -> jax.Array:
    """Reads a map at positions by multilinear interpolation, see `corners`.

    Args:
      x: The map, `[*size, G, C]`: `G` groups of channels, each sampled at positions of its own.
      positions: For each axis of the map, coordinates `[..., G, K]` in pixels. The dtype is that of
        the result.
      boundary: Which positions are inside the map, see `is_inside`.

    Returns:
      `[..., G, K, C]`: zero outside the map, and NaN where a coordinate is NaN.
    """
    size, groups = x.shape[: len(positions)], x.shape[len(positions)]
    leading = (1,) * (positions[0].ndim - 2)
    group = np.arange(groups, dtype=np.int32).reshape(*leading, groups, 1)

    def term(corner: Corner) -> jax.Array:
        value = x.at[(*corner.indices, group)].get(mode="promise_in_bounds")
        # Selected, not multiplied by zero: an infinity outside must not become a NaN.
        selected = jnp.where(corner.read[..., None], value.astype(positions[0].dtype), 0)
        return corner.weight[..., None] * selected

    return _sum(map(term, corners(positions, size, boundary)))


class Corner(NamedTuple):
    """One of the pixels that surround positions `[...]`."""

    indices: list[jax.Array]  # for each axis of the map, `[...]`: always within the map
    weight: jax.Array  # the factor of the pixel; NaN where a coordinate is NaN
    read: jax.Array  # whether the pixel counts: the position is inside, and so is the pixel


def corners(
    positions: Sequence[jax.Array],
    size: Sequence[Size],
    boundary: str,
    whole_positions: bool = False,
) -> list[Corner]:
    """The pixels and weights of multilinear interpolation; for two axes (bilinear):

    v = (1 - a)(1 - b) x[h0, w0] + (1 - a) b x[h0, w0 + 1] + a (1 - b) x[h0 + 1, w0] + a b x[h0 + 1, w0 + 1]

    with h0 = floor(h), a = h - h0, w0 = floor(w), b = w - w0. The derivative through `floor` is the
    right-hand derivative at whole numbers, as the operators are defined.

    Args:
      positions: For each axis of the map, coordinates `[...]` in pixels.
      size: Pixels along each axis: of one map, or of the map of each position.
      boundary: Which positions are inside the map, see `is_inside`.
      whole_positions: Whether every position is a pixel, the only one of its corners.
    """
    inside = is_inside(positions, size, boundary)
    # Positions outside are replaced before use: no conversion of a huge or undefined number to an
    # integer, and no gradient.
    replaced = [jnp.where(inside, position, 0) for position in positions]
    floors = [jnp.floor(position) for position in replaced]
    fractions = [position - floor for position, floor in zip(replaced, floors, strict=True)]
    lowest = [floor.astype(jnp.int32) for floor in floors]
    undefined = _undefined(positions)

    def corner(steps: tuple[int, ...]) -> Corner:
        indices = [low + step for low, step in zip(lowest, steps, strict=True)]
        in_map = _all(
            (index >= 0) & (index < pixels) for index, pixels in zip(indices, size, strict=True)
        )
        clipped = [jnp.clip(i, 0, pixels - 1) for i, pixels in zip(indices, size, strict=True)]
        weight = _product(
            fraction if step else 1 - fraction
            for fraction, step in zip(fractions, steps, strict=True)
        )
        # By the legacy rule, the last pixel stands in for the pixel beyond.
        read = inside if boundary == "legacy" else inside & in_map
        return Corner(clipped, weight + undefined, read)

    steps = (0,) if whole_positions else (0, 1)
    return list(map(corner, itertools.product(steps, repeat=len(positions))))


def is_inside(positions: Sequence[jax.Array], size: Sequence[Size], boundary: str) -> jax.Array:
    """Whether positions are inside a map of this size, by the boundary rule:

    * `"padded"`: -1 < h < H on every axis; the map continues with zeros
    * `"legacy"`: 0 <= h < H on every axis; the last pixel continues to the edge
    """
    above = jnp.greater if boundary == "padded" else jnp.greater_equal
    lowest = -1 if boundary == "padded" else 0
    return _all(
        above(position, lowest) & (position < jnp.asarray(pixels, position.dtype))
        for position, pixels in zip(positions, size, strict=True)
    )


def _undefined(positions: Sequence[jax.Array]) -> jax.Array:
    """NaN, with a derivative that is NaN, where a coordinate is NaN; else zero."""
    is_nan = ~_all(~jnp.isnan(position) for position in positions)
    # Squared, so that the derivative is NaN, too.
    return jnp.where(is_nan, _sum(positions), 0) ** 2


def _all(conditions: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(operator.and_, conditions)


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    # Not `sum`, which would begin with zero: a negative zero would not survive.
    return functools.reduce(operator.add, terms)


def _product(factors: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(operator.mul, factors)
