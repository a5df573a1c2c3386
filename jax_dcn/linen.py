# SPDX-License-Identifier: MIT
"""Flax Linen modules."""

from jax_dcn._src.deform_aggregate.attention_linen import MSDeformAttn as MSDeformAttn
from jax_dcn._src.deform_aggregate.dcn_linen import DCNv3 as DCNv3, DCNv4 as DCNv4
from jax_dcn._src.deform_conv2d.layer import is_offset_branch as is_offset_branch
from jax_dcn._src.deform_conv2d.linen import DeformConv as DeformConv
from jax_dcn._src.deform_roi_pool.linen import DeformRoIPool as DeformRoIPool
