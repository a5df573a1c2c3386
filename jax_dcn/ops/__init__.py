# SPDX-License-Identifier: MIT
"""The functions that users call: checks, defaults and documentation."""

from jax_dcn.ops.deform_conv2d import deform_conv2d as deform_conv2d
from jax_dcn.ops.deform_roi_pool import (
    deform_roi_align as deform_roi_align,
    deform_roi_pool as deform_roi_pool,
)
