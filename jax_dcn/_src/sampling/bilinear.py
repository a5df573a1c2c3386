# SPDX-License-Identifier: MIT
"""Multilinear interpolation of a map at any positions, and the boundary rules, in `jax.numpy`."""

import functools
import itertools
import operator
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np


def sample(x: jax.Array, positions: Sequence[jax.Array], boundary: str) -> jax.Array:
    """Reads a map at positions by multilinear interpolation; for two axes (bilinear):

    v = (1 - a)(1 - b) x[h0, w0] + (1 - a) b x[h0, w0 + 1] + a (1 - b) x[h0 + 1, w0] + a b x[h0 + 1, w0 + 1]

    with h0 = floor(h), a = h - h0, w0 = floor(w), b = w - w0. The derivative through `floor` is the
    right-hand derivative at whole numbers, as the operators are defined.

    Args:
      x: The map, `[*size, G, C]`: `G` groups of channels, each sampled at positions of its own.
      positions: For each axis of the map, coordinates `[..., G, K]` in pixels. The dtype is that of
        the result.
      boundary: Which positions are inside the map, see `is_inside`.

    Returns:
      `[..., G, K, C]`: zero outside the map, and NaN where a coordinate is NaN.
    """
    rank = len(positions)
    size, groups = x.shape[:rank], x.shape[rank]
    inside = is_inside(positions, size, boundary)
    # Positions outside are replaced before use: no conversion of a huge or undefined number to an
    # integer, and no gradient.
    replaced = [jnp.where(inside, position, 0) for position in positions]
    floors = [jnp.floor(position) for position in replaced]
    fractions = [position - floor for position, floor in zip(replaced, floors, strict=True)]
    lowest = [floor.astype(jnp.int32) for floor in floors]
    group = np.arange(groups, dtype=np.int32).reshape((1,) * (inside.ndim - 2) + (groups, 1))

    def corner(steps: tuple[int, ...]) -> jax.Array:
        indices = [low + step for low, step in zip(lowest, steps, strict=True)]
        in_map = _all(
            (index >= 0) & (index < pixels) for index, pixels in zip(indices, size, strict=True)
        )
        # By the legacy rule, the last pixel stands in for the pixel beyond.
        read = inside if boundary == "legacy" else inside & in_map
        clipped = [jnp.clip(i, 0, pixels - 1) for i, pixels in zip(indices, size, strict=True)]
        value = x.at[(*clipped, group)].get(mode="promise_in_bounds").astype(positions[0].dtype)
        weight = _product(
            fraction if step else 1 - fraction
            for fraction, step in zip(fractions, steps, strict=True)
        )
        # Selected, not multiplied by zero: an infinity outside must not become a NaN.
        return weight[..., None] * jnp.where(read[..., None], value, 0)

    total = _sum(map(corner, itertools.product((0, 1), repeat=rank)))
    return total + _undefined(positions)[..., None]


def is_inside(positions: Sequence[jax.Array], size: Sequence[int], boundary: str) -> jax.Array:
    """Whether positions are inside a map of this size, by the boundary rule:

    * `"padded"`: -1 < h < H on every axis; the map continues with zeros
    * `"legacy"`: 0 <= h < H on every axis; the last pixel continues to the edge
    """
    above = jnp.greater if boundary == "padded" else jnp.greater_equal
    lowest = -1 if boundary == "padded" else 0
    return _all(
        above(position, lowest) & (position < pixels)
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
