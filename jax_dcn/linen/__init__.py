# SPDX-License-Identifier: MIT
"""Flax Linen modules."""

from jax_dcn.layers import is_offset_branch as is_offset_branch
from jax_dcn.linen.deform_conv import DeformConv as DeformConv
from jax_dcn.linen.deform_roi_pool import DeformRoIPool as DeformRoIPool
