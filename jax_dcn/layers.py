# SPDX-License-Identifier: MIT
"""What the layers of every neural network library have in common."""

from jax_dcn._src.deform_conv2d.layer import is_offset_branch as is_offset_branch
