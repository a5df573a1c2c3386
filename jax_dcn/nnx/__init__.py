# SPDX-License-Identifier: MIT
"""Flax NNX modules."""

from jax_dcn.nnx.deform_conv import DeformConv as DeformConv
