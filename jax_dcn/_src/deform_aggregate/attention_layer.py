# SPDX-License-Identifier: MIT
"""The parts of an attention layer that Flax NNX and Flax Linen share."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src import arguments
from jax_dcn._src.deform_aggregate.attention import METHODS, STARTS, ms_deform_attn
from jax_dcn._src.deform_aggregate.geometry import map_shapes
from jax_dcn._src.operator.implementation import Implementation, implementation_names
from jax_dcn._src.operator.sizes import fits

# Names of options in other libraries, and their names here.
OPTIONS = {
    "d_model": "features",
    "embed_dim": "features",
    "embed_dims": "features",
    "n_heads": "heads",
    "num_heads": "heads",
    "n_levels": "levels",
    "num_levels": "levels",
    "n_points": "points",
    "num_points": "points",
}

# Names of arguments of a call in other libraries, and their names here.
CALL_ARGUMENTS = {
    "hidden_states": "query",
    "reference_points": "reference",
    "encoder_hidden_states": "value",
    "input_flatten": "value",
    "input_spatial_shapes": "spatial_shapes",
    "spatial_shapes_list": "spatial_shapes",
}

# Arguments of a call in other libraries that have no counterpart.
_PADDING = "write value_mask=~{} instead, which is True for pixels that count"
_POSITIONS = "add the positions to query"
CALL_ABSENT = {
    "attention_mask": "write value_mask= instead, True for pixels that count",
    "padding_mask": _PADDING.format("padding_mask"),
    "input_padding_mask": _PADDING.format("input_padding_mask"),
    "key_padding_mask": _PADDING.format("key_padding_mask"),
    "level_start_index": STARTS,
    "input_level_start_index": STARTS,
    "query_pos": _POSITIONS,
    "position_embeddings": _POSITIONS,
    "identity": "add the identity to the result",
}

# The sizes of the levels; a size may be free.
Shapes = Sequence[tuple[Any, Any]]


class MSDeformAttnOptions(Protocol):
    """The options of a layer, which every `MSDeformAttn` has as attributes of these names."""

    features: int
    heads: int
    levels: int
    points: int | Sequence[int]
    value_projection: bool
    output_projection: bool
    offset_scale: float
    method: Any
    dtype: Any
    param_dtype: Any
    implementation: Implementation


def check_options(layer: MSDeformAttnOptions) -> None:
    """Raises `ValueError` for options that are wrong."""
    for name in ("features", "heads", "levels"):
        arguments.positive(name, getattr(layer, name))
    if layer.features % layer.heads:
        raise ValueError(f"heads={layer.heads} must divide features={layer.features}.")
    level_points(layer)
    for name in ("value_projection", "output_projection"):
        arguments.flag(name, getattr(layer, name))
    arguments.finite("offset_scale", layer.offset_scale)
    arguments.choice("method", layer.method, METHODS)
    arguments.optional_dtype("dtype", layer.dtype)
    arguments.dtype("param_dtype", layer.param_dtype)
    implementation_names(layer.implementation)


def level_points(layer: MSDeformAttnOptions) -> tuple[int, ...]:
    """Points of each level."""
    points: Any = layer.points
    listed = [points] * layer.levels if arguments.is_integer(points) else points
    is_listed = arguments.is_sequence(listed) and len(listed) == layer.levels
    if not is_listed or not all(arguments.is_integer(n) and n > 0 for n in listed):
        raise ValueError(
            f"points must be a positive integer or one for each of the {layer.levels} levels, got "
            f"{points!r}."
        )
    return tuple(map(int, listed))


def check_call(
    layer: MSDeformAttnOptions,
    query: Any,
    reference: Any,
    value: Any,
    spatial_shapes: Any,
    value_mask: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`query`, `reference` and `value` as arrays; raises `ValueError` for arguments that do not fit."""
    query, reference = check_query(layer, query, reference, spatial_shapes)
    value = arguments.array("value", value, f"[..., S, {layer.features}]")
    pixels = sum(map(math.prod, map_shapes("spatial_shapes", spatial_shapes)))
    expected = (*query.shape[:-2], pixels, layer.features)
    if not fits(value.shape, expected):
        raise ValueError(
            f"value must be [..., S, features] with the batch axes of query and the pixels of "
            f"spatial_shapes: expected {expected}, got shape {value.shape}."
        )
    if value_mask is not None:
        _check_mask(value_mask, value.shape[:-1])
    return query, reference, value


def _check_mask(value_mask: Any, expected: tuple[int, ...]) -> None:
    mask = arguments.any_array("value_mask", value_mask, "[..., S]")
    if mask.dtype != bool or not fits(mask.shape, expected):
        raise ValueError(
            f"value_mask must be True where a pixel of value counts: expected bool {expected}, got "
            f"{mask.dtype.name} {mask.shape}."
        )


def check_query(
    layer: MSDeformAttnOptions, query: Any, reference: Any, spatial_shapes: Any
) -> tuple[jax.Array, jax.Array]:
    """`query` and `reference` as arrays; raises `ValueError` for arguments that do not fit."""
    query = arguments.array("query", query, f"[..., Q, {layer.features}]")
    if query.ndim < 2 or query.shape[-1] != layer.features:
        raise ValueError(f"query must be [..., Q, {layer.features}], got shape {query.shape}.")
    shapes = map_shapes("spatial_shapes", spatial_shapes)
    if len(shapes) != layer.levels:
        raise ValueError(
            f"spatial_shapes must have the size of each of the {layer.levels} levels, got {shapes}."
        )
    return query, _checked_reference(reference, query.shape[:-1], layer.levels)


def _checked_reference(reference: Any, queries: tuple[int, ...], levels: int) -> jax.Array:
    reference = arguments.array("reference", reference, "[..., Q, levels, 2 or 4]")
    leading, given = reference.shape[: len(queries)], reference.shape[len(queries) :]
    if (
        not fits(leading, queries)
        or given[:-1] not in ((), (1,), (levels,))
        or given[-1:] not in ((2,), (4,))
    ):
        raise ValueError(
            f"reference must be [..., Q, {levels}, 2 or 4], [..., Q, 1, 2 or 4] or [..., Q, 2 or 4] "
            f"with the axes {queries} of query, got shape {reference.shape}."
        )
    return reference


def branch_features(layer: MSDeformAttnOptions) -> dict[str, int]:
    """Output features of the dense layers that predict, by their names."""
    samples = layer.heads * sum(level_points(layer))
    return {"sampling_offsets": 2 * samples, "attention_weights": samples}


def ring(layer: MSDeformAttnOptions) -> np.ndarray:
    """The initial bias of `sampling_offsets`: a direction for each head, a distance for each point."""
    angles = 2 * np.pi / layer.heads * np.arange(layer.heads)
    direction = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    direction /= abs(direction).max(axis=-1, keepdims=True)
    distance = np.concatenate([np.arange(1, n + 1) for n in level_points(layer)])
    return (direction[:, None, :] * distance[None, :, None]).ravel()


def locations_and_weights(
    layer: MSDeformAttnOptions,
    offsets: jax.Array,
    logits: jax.Array,
    reference: jax.Array,
    spatial_shapes: Shapes,
) -> tuple[jax.Array, jax.Array]:
    """Locations `[..., Q, M, sum(points), 2]` in 0 to 1, and weights `[..., Q, M, sum(points)]`."""
    points = level_points(layer)
    samples = (*logits.shape[:-1], layer.heads, sum(points))
    offsets = offsets.reshape(*samples, 2)
    reference = _by_sample(reference.astype(offsets.dtype), offsets, points)
    if reference.shape[-1] == 2:
        steps = _by_sample(1 / _widths_and_heights(offsets, spatial_shapes), offsets, points)
    else:
        shares = np.repeat(layer.offset_scale / np.array(points), points)[:, None]
        steps = reference[..., 2:] * _leading(jnp.asarray(shares, offsets.dtype), offsets.ndim)
    weights = jax.nn.softmax(logits.reshape(samples))
    return reference[..., :2] + offsets * steps, weights


def _widths_and_heights(offsets: jax.Array, spatial_shapes: Shapes) -> jax.Array:
    """The sizes `(width, height)` of the levels, `[1, ..., 1, levels, 2]`; a size may be free."""
    sizes = [jnp.asarray(size, offsets.dtype) for shape in spatial_shapes for size in shape[::-1]]
    return _leading(jnp.stack(sizes).reshape(-1, 2), offsets.ndim - 1)


def _leading(matrix: jax.Array, rank: int) -> jax.Array:
    """`matrix` with axes of size one in front, up to `rank` axes."""
    return matrix.reshape((1,) * (rank - 2) + matrix.shape)


def _by_sample(values: jax.Array, offsets: jax.Array, points: Sequence[int]) -> jax.Array:
    """Repeats values `[..., levels, n]`, or one value for all levels `[..., n]`, for each sample."""
    if values.ndim == offsets.ndim - 2:
        values = values[..., None, :]
    if values.shape[-2] > 1:
        parts = [
            jnp.broadcast_to(
                values[..., level, None, :], (*values.shape[:-2], count, values.shape[-1])
            )
            for level, count in enumerate(points)
        ]
        values = jnp.concatenate(parts, axis=-2)
    return values[..., None, :, :]  # for every head


def masked(value: jax.Array, value_mask: jax.Array | None) -> jax.Array:
    """Values with zeros for the pixels that do not count."""
    return value if value_mask is None else jnp.where(jnp.asarray(value_mask)[..., None], value, 0)


def attend(
    layer: MSDeformAttnOptions,
    value: jax.Array,
    locations: jax.Array,
    weights: jax.Array,
    spatial_shapes: Shapes,
) -> jax.Array:
    """`jax_dcn.ms_deform_attn` of `value [..., S, features]`, with the options of `layer`."""
    by_head = (*value.shape[:-1], layer.heads, layer.features // layer.heads)
    return ms_deform_attn(
        value.reshape(by_head),
        locations,
        weights,
        spatial_shapes=spatial_shapes,
        points=level_points(layer),
        method=layer.method,
        implementation=layer.implementation,
    )
