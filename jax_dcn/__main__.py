# SPDX-License-Identifier: MIT
"""`python -m jax_dcn` prints the configuration."""

from jax_dcn.show_config import show_config

if __name__ == "__main__":
    show_config()
