# SPDX-License-Identifier: MIT
"""Deformable aggregation: weighted sums of samples of one or several maps, and functions on it."""
