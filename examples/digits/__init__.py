# SPDX-License-Identifier: MIT
"""Warped handwritten digits, with ordinary and with deformable convolutions."""
