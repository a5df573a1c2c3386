# SPDX-License-Identifier: MIT
"""Learned sampling for JAX: deformable convolution, pooling of regions, attention, DCNv3, DCNv4."""

from jax_dcn._src.deform_aggregate.attention import ms_deform_attn as ms_deform_attn
from jax_dcn._src.deform_aggregate.dcnv3 import dcnv3 as dcnv3
from jax_dcn._src.deform_aggregate.dcnv4 import dcnv4 as dcnv4
from jax_dcn._src.deform_aggregate.function import deform_aggregate as deform_aggregate
from jax_dcn._src.deform_aggregate.grid_sample import grid_sample as grid_sample
from jax_dcn._src.deform_conv2d.function import deform_conv2d as deform_conv2d
from jax_dcn._src.deform_conv2d.positions import (
    offset_from_positions as offset_from_positions,
    sampling_positions as sampling_positions,
)
from jax_dcn._src.deform_roi_pool.function import (
    deform_roi_align as deform_roi_align,
    deform_roi_pool as deform_roi_pool,
)
from jax_dcn._src.operator.implementation import (
    available_implementations as available_implementations,
    export_disabled_checks as export_disabled_checks,
)
from jax_dcn.installation.show_config import show_config as show_config

__version__ = "0.2.0"
