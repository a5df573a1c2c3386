# SPDX-License-Identifier: MIT
"""The public function `deform_aggregate`."""

from __future__ import annotations  # not evaluated: jaxtyping is for readers and type checkers

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jax_dcn._src.arguments import LIMIT, array, optional_array
from jax_dcn._src.deform_aggregate.geometry import AggregateGeometry, aggregate_geometry
from jax_dcn._src.deform_aggregate.rules import deform_aggregate_p
from jax_dcn._src.operator.dtypes import sum_dtype
from jax_dcn._src.operator.implementation import Implementation, implementation_names
from jax_dcn._src.operator.sizes import fits, is_free
from jax_dcn._src.public import public
from jax_dcn._src.sampling.bilinear import Boundary

if TYPE_CHECKING:
    from jaxtyping import Array, Float


_POSITIONS = "[..., Q, G, T, 2]"


@public("jax_dcn")
def deform_aggregate(
    x: Float[Array, "*batch S C"],
    positions: Float[Array, "*batch Q G T 2"],
    weights: Float[Array, "*batch Q G T"] | None = None,
    *,
    shapes: Sequence[tuple[int, int]],
    points: Sequence[int] | None = None,
    boundary: Boundary = "padded",
    implementation: Implementation = None,
) -> Float[Array, "*batch Q C"]:
    r"""Sums weighted samples of one or several maps.

    Query :math:`q` of channel :math:`c` gets

    .. math:: y(q)_c = \sum_t w_t(q, g) \; x_{l(t)}(p_t(q, g))_c,

    where :math:`g` is the group of channel :math:`c`, :math:`l(t)` the map of sample :math:`t`, and a
    map is read by bilinear interpolation. Deformable attention, DCNv3, DCNv4 and `grid_sample` are
    such sums. Axes: `S` pixels of all maps, `C` channels, `Q` queries, `G` groups, `T` samples.

    Args:
      x: The maps, `[..., S, C]`: one map after the other, each row by row. Any number of leading
        axes, zero included, are batch axes.
      positions: Positions of the samples `[..., Q, G, T, 2]`, last axis `(y, x)`, in pixels of the
        sample's map: 0 is the centre of the first pixel. `G` divides `C`, and channel `c` uses
        group `c // (C // G)`. Samples are ordered by map.
      weights: Weights of the samples `[..., Q, G, T]`. `None`: every weight is one.
      shapes: `(height, width)` of each map, static; `S` is the sum of their products.
      points: Samples of each map, which sum to `T`. `None` splits `T` evenly.
      boundary: `"padded"`: maps continue with zeros, so a sample counts if `-1 < y < H and
        -1 < x < W`. `"legacy"`: a sample counts if `0 <= y < H and 0 <= x < W`, and the last row
        and column extend to the edge. Outside, values and gradients are zero. At whole numbers the
        derivative is the right-hand one.
      implementation: `"native"` (the C++ kernel on CPU, CUDA on GPU), `"xla"`, or a sequence of these
        to try in order. `None` takes the best that can run.

    Returns:
      `[..., Q, C]`, in the dtype of `x`. Positions and sums are computed in float32, or in float64
      where `x` is: float64 positions of float32 maps are rounded to float32.

    Raises:
      ValueError: if shapes, dtypes or options disagree; the message names the argument.
      NotImplementedError: if `implementation` cannot run here; the message says why.

    Note:
      The native kernels are bitwise reproducible: the same inputs give the same bits on the same
      device, gradients included, whatever the number of threads; only the sign of a NaN may differ.
      An infinite or huge position is outside its map. A NaN position gives NaN for its query and
      group, and in its own gradients.

    Examples:
      >>> import jax.numpy as jnp, jax_dcn
      >>> x = jnp.ones((2, 8 * 8 + 4 * 4, 32))
      >>> positions = jnp.ones((2, 100, 4, 6, 2))
      >>> jax_dcn.deform_aggregate(x, positions, shapes=((8, 8), (4, 4))).shape
      (2, 100, 32)

    References:
      Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR
      2021. Wang et al., "InternImage", CVPR 2023.
    """
    x, positions = array("x", x, "[..., S, C]"), array("positions", positions, _POSITIONS)
    weights = optional_array("weights", weights, "[..., Q, G, T]")
    _check_ranks(x, positions)
    geometry = aggregate_geometry(shapes, positions.shape[-2], points, boundary)
    _check_shapes(x, positions, weights, geometry)

    return aggregate(x, positions, weights, geometry, implementation)


def aggregate(
    x: jax.Array,
    positions: jax.Array,
    weights: jax.Array | None,
    geometry: AggregateGeometry,
    implementation: Implementation,
) -> jax.Array:
    """The aggregation of arrays that are known to fit together."""
    if not is_free(geometry.pixels) and geometry.pixels >= LIMIT:
        raise ValueError(f"x must have less than 2**31 pixels in an image, got {geometry.pixels}.")
    wide = sum_dtype(x)
    batch = x.shape[:-2] or (1,)
    if weights is None:
        weights = jnp.zeros((*positions.shape[:-2], 0), wide)
    with jax.named_scope("deform_aggregate"):
        (y,) = deform_aggregate_p.bind(
            x.reshape(batch + x.shape[-2:]),
            positions.reshape(batch + positions.shape[-4:]).astype(wide),
            weights.reshape(batch + weights.shape[-3:]).astype(wide),
            geometry=geometry,
            implementation=implementation_names(implementation),
        )
    return checkpoint_name(y.reshape(x.shape[:-2] + y.shape[-2:]), "deform_aggregate")


def _check_ranks(x: jax.Array, positions: jax.Array) -> None:
    if x.ndim < 2:
        raise ValueError(f"x must have at least 2 axes, [..., S, C], got shape {x.shape}.")
    if positions.ndim != x.ndim + 2 or positions.shape[-1] != 2:
        raise ValueError(
            f"positions must be {_POSITIONS} with the batch axes of x, which has shape "
            f"{x.shape}, got shape {positions.shape}."
        )


def _check_shapes(
    x: jax.Array,
    positions: jax.Array,
    weights: jax.Array | None,
    geometry: AggregateGeometry,
) -> None:
    if not fits(x.shape[-2:-1], (geometry.pixels,)):
        raise ValueError(
            f"x must have the pixels of all maps: expected {geometry.pixels} for "
            f"shapes={geometry.shapes}, got {x.shape[-2]} in shape {x.shape}."
        )
    if not fits(positions.shape[:-4], x.shape[:-2]):
        raise ValueError(
            f"positions must have the batch axes of x: expected {x.shape[:-2]}, got "
            f"{positions.shape[:-4]} in shape {positions.shape}."
        )
    groups, channels = positions.shape[-3], x.shape[-1]
    if not channels or not groups or channels % groups:
        raise ValueError(
            f"positions has {groups} groups, which must divide the {channels} channels of x: "
            f"expected {_POSITIONS}, got shape {positions.shape}."
        )
    if weights is not None and not fits(weights.shape, positions.shape[:-1]):
        raise ValueError(
            f"weights does not fit positions: expected {positions.shape[:-1]}, got {weights.shape}."
        )
