# SPDX-License-Identifier: MIT
"""Each operator in plain `jax.numpy`: the judge of the kernels, and the `"xla"` implementation."""

from jax_dcn._src.deform_aggregate.geometry import AggregateGeometry as AggregateGeometry
from jax_dcn._src.deform_aggregate.reference import (
    deform_aggregate as deform_aggregate,
    deform_aggregate_backward as deform_aggregate_backward,
    deform_aggregate_jvp as deform_aggregate_jvp,
)
from jax_dcn._src.deform_conv2d.geometry import (
    ConvGeometry as ConvGeometry,
    conv_geometry as conv_geometry,
)
from jax_dcn._src.deform_conv2d.reference import (
    deform_conv2d as deform_conv2d,
    deform_conv2d_backward as deform_conv2d_backward,
    deform_conv2d_jvp as deform_conv2d_jvp,
)
from jax_dcn._src.deform_roi_pool.geometry import RoIGeometry as RoIGeometry
from jax_dcn._src.deform_roi_pool.reference import (
    deform_roi_pool as deform_roi_pool,
    deform_roi_pool_backward as deform_roi_pool_backward,
    deform_roi_pool_jvp as deform_roi_pool_jvp,
)
