# SPDX-License-Identifier: MIT
"""Deformable convolution, version 1 and version 2 (modulated)."""
