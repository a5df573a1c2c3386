# SPDX-License-Identifier: MIT
"""What `python -m jax_dcn` tells of an installation: its configuration, correctness and speed."""
