# SPDX-License-Identifier: MIT
"""Deformable aggregation in plain `jax.numpy`.

Arrays are as implementations receive them: exactly one batch axis; `positions` and `weights` in the
dtype of coordinates and sums; `weights` without samples (`[..., G, 0]`) where all weights are one.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.deform_aggregate.geometry import AggregateGeometry
from jax_dcn._src.deform_aggregate.signature import OPERANDS
from jax_dcn._src.operator import derivatives
from jax_dcn._src.operator.blockwise import blockwise
from jax_dcn._src.public import public
from jax_dcn._src.sampling.bilinear import sample


@public("jax_dcn.reference")
def deform_aggregate(
    x: jax.Array, positions: jax.Array, weights: jax.Array, *, geometry: AggregateGeometry
) -> jax.Array:
    """See `jax_dcn.deform_aggregate`.

    Args:
      x: `[N, S, C]`.
      positions: `[N, Q, G, T, 2]`, pixels of the map of each sample, last axis `(y, x)`; or, with
        `geometry.unit_square`, `(x, y)` where 0 and 1 are the outer edges of the map.
      weights: `[N, Q, G, T]`, or `[N, Q, G, 0]` where all weights are one.

    Returns:
      `[N, Q, C]`, dtype of `x`.
    """
    _, queries, groups, samples, _ = positions.shape
    query_bytes = samples * x.shape[-1] * positions.dtype.itemsize

    def image(x: jax.Array, positions: jax.Array, weights: jax.Array) -> jax.Array:
        # Widened before it is read, so that the gradient of x is summed in the wide dtype.
        maps = _maps(x.astype(positions.dtype).reshape(x.shape[0], groups, -1), geometry)

        def query(positions: jax.Array, weights: jax.Array) -> jax.Array:
            pixels = _in_pixels(_by_map(positions, geometry), geometry)
            terms = zip(maps, pixels, _by_map(weights, geometry), strict=True)
            sums = (_sum(*term, geometry.boundary) for term in terms)
            return functools.reduce(jnp.add, sums).reshape(-1)

        return blockwise(query, (positions, weights), query_bytes)

    return blockwise(image, (x, positions, weights), query_bytes * queries).astype(x.dtype)


@public("jax_dcn.reference")
def deform_aggregate_jvp(
    x: jax.Array,
    positions: jax.Array,
    weights: jax.Array,
    *tangents: jax.Array,
    wrt: Sequence[str],
    **options: Any,
) -> jax.Array:
    """The tangent of the output along `tangents`, one for each operand named in `wrt`."""
    operands = dict(zip(OPERANDS, (x, positions, weights), strict=True))
    return derivatives.jvp(functools.partial(deform_aggregate, **options), operands, wrt, tangents)


@public("jax_dcn.reference")
def deform_aggregate_backward(
    x: jax.Array,
    positions: jax.Array,
    weights: jax.Array,
    grad_y: jax.Array,
    *,
    wrt: Sequence[str],
    **options: Any,
) -> tuple[jax.Array, ...]:
    """The cotangents of the operands named in `wrt` for the output's cotangent `grad_y`."""
    operands = dict(zip(OPERANDS, (x, positions, weights), strict=True))
    return derivatives.vjp(functools.partial(deform_aggregate, **options), operands, wrt, grad_y)


def _maps(x: jax.Array, geometry: AggregateGeometry) -> list[jax.Array]:
    """The maps `[H, W, G, C // G]` of `x [S, G, C // G]`."""
    ends = np.cumsum([height * width for height, width in geometry.shapes])
    parts = jnp.split(x, ends[:-1])
    return [
        part.reshape(*shape, *x.shape[1:])
        for part, shape in zip(parts, geometry.shapes, strict=True)
    ]


def _by_map(array: jax.Array, geometry: AggregateGeometry) -> list[jax.Array]:
    """Splits the samples of `[G, T, ...]` by the map that they read."""
    if not array.shape[1]:
        return [array] * len(geometry.points)
    return jnp.split(array, np.cumsum(geometry.points)[:-1], axis=1)


def _in_pixels(positions: list[jax.Array], geometry: AggregateGeometry) -> list[jax.Array]:
    """Positions `(y, x)` in pixels, of the samples of each map."""
    if not geometry.unit_square:
        return positions
    return [
        of_map[..., ::-1] * _sizes(shape, of_map) - 0.5
        for of_map, shape in zip(positions, geometry.shapes, strict=True)
    ]


def _sizes(shape: tuple[Any, Any], of_map: jax.Array) -> jax.Array:
    """The height and the width of a map, which may be free, with as many axes as the positions."""
    sizes = jnp.stack([jnp.asarray(size, of_map.dtype) for size in shape])
    return sizes.reshape((1,) * (of_map.ndim - 1) + (2,))


def _sum(x: jax.Array, positions: jax.Array, weights: jax.Array, boundary: str) -> jax.Array:
    """The weighted sum `[G, C // G]` of the samples `[G, T]` of one map."""
    samples = sample(x, (positions[..., 0], positions[..., 1]), boundary)
    if weights.shape[1]:
        samples = samples * weights[..., None]
    return samples.sum(1)
