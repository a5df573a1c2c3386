# SPDX-License-Identifier: MIT
"""The tests of jax_dcn, and the problems that they share with the benchmarks."""
