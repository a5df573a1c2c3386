# SPDX-License-Identifier: MIT
"""The public function `grid_sample`."""

from __future__ import annotations  # not evaluated: jaxtyping is for readers and type checkers

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp

from jax_dcn._src.arguments import array, choice, flag, renamed
from jax_dcn._src.deform_aggregate.function import aggregate
from jax_dcn._src.deform_aggregate.geometry import AggregateGeometry
from jax_dcn._src.operator.dtypes import sum_dtype
from jax_dcn._src.operator.implementation import Implementation
from jax_dcn._src.operator.merging import merged, parted, whole
from jax_dcn._src.operator.sizes import fits
from jax_dcn._src.public import public

if TYPE_CHECKING:
    from jaxtyping import Array, Float

MODES = ("bilinear", "nearest", "bicubic")
PADDING_MODES = ("zeros", "border", "reflection")

_FARTHEST = 2.0**30  # pixels: further than any pixel


@public("jax_dcn")
@renamed({"input": "x"})
def grid_sample(
    x: Float[Array, "*batch H W C"],
    grid: Float[Array, "*batch Ho Wo 2"],
    *,
    mode: Literal["bilinear", "nearest", "bicubic"] = "bilinear",
    padding_mode: Literal["zeros", "border", "reflection"] = "zeros",
    align_corners: bool = False,
    implementation: Implementation = None,
) -> Float[Array, "*batch Ho Wo C"]:
    """Samples images at normalised positions, as `torch.nn.functional.grid_sample` does.

    Axes: `H W` image, `Ho Wo` grid, `C` channels.

    Args:
      x: Images, `[..., H, W, C]`. Any number of leading axes, zero included, are batch axes.
      grid: Positions `[..., Ho, Wo, 2]`, last axis `(x, y)`; -1 and 1 are the edges of the image.
      mode: `"bilinear"`, `"nearest"` (half to even, no gradient for `grid`) or `"bicubic"`.
      padding_mode: What lies outside the image: `"zeros"`, `"border"` (the nearest pixel of the
        border) or `"reflection"` (the image reflected at its edges).
      align_corners: Whether -1 and 1 are the centres of the corner pixels (`True`) or the outer
        edges of the image (`False`).
      implementation: `"native"`, `"xla"`, or a sequence of these to try in order. `None` takes the
        best that can run.

    Returns:
      `[..., Ho, Wo, C]`, in the dtype of `x`. Coordinates and sums are computed in float32, or in
      float64 where `x` is.

    Raises:
      ValueError: if shapes, dtypes or options disagree; the message names the argument.
      NotImplementedError: if `implementation` cannot run here; the message says why.

    Note:
      Values and gradients equal PyTorch's, except for a position that is NaN, which gives NaN here,
      for an infinite position, which gives a number here in every mode, and for a position exactly
      one pixel before the first, where the gradient is zero here.

    Examples:
      >>> import jax.numpy as jnp, jax_dcn
      >>> x, grid = jnp.ones((2, 8, 9, 3)), jnp.zeros((2, 4, 5, 2))
      >>> jax_dcn.grid_sample(x, grid).shape
      (2, 4, 5, 3)
    """
    x, grid = array("x", x, "[..., H, W, C]"), array("grid", grid, "[..., Ho, Wo, 2]")
    flag("align_corners", align_corners)
    _check(x, grid, mode, padding_mode)
    size = (x.shape[-3], x.shape[-2])
    rows = x.ndim - 3  # the axis of rows, of images, grid and results
    wide = merged(whole(grid.astype(sum_dtype(x)), grid.ndim - 1), rows)
    coordinates = [_in_pixels(wide[..., 1 - i], size[i], align_corners) for i in range(2)]

    def inside(coordinate: jax.Array, axis: int) -> jax.Array:
        return _padded(coordinate, size[axis], padding_mode, align_corners)

    positions, weights = _SAMPLES[mode](coordinates, inside)
    y = aggregate(
        merged(x, rows),
        jnp.expand_dims(jnp.stack(positions, axis=-1), -3),
        None if weights is None else jnp.expand_dims(weights, -2),
        AggregateGeometry((size,), positions[0].shape[-1:], whole_positions=mode != "bilinear"),
        implementation,
    )
    return parted(y, rows, *grid.shape[rows : rows + 2])


def _check(x: jax.Array, grid: jax.Array, mode: str, padding_mode: str) -> None:
    choice("mode", mode, MODES)
    choice("padding_mode", padding_mode, PADDING_MODES)
    if x.ndim < 3 or 0 in x.shape[-3:]:
        raise ValueError(f"x must be [..., H, W, C] with pixels and channels, got shape {x.shape}.")
    if grid.ndim != x.ndim or grid.shape[-1] != 2 or not fits(grid.shape[:-3], x.shape[:-3]):
        hint = " Volumes are not sampled." if grid.shape[-1:] == (3,) else ""
        raise ValueError(
            f"grid must be [..., Ho, Wo, 2] with the batch axes {x.shape[:-3]} of x, got shape "
            f"{grid.shape}.{hint}"
        )


def _in_pixels(normalised: jax.Array, size: int, align_corners: bool) -> jax.Array:
    if align_corners:
        return (normalised + 1) / 2 * (size - 1)
    return ((normalised + 1) * size - 1) / 2


def _padded(coordinate: jax.Array, size: int, padding_mode: str, align_corners: bool) -> jax.Array:
    """The coordinate that is read for `coordinate`, which may lie outside the image."""
    if padding_mode == "zeros":
        return coordinate
    if padding_mode == "reflection":
        coordinate = _reflected(coordinate, size, align_corners)
    # Selected, so that the gradient is zero where the border is read, the edge included.
    low = jnp.where(coordinate <= 0, 0, coordinate)
    return jnp.where(low >= size - 1, size - 1, low)


def _reflected(coordinate: jax.Array, size: int, align_corners: bool) -> jax.Array:
    """Reflects at the centres of the border's pixels if corners are aligned, else at its edges."""
    low, length = (0.0, size - 1) if align_corners else (-0.5, size)
    # The centres of an image of one pixel are no distance apart: any span reads the only pixel.
    span = jnp.maximum(jnp.asarray(length, coordinate.dtype), 1)
    distance = jnp.abs(_within_reach(coordinate) - low)
    flips = jnp.floor(distance / span)
    rest = distance - flips * span
    # Not `flips % 2`, which jax2onnx does not export for arrays of free size.
    odd = flips - 2 * jnp.floor(flips / 2)
    return jnp.where(odd == 0, rest, span - rest) + low


def _within_reach(coordinate: jax.Array) -> jax.Array:
    """The coordinate, limited to finite numbers: differences of infinities are NaN."""
    return jnp.clip(coordinate, -_FARTHEST, _FARTHEST)


# Each of these gives positions (y, x), `[..., T]`, and weights of the samples, for coordinates (y, x).
Coordinates = list[jax.Array]
Inside = Callable[[jax.Array, int], jax.Array]


def _bilinear(coordinates: Coordinates, inside: Inside) -> tuple[Coordinates, None]:
    return [inside(c, axis)[..., None] for axis, c in enumerate(coordinates)], None


def _nearest(coordinates: Coordinates, inside: Inside) -> tuple[Coordinates, None]:
    positions, _ = _bilinear(coordinates, inside)
    return [jax.lax.stop_gradient(jnp.round(position)) for position in positions], None


def _bicubic(coordinates: Coordinates, inside: Inside) -> tuple[Coordinates, jax.Array]:
    """Samples the 4x4 pixels around a position."""
    positions, weights = [], []
    for axis, coordinate in enumerate(map(_within_reach, coordinates)):
        before = jax.lax.stop_gradient(jnp.floor(coordinate))
        steps = jnp.arange(-1, 3, dtype=coordinate.dtype).reshape((1,) * coordinate.ndim + (4,))
        positions.append(inside(before[..., None] + steps, axis))
        weights.append(_cubic_weights((coordinate - before)[..., None] - steps))
    y, x = jnp.broadcast_arrays(positions[0][..., :, None], positions[1][..., None, :])
    flat = (*y.shape[:-2], 16)
    # The gradient of a product `[..., 4, 4]` crashes on CPU with three batch axes (XLA of JAX 0.10.2).
    products = [weights[0][..., row : row + 1] * weights[1] for row in range(4)]
    return [y.reshape(flat), x.reshape(flat)], jnp.concatenate(products, axis=-1)


def _cubic_weights(distance: jax.Array) -> jax.Array:
    """Keys' cubic convolution with a = -0.75, at a distance of less than two pixels."""
    a, d = -0.75, jnp.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return jnp.where(d <= 1, near, far)


_SAMPLES: dict[str, Callable[[Coordinates, Inside], tuple[Coordinates, jax.Array | None]]] = {
    "bilinear": _bilinear,
    "nearest": _nearest,
    "bicubic": _bicubic,
}
