# SPDX-License-Identifier: MIT
"""Where the operators sample: their options, validated once and passed as one value."""

from jax_dcn.geometry.deform_conv2d import (
    ConvGeometry as ConvGeometry,
    Padding as Padding,
    Size as Size,
    conv_geometry as conv_geometry,
)
from jax_dcn.geometry.deform_roi_pool import RoIGeometry as RoIGeometry
