# SPDX-License-Identifier: MIT
"""Programs that a user of `jax_dcn` could have written."""
