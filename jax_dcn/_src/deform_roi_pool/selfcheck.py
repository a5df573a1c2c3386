# SPDX-License-Identifier: MIT
"""The problems of deformable RoI pooling for the selfcheck of an installation."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_dcn._src.deform_roi_pool.function import deform_roi_align, deform_roi_pool
from jax_dcn._src.operator.implementation import Name
from jax_dcn._src.operator.problem import Problem, draw, draw_mask

_ROIS = np.array([[1, 0, 2, 13, 11], [0, 4, 3, 20, 17], [1, -3, -5, 8, 9]], np.float32)


def _pool(x: jax.Array, offset: jax.Array, mask: jax.Array, *, implementation: Name) -> jax.Array:
    return deform_roi_pool(
        x,
        jnp.asarray(_ROIS),
        offset,
        mask,
        spatial_scale=0.5,
        pooled_size=3,
        output_dim=4,
        group_size=2,
        trans_std=0.1,
        implementation=implementation,
    )


def _align(x: jax.Array, offset: jax.Array, mask: jax.Array, *, implementation: Name) -> jax.Array:
    return deform_roi_align(
        x,
        jnp.asarray(_ROIS),
        offset,
        mask,
        spatial_scale=0.5,
        pooled_size=3,
        implementation=implementation,
    )


def _arrays(dtype: np.dtype) -> tuple[np.ndarray, ...]:
    offset, mask = draw(1, 3, 3, 3, 1, 2), draw_mask(2, 3, 3, 3)
    return draw(0, 2, 9, 11, 16).astype(dtype), offset, mask


POOL, ALIGN = Problem(_pool, _arrays), Problem(_align, _arrays)
