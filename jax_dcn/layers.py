# SPDX-License-Identifier: MIT
"""Tools for the layers of every neural network library."""

from jax_dcn._src.deform_aggregate.dcn_layer import gelu as gelu
from jax_dcn._src.deform_conv2d.layer import is_offset_branch as is_offset_branch
