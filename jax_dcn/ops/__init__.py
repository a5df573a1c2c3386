# SPDX-License-Identifier: MIT
"""The functions that users call: checks, defaults and documentation."""

from jax_dcn.ops.deform_conv2d import deform_conv2d as deform_conv2d
