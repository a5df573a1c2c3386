# SPDX-License-Identifier: MIT
"""The parts of a RoI pooling layer that Flax NNX and Flax Linen share."""

import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jax_dcn._src import arguments
from jax_dcn._src.deform_roi_pool.function import (
    MOST_PER_AXIS,
    deform_roi_align,
    deform_roi_pool,
    regions,
)
from jax_dcn._src.deform_roi_pool.geometry import RoIGeometry
from jax_dcn._src.deform_roi_pool.samples import sampling_positions
from jax_dcn._src.operator.implementation import Implementation, implementation_names
from jax_dcn._src.operator.merging import whole

HIDDEN_FEATURES = 1024
"""Features of the branches in published networks."""


class DeformRoIPoolOptions(Protocol):
    """The options of a layer, which every `DeformRoIPool` has as attributes of these names."""

    output_dim: int
    pooled_size: int
    spatial_scale: float
    group_size: int
    samples_per_part: int
    trans_std: float
    deformable: bool
    modulated: bool
    joint: bool
    aligned: bool
    hidden_features: int
    dtype: Any
    param_dtype: Any
    implementation: Implementation


def check_options(layer: DeformRoIPoolOptions) -> None:
    """Raises `ValueError` for options that are wrong, or that have no effect beside the others."""
    for name in ("deformable", "modulated", "joint", "aligned"):
        arguments.flag(name, getattr(layer, name))
    for name in ("output_dim", "hidden_features"):
        arguments.positive(name, getattr(layer, name))
    for name in ("pooled_size", "group_size"):
        arguments.integer(name, getattr(layer, name), 1, MOST_PER_AXIS)
    arguments.integer(
        "samples_per_part", layer.samples_per_part, 0 if layer.aligned else 1, MOST_PER_AXIS
    )
    arguments.positive_number("spatial_scale", layer.spatial_scale)
    arguments.finite("trans_std", layer.trans_std)
    arguments.optional_dtype("dtype", layer.dtype)
    arguments.dtype("param_dtype", layer.param_dtype)
    implementation_names(layer.implementation)
    if layer.deformable and not layer.trans_std:
        raise ValueError("trans_std=0 gives the offsets no effect: pass deformable=False.")
    if not layer.deformable and layer.hidden_features != HIDDEN_FEATURES:
        raise ValueError("hidden_features has no effect with deformable=False: leave it out.")
    if layer.joint and not (layer.deformable and layer.modulated):
        raise ValueError("joint has no effect without deformable=True and modulated=True.")
    if layer.aligned and layer.group_size != 1:
        raise ValueError("group_size has no effect with aligned=True: leave it out.")


def images(layer: DeformRoIPoolOptions, x: jax.Array) -> jax.Array:
    """The images as an array. Raises `ValueError` for other channels than the options say."""
    channels = layer.output_dim * layer.group_size**2
    x = arguments.array("x", x, "[N, H, W, C]")
    if x.ndim != 4 or x.shape[-1] != channels:
        raise ValueError(
            f"x must be [N, H, W, {channels}] for output_dim={layer.output_dim} and "
            f"group_size={layer.group_size}, got shape {x.shape}."
        )
    return x


def branch_features(layer: DeformRoIPoolOptions) -> dict[str, tuple[int, ...]]:
    """For each fully connected branch, the number of features of each of its layers.

    Names are as in published checkpoints, which also count the ReLU between two layers.
    """
    bins, hidden = layer.pooled_size**2, layer.hidden_features
    if not layer.deformable:
        return {}
    if not layer.modulated:
        return {"offset_fc": (hidden, hidden, 2 * bins)}
    if layer.joint:
        return {"offset_mask_fc": (hidden, hidden, 3 * bins)}
    return {"offset_fc": (hidden, hidden, 2 * bins), "mask_fc": (hidden, bins)}


def branch_input(pooled: jax.Array) -> jax.Array:
    """Flattens plain pooling `[R, P, P, D]` as published checkpoints do: by feature, row, column."""
    return jnp.moveaxis(pooled, -1, 1).reshape(pooled.shape[0], math.prod(pooled.shape[1:]))


def relu(x: jax.Array) -> jax.Array:
    """The activation of the branches; a function of a module, so that layers can be pickled."""
    return jax.nn.relu(x)


def offset_and_mask(
    layer: DeformRoIPoolOptions, predicted: dict[str, jax.Array]
) -> tuple[jax.Array | None, jax.Array | None]:
    """Offset `[R, P, P, 1, 2]` and mask `[R, P, P]`, from the outputs of the branches."""
    if not predicted:
        return None, None
    # The planes are ordered as in published checkpoints: x of all bins, y of all bins, the mask.
    planes = jnp.concatenate([whole(array, 1) for array in predicted.values()], axis=-1)
    count = planes.shape[-1] // layer.pooled_size**2
    planes = planes.reshape(planes.shape[0], count, layer.pooled_size, layer.pooled_size)
    offset = jnp.stack([planes[:, 1], planes[:, 0]], axis=-1)[:, :, :, None]
    return offset, jax.nn.sigmoid(planes[:, 2]) if layer.modulated else None


def pool(
    layer: DeformRoIPoolOptions,
    x: jax.Array,
    rois: jax.Array,
    offset: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """`jax_dcn.deform_roi_pool` or `jax_dcn.deform_roi_align` with the options of `layer`."""
    if layer.aligned:
        return deform_roi_align(
            x,
            rois,
            offset,
            mask,
            spatial_scale=layer.spatial_scale,
            pooled_size=layer.pooled_size,
            sampling_ratio=layer.samples_per_part,
            gamma=layer.trans_std,
            implementation=layer.implementation,
        )
    return deform_roi_pool(
        x,
        rois,
        offset,
        mask,
        spatial_scale=layer.spatial_scale,
        pooled_size=layer.pooled_size,
        output_dim=layer.output_dim,
        group_size=layer.group_size,
        samples_per_part=layer.samples_per_part,
        trans_std=0.0 if offset is None else layer.trans_std,
        implementation=layer.implementation,
    )


def positions(
    layer: DeformRoIPoolOptions, x: jax.Array, rois: jax.Array, offset: jax.Array | None
) -> jax.Array:
    """Where `layer` samples `x`: `(y, x)` in pixels, `[R, P, P, S, S, 2]`.

    With `samples_per_part=0`, the number of samples depends on the region. The middle of a bin then
    stands for the samples: `S` is 1.
    """
    wide = regions(rois, x)
    if offset is None:
        offset = jnp.zeros((wide.shape[0], 0, 0, 1, 2), wide.dtype)
    size = (layer.pooled_size, layer.pooled_size)
    geometry = RoIGeometry(
        layer.spatial_scale,
        size,
        layer.samples_per_part or 1,
        layer.trans_std,
        aligned=layer.aligned,
    )
    return sampling_positions(wide, offset.astype(wide.dtype), geometry)[:, :, :, 0]
