# SPDX-License-Identifier: MIT
"""Deformable pooling of regions of interest: `deform_roi_pool` and `deform_roi_align`."""
