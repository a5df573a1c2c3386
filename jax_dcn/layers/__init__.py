# SPDX-License-Identifier: MIT
"""What the layers of every neural network library have in common."""

from jax_dcn.layers.deform_conv import is_offset_branch as is_offset_branch
