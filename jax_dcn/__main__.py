# SPDX-License-Identifier: MIT
"""Shows the configuration of jax_dcn; options check the installation, and time deform_conv2d."""

import argparse
import sys

from jax_dcn.installation.benchmark import benchmark
from jax_dcn.installation.selfcheck import selfcheck
from jax_dcn.installation.show_config import show_config


def main() -> int:
    """Exit status 1 if the check fails."""
    parser = argparse.ArgumentParser(prog="python -m jax_dcn", description=__doc__)
    parser.add_argument(
        "--selfcheck",
        action="store_true",
        help="compare values and gradients of every implementation (ten seconds)",
    )
    parser.add_argument(
        "--benchmark",
        action="store_true",
        help="time deform_conv2d and the ordinary convolution (one minute)",
    )
    arguments = parser.parse_args()
    show_config()
    if arguments.selfcheck and not selfcheck():
        return 1
    if arguments.benchmark:
        benchmark()
    return 0


if __name__ == "__main__":
    sys.exit(main())
