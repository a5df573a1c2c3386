# SPDX-License-Identifier: MIT
"""The public function `ms_deform_attn`: multi-scale deformable attention."""

from __future__ import annotations  # not evaluated: jaxtyping is for readers and type checkers

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from jax_dcn._src.arguments import array, choice, is_sequence, renamed
from jax_dcn._src.deform_aggregate.function import aggregate
from jax_dcn._src.deform_aggregate.geometry import (
    AggregateGeometry,
    aggregate_geometry,
    map_shapes,
)
from jax_dcn._src.operator.dtypes import sum_dtype
from jax_dcn._src.operator.implementation import Implementation
from jax_dcn._src.operator.merging import merged
from jax_dcn._src.operator.sizes import fits
from jax_dcn._src.public import public

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Names of arguments in other libraries, and their names here.
_ARGUMENTS = {
    "value_spatial_shapes": "spatial_shapes",
    "spatial_shapes_list": "spatial_shapes",
    "sampling_locations": "locations",
    "attention_weights": "weights",
    "num_points_list": "points",
}
STARTS = "levels begin where spatial_shapes says"
_ABSENT = {
    "level_start_index": STARTS,
    "value_level_start_index": STARTS,
    "im2col_step": "the whole batch is computed at once",
}

METHODS = ("bilinear", "discrete")
_LOCATIONS = "[..., Q, M, L, P, 2]"


@public("jax_dcn")
@renamed(_ARGUMENTS, _ABSENT)
def ms_deform_attn(
    value: Float[Array, "*batch S M D"],
    locations: Float[Array, "*batch Q M ... 2"],
    weights: Float[Array, "*batch Q M ..."],
    *,
    spatial_shapes: Sequence[tuple[int, int]],
    points: Sequence[int] | None = None,
    method: Literal["bilinear", "discrete"] = "bilinear",
    implementation: Implementation = None,
) -> Float[Array, "*batch Q M*D"]:
    r"""Multi-scale deformable attention, the core of Deformable DETR and its successors.

    Head :math:`m` of query :math:`q` gets

    .. math:: y(q)_m = \sum_{l, p} A_{mlp}(q) \; v_l(\phi_{mlp}(q))_m,

    the weighted sum of samples of the value maps :math:`v_l`, read by bilinear interpolation. The
    layer around the operator, `jax_dcn.nnx.MSDeformAttn`, has the projections, the softmax and the
    padding mask. Axes: `S` pixels of all levels, `M` heads, `D` channels of a head, `Q` queries, `L`
    levels, `P` points.

    Args:
      value: The projected maps, `[..., S, M, D]`: one level after the other, each row by row. Any
        number of leading axes, zero included, are batch axes.
      locations: Where to sample, `[..., Q, M, L, P, 2]` or `[..., Q, M, sum(points), 2]`, last axis
        `(x, y)`: 0 and 1 are the outer edges of the level's map.
      weights: Attention weights after the softmax, `[..., Q, M, L, P]` or `[..., Q, M, sum(points)]`.
      spatial_shapes: `(height, width)` of each level, static; `S` is the sum of their products.
      points: Points of each level, where they differ (RT-DETRv2, D-FINE). `None`: `P` for each.
      method: `"bilinear"`, or `"discrete"` (RT-DETRv2): the value at the pixel
        `trunc(location * size + 0.5)`, clamped to the map; locations then have no gradient.
      implementation: `"native"`, `"xla"`, or a sequence of these to try in order. `None` takes the
        best that can run.

    Returns:
      `[..., Q, M * D]`, heads outermost, in the dtype of `value`. Coordinates and sums are computed in
      float32, or in float64 where `value` is: in bfloat16 a location could miss by half a pixel.

    Raises:
      ValueError: if shapes, dtypes or options disagree; the message names the argument.
      NotImplementedError: if `implementation` cannot run here; the message says why.

    Note:
      A sample counts if `-1 < y < H and -1 < x < W` in pixels, as in the published CUDA kernel;
      at a whole number the derivative is the right-hand one. A NaN location gives NaN.

    Examples:
      >>> import jax.numpy as jnp, jax_dcn
      >>> shapes = ((8, 8), (4, 4))
      >>> value = jnp.ones((2, 80, 4, 16))
      >>> locations = jnp.full((2, 100, 4, 2, 3, 2), 0.5)
      >>> weights = jnp.full((2, 100, 4, 2, 3), 1 / 6)
      >>> jax_dcn.ms_deform_attn(value, locations, weights, spatial_shapes=shapes).shape
      (2, 100, 64)

    References:
      Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR
      2021. Lv et al., "RT-DETRv2", 2024.
    """
    value = array("value", value, "[..., S, M, D]")
    locations = array("locations", locations, _LOCATIONS)
    weights = array("weights", weights, "[..., Q, M, L, P]")
    shapes = map_shapes("spatial_shapes", spatial_shapes)
    choice("method", method, METHODS)
    _check_value(value, shapes)
    _check_points(points, locations, len(shapes), value.ndim)
    locations, weights = _flat_samples(value, locations, weights, len(shapes))
    geometry = aggregate_geometry(shapes, locations.shape[-2], points, of="locations")

    if method == "bilinear":
        geometry = dataclasses.replace(geometry, unit_square=True)
    else:
        locations = _pixel(locations.astype(sum_dtype(value)), geometry)
        geometry = dataclasses.replace(geometry, whole_positions=True)
    value = merged(value, value.ndim - 2)
    return aggregate(value, locations, weights, geometry, implementation)


def _check_value(value: jax.Array, shapes: tuple[tuple[int, int], ...]) -> None:
    pixels = sum(height * width for height, width in shapes)
    if value.ndim < 3 or not fits(value.shape[-3:-2], (pixels,)):
        raise ValueError(
            f"value must be [..., S, M, D] with the S={pixels} pixels of spatial_shapes={shapes}, "
            f"got shape {value.shape}."
        )
    if not all(value.shape[-2:]):
        raise ValueError(f"value must have heads and channels, got shape {value.shape}.")


def _flat_samples(
    value: jax.Array, locations: jax.Array, weights: jax.Array, levels: int
) -> tuple[jax.Array, jax.Array]:
    """Locations `[..., Q, M, L * P, 2]` and weights `[..., Q, M, L * P]`."""
    batch, heads = value.shape[:-3], value.shape[-2]
    flat = len(batch) + 4
    expected = (
        f"expected [..., Q, {heads}, {levels}, P, 2] or [..., Q, {heads}, sum(points), 2] with the "
        f"batch axes {batch} of value, got shape {locations.shape}."
    )
    if locations.ndim not in (flat, flat + 1) or locations.shape[-1] != 2:
        raise ValueError(f"locations does not fit value and spatial_shapes: {expected}")
    by_level = locations.ndim == flat + 1
    if not fits(locations.shape[: len(batch)], batch) or locations.shape[len(batch) + 1] != heads:
        raise ValueError(f"locations does not fit value: {expected}")
    if by_level and locations.shape[-3] != levels:
        raise ValueError(f"locations does not fit spatial_shapes: {expected}")
    if not fits(weights.shape, locations.shape[:-1]):
        raise ValueError(
            f"weights does not fit locations: expected {locations.shape[:-1]}, got {weights.shape}."
        )
    if not by_level:
        return locations, weights
    return merged(locations, locations.ndim - 3), merged(weights, weights.ndim - 2)


def _check_points(points: Any, locations: jax.Array, levels: int, value_rank: int) -> None:
    """Refuses `points` that contradict `locations [..., L, P, 2]`, where each level has P points."""
    by_level = locations.ndim == value_rank + 2
    if points is None or not by_level:
        return
    if not is_sequence(points) or list(points) != [locations.shape[-2]] * levels:
        raise ValueError(
            f"points must be None with locations {_LOCATIONS}, which have "
            f"{locations.shape[-2]} points for each level, got {points!r}."
        )


def _pixel(locations: jax.Array, geometry: AggregateGeometry) -> jax.Array:
    """The pixel `(y, x)` that the discrete method reads, without a gradient."""
    sizes = _sizes_of_samples(locations, geometry)
    pixel = jax.lax.stop_gradient(jnp.trunc(locations * sizes + 0.5))
    return jnp.clip(pixel, jnp.zeros_like(pixel), sizes - 1)[..., ::-1]


def _sizes_of_samples(locations: jax.Array, geometry: AggregateGeometry) -> jax.Array:
    """`(width, height)` of the level of each sample, `[1, ..., 1, T, 2]`; a size may be free."""
    sizes = [
        jnp.asarray(size, locations.dtype)
        for shape, points in zip(geometry.shapes, geometry.points, strict=True)
        for size in shape[::-1] * points
    ]
    # jnp.stack takes no empty list.
    stacked = jnp.stack(sizes) if sizes else jnp.zeros(0, locations.dtype)
    return stacked.reshape((1,) * (locations.ndim - 2) + locations.shape[-2:])
