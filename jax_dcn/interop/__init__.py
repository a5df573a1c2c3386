# SPDX-License-Identifier: MIT
"""Bridges for people who arrive from other libraries."""
