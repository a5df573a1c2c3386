# SPDX-License-Identifier: MIT
"""Flax NNX modules."""

from jax_dcn._src.deform_aggregate.attention_nnx import MSDeformAttn as MSDeformAttn
from jax_dcn._src.deform_aggregate.dcn_nnx import DCNv3 as DCNv3, DCNv4 as DCNv4
from jax_dcn._src.deform_conv2d.layer import is_offset_branch as is_offset_branch
from jax_dcn._src.deform_conv2d.nnx import DeformConv as DeformConv
from jax_dcn._src.deform_roi_pool.nnx import DeformRoIPool as DeformRoIPool
