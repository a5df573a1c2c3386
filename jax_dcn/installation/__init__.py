# SPDX-License-Identifier: MIT
"""The checks of `python -m jax_dcn`: configuration, correctness and speed of an installation."""
