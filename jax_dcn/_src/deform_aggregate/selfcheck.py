# SPDX-License-Identifier: MIT
"""The problems of deformable aggregation for the selfcheck of an installation."""

import jax
import numpy as np

from jax_dcn._src.deform_aggregate.attention import ms_deform_attn
from jax_dcn._src.deform_aggregate.dcnv3 import dcnv3
from jax_dcn._src.deform_aggregate.dcnv4 import dcnv4
from jax_dcn._src.deform_aggregate.function import deform_aggregate
from jax_dcn._src.deform_aggregate.grid_sample import grid_sample
from jax_dcn._src.operator.implementation import Name
from jax_dcn._src.operator.problem import Problem, draw, draw_mask

_SHAPES = ((7, 9), (3, 4))


def _aggregate(
    x: jax.Array, positions: jax.Array, weights: jax.Array, *, implementation: Name
) -> jax.Array:
    return deform_aggregate(
        x, positions, weights, shapes=_SHAPES, points=(2, 3), implementation=implementation
    )


def _attend(
    value: jax.Array, locations: jax.Array, weights: jax.Array, *, implementation: Name
) -> jax.Array:
    return ms_deform_attn(
        value, locations, weights, spatial_shapes=_SHAPES, implementation=implementation
    )


def _sample(x: jax.Array, grid: jax.Array, *, implementation: Name) -> jax.Array:
    return grid_sample(x, grid, padding_mode="reflection", implementation=implementation)


def _stretched(
    x: jax.Array, offset: jax.Array, mask: jax.Array, *, implementation: Name
) -> jax.Array:
    return dcnv3(x, offset, mask, offset_scale=2.0, implementation=implementation)


def _packed(x: jax.Array, offset_mask: jax.Array, *, implementation: Name) -> jax.Array:
    return dcnv4(x, offset_mask, groups=4, remove_center=True, implementation=implementation)


def _aggregate_arrays(dtype: np.dtype) -> tuple[np.ndarray, ...]:
    x = draw(0, 2, 75, 16).astype(dtype)
    return x, 4 + 3 * draw(1, 2, 13, 4, 5, 2), draw_mask(2, 2, 13, 4, 5)


def _attention_arrays(dtype: np.dtype) -> tuple[np.ndarray, ...]:
    value = draw(0, 2, 75, 4, 8).astype(dtype)
    return value, draw_mask(1, 2, 13, 4, 2, 3, 2), draw_mask(2, 2, 13, 4, 2, 3)


def _grid_arrays(dtype: np.dtype) -> tuple[np.ndarray, ...]:
    return draw(0, 2, 7, 9, 8).astype(dtype), draw(1, 2, 5, 6, 2)


def _dcn3_arrays(dtype: np.dtype) -> tuple[np.ndarray, ...]:
    x = draw(0, 2, 5, 6, 16).astype(dtype)
    return x, draw(1, 2, 5, 6, 4, 9, 2), draw_mask(2, 2, 5, 6, 4, 9)


def _dcn4_arrays(dtype: np.dtype) -> tuple[np.ndarray, ...]:
    return draw(0, 2, 5, 6, 16).astype(dtype), draw(1, 2, 5, 6, 96)


AGGREGATE = Problem(_aggregate, _aggregate_arrays)
ATTENTION = Problem(_attend, _attention_arrays)
DCN3 = Problem(_stretched, _dcn3_arrays)
DCN4 = Problem(_packed, _dcn4_arrays)
GRID = Problem(_sample, _grid_arrays)
