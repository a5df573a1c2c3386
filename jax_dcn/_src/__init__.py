# SPDX-License-Identifier: MIT
"""The library itself. Users import the names in `jax_dcn`."""
