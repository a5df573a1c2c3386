# SPDX-License-Identifier: MIT
"""What each operator computes, in plain `jax.numpy`: the judge of the kernels and the `"xla"` implementation."""

from jax_dcn.reference.deform_conv2d import (
    deform_conv2d as deform_conv2d,
    deform_conv2d_backward as deform_conv2d_backward,
    deform_conv2d_jvp as deform_conv2d_jvp,
)
