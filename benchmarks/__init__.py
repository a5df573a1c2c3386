# SPDX-License-Identifier: MIT
"""Benchmarks: each checks against the reference first, then times."""
