# SPDX-License-Identifier: MIT
"""Sampling, which knows no operator: positions, the boundary rule and interpolation in `jax.numpy`."""
