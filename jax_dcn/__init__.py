# SPDX-License-Identifier: MIT
"""Deformable convolution for JAX."""

from jax_dcn.implementation import (
    available_implementations as available_implementations,
    export_disabled_checks as export_disabled_checks,
)
from jax_dcn.installation.show_config import show_config as show_config
from jax_dcn.ops import (
    deform_conv2d as deform_conv2d,
    deform_roi_align as deform_roi_align,
    deform_roi_pool as deform_roi_pool,
)

__version__ = "0.1.0"
