# SPDX-License-Identifier: MIT
"""Pools boxes of a photograph, and lets the bins of a misplaced one find what it missed."""
