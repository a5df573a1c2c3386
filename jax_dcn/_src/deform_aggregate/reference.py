# SPDX-License-Identifier: MIT
"""Deformable aggregation in plain `jax.numpy`.

Arrays are as implementations receive them: exactly one batch axis; `positions` and `weights` in the
dtype of coordinates and sums; `weights` without samples (`[..., G, 0]`) where all weights are one.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.deform_aggregate.geometry import AggregateGeometry
from jax_dcn._src.deform_aggregate.signature import SIGNATURE
from jax_dcn._src.operator import derivatives
from jax_dcn._src.operator.blockwise import blockwise
from jax_dcn._src.public import public
from jax_dcn._src.sampling.bilinear import corners


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
    # The four corners of the samples, and their cotangents.
    query_bytes = 2 * 4 * samples * x.shape[-1] * positions.dtype.itemsize
    group = np.arange(groups, dtype=np.int32)[:, None]

    def image(x: jax.Array, positions: jax.Array, weights: jax.Array) -> jax.Array:
        # Widened before it is read, so that the gradient of x is summed in the wide dtype. Corners
        # that do not count read a zero behind the last pixel.
        x = jnp.pad(x.astype(positions.dtype), ((0, 1), (0, 0)))
        x = x.reshape(x.shape[0], groups, -1)

        def query(positions: jax.Array, weights: jax.Array) -> jax.Array:
            pixels, factors = _corners(positions, weights, geometry)
            values = x.at[pixels, group].get(mode="promise_in_bounds")
            return jnp.einsum("gt,gtc->gc", factors, values, precision="highest").reshape(-1)

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
    operands = dict(zip(SIGNATURE.operands, (x, positions, weights), strict=True))
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
    operands = dict(zip(SIGNATURE.operands, (x, positions, weights), strict=True))
    return derivatives.vjp(functools.partial(deform_aggregate, **options), operands, wrt, grad_y)


def _corners(
    positions: jax.Array, weights: jax.Array, geometry: AggregateGeometry
) -> tuple[jax.Array, jax.Array]:
    """The pixels that the samples of a query read, and their factors, both `[G, corners of T]`."""
    height, width, first = _maps_of_samples(geometry)
    if geometry.unit_square:
        sizes = jnp.stack([height, width], axis=-1).astype(positions.dtype)
        positions = positions[..., ::-1] * sizes - 0.5
    pixels, factors = [], []
    coordinates = positions[..., 0], positions[..., 1]
    whole = geometry.whole_positions
    for corner in corners(coordinates, (height, width), geometry.boundary, whole):
        row, column = corner.indices
        pixels.append(jnp.where(corner.read, first + row * width + column, geometry.pixels))
        factors.append(corner.weight * weights if weights.shape[1] else corner.weight)
    # Flat: XLA sums over one axis faster than over two.
    rows = (len(positions), len(factors) * positions.shape[1])
    return jnp.stack(pixels, axis=-1).reshape(rows), jnp.stack(factors, axis=-1).reshape(rows)


def _maps_of_samples(geometry: AggregateGeometry) -> list[jax.Array]:
    """The height, the width and the first pixel of the map of each sample, all `[1, T]`."""
    sizes = [height * width for height, width in geometry.shapes]
    firsts = itertools.accumulate(sizes[:-1], initial=0)
    heights, widths = zip(*geometry.shapes, strict=True)
    # Sizes may be free.
    arrays = [
        jnp.stack([jnp.asarray(value, np.int32) for value in of_maps])
        for of_maps in (heights, widths, firsts)
    ]
    points, samples = np.array(geometry.points), sum(geometry.points)
    return [jnp.repeat(array, points, total_repeat_length=samples)[None] for array in arrays]
