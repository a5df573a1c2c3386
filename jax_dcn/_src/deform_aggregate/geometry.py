# SPDX-License-Identifier: MIT
"""The geometry of an aggregation: sizes of the maps, and samples of each map."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from jax_dcn._src.arguments import choice, is_integer, is_sequence
from jax_dcn._src.operator.sizes import is_free, is_image_size
from jax_dcn._src.public import public
from jax_dcn._src.sampling.bilinear import BOUNDARIES


@public("jax_dcn.reference")
@dataclasses.dataclass(frozen=True)
class AggregateGeometry:
    """The maps and the numbers of their samples: the options of a weighted sum, no sizes of arrays.

    Attributes:
      shapes: `(height, width)` of each map, in the order of the pixels of `x`.
      points: Samples of each map, in the order of the samples.
      boundary: `"padded"` or `"legacy"`, see `jax_dcn.deform_aggregate`.
      unit_square: Whether positions are `(x, y)`, where 0 and 1 are the outer edges of the map, not
        `(y, x)` in pixels.
      whole_positions: Whether every position is a pixel, so that no pixel beside it is read: an
        infinity or NaN there has no effect.
    """

    shapes: tuple[tuple[int, int], ...]
    points: tuple[int, ...]
    boundary: str = "padded"
    unit_square: bool = False
    whole_positions: bool = False

    @property
    def pixels(self) -> int:
        """Pixels of all maps."""
        return sum(map(math.prod, self.shapes))


def aggregate_geometry(
    shapes: Any, samples: int, points: Any = None, boundary: str = "padded", of: str = "positions"
) -> AggregateGeometry:
    """Validates the options of an aggregation as users write them.

    Args:
      shapes, points, boundary: As in `jax_dcn.deform_aggregate`.
      samples: Number of samples of a query and group.
      of: The argument that has these samples, for the error.

    Raises:
      ValueError: if an option has a wrong value; the message names it.
    """
    choice("boundary", boundary, BOUNDARIES)
    sizes = map_shapes("shapes", shapes)
    return AggregateGeometry(sizes, _points(points, samples, len(sizes), of), boundary)


def map_shapes(name: str, shapes: Any) -> tuple[tuple[int, int], ...]:
    """The sizes of maps as pairs of integers; `name` is the argument's name in the error."""
    if is_sequence(shapes) and len(shapes) and all(map(is_image_size, shapes)):
        return tuple((_known(height), _known(width)) for height, width in shapes)
    if isinstance(shapes, jax.core.Tracer):
        hint = " Make it static: static_argnums or static_argnames of jit."
    elif hasattr(shapes, "tolist") and not isinstance(shapes, np.ndarray):
        hint = f" Write {name}.tolist()."
    else:
        hint = ""
    raise ValueError(
        f"{name} must be a non-empty sequence of (height, width), positive integers known when the "
        f"function is traced, got {shapes!r}.{hint}"
    )


def _points(points: Any, samples: int, maps: int, of: str) -> tuple[int, ...]:
    if is_free(samples):
        raise ValueError(f"{of} must have a known number of samples, got {samples}.")
    if points is None:
        if samples % maps:
            raise ValueError(
                f"{of} has {samples} samples, which do not split evenly over {maps} maps: pass points, "
                "the number of samples of each map."
            )
        return (samples // maps,) * maps
    if not (is_sequence(points) and all(is_integer(n) and n >= 0 for n in points)):
        raise ValueError(f"points must be a sequence of integers >= 0, got {points!r}.")
    if len(points) != maps or sum(points) != samples:
        raise ValueError(
            f"points must have one number for each of the {maps} maps, with the sum {samples}, the "
            f"number of samples in {of}, got {tuple(points)}."
        )
    return tuple(map(int, points))


def _known(size: Any) -> Any:
    return size if is_free(size) else int(size)
