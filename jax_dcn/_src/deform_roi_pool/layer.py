# SPDX-License-Identifier: MIT
"""The parts of a RoI pooling layer that are the same in every neural network library."""

from typing import Protocol

import jax
import jax.numpy as jnp

from jax_dcn._src.deform_roi_pool.function import deform_roi_align, deform_roi_pool
from jax_dcn._src.deform_roi_pool.geometry import RoIGeometry
from jax_dcn._src.deform_roi_pool.samples import sampling_positions
from jax_dcn._src.operator.implementation import Implementation


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
    implementation: Implementation


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
    return jnp.moveaxis(pooled, -1, 1).reshape(pooled.shape[0], -1)


def offset_and_mask(
    layer: DeformRoIPoolOptions, predicted: dict[str, jax.Array]
) -> tuple[jax.Array | None, jax.Array | None]:
    """Offset `[R, P, P, 1, 2]` and mask `[R, P, P]`, from the outputs of the branches."""
    if not predicted:
        return None, None
    # The planes are ordered as in published checkpoints: x of all bins, y of all bins, the mask.
    planes = jnp.concatenate(list(predicted.values()), axis=-1)
    planes = planes.reshape(planes.shape[0], -1, layer.pooled_size, layer.pooled_size)
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
        trans_std=layer.trans_std,
        implementation=layer.implementation,
    )


def positions(layer: DeformRoIPoolOptions, rois: jax.Array, offset: jax.Array | None) -> jax.Array:
    """Where `layer` samples `x`: `(y, x)` in pixels, `[R, P, P, S, S, 2]`."""
    if not layer.samples_per_part:
        raise ValueError("samples_per_part=0 takes a number of samples that depends on the region.")
    wide = rois if rois.dtype == jnp.float64 else rois.astype(jnp.float32)
    if offset is None:
        offset = jnp.zeros((rois.shape[0], 0, 0, 1, 2), wide.dtype)
    size = (layer.pooled_size, layer.pooled_size)
    geometry = RoIGeometry(
        layer.spatial_scale,
        size,
        layer.samples_per_part,
        layer.trans_std,
        aligned=layer.aligned,
    )
    return sampling_positions(wide, offset.astype(wide.dtype), geometry)[:, :, :, 0]
