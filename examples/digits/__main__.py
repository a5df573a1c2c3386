# SPDX-License-Identifier: MIT
"""Command line of the comparison: `python -m examples.digits --help`."""

import argparse
import functools
import pathlib
import sys
from collections.abc import Sequence

_DESCRIPTION = """
Trains a small classifier of handwritten digits, under random rotation, scale, shear and elastic
warps, with ordinary and with deformable convolutions; prints accuracy and speed, saves the
trained parameters and draws what the deformable convolutions look at.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison and returns the exit code."""
    options = _parse(arguments)
    comparison = None
    try:
        comparison = _comparison(options)
        comparison.run()
    except KeyboardInterrupt:
        print("\nInterrupted.")
        print(comparison.report() if comparison else "Nothing was saved yet.")
        return 130
    print(comparison.report())
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.digits",
        description=_DESCRIPTION,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=pathlib.Path, default=pathlib.Path("build/digits"), help="folder to fill")
    count = functools.partial(_at_least, 1)
    steps = functools.partial(_at_least, 2)  # the first compiles, and is not timed
    add("--seeds", type=count, default=3, help="networks of each kind")
    add("--steps", type=steps, default=1000, help="training steps of a network")
    add("--batch-size", type=count, default=64, help="images in a training step")
    add("--learning-rate", type=float, default=5e-3, help="of Adam, at the start")
    add("--warps", type=count, default=8, help="test images made of each test scan")
    add(
        "--part",
        choices=["test", "validation"],
        default="test",
        help="the scans to test on; choose settings on the validation scans",
    )
    add("--quick", action="store_true", help="a few steps of one seed, to see that all works")
    return parser.parse_args(arguments)


def _at_least(smallest: int, text: str) -> int:
    number = int(text)
    if number < smallest:
        raise argparse.ArgumentTypeError(f"must be at least {smallest}, got {number}")
    return number


def _comparison(options: argparse.Namespace):
    # Imported here: --help answers at once, and Ctrl-C is polite while JAX starts.
    from examples.digits.compare import Comparison, Settings
    from examples.digits.train import Budget

    if options.quick:
        options.seeds, options.steps, options.warps = 1, 20, 1
    return Comparison(
        Settings(
            output=options.output,
            budget=Budget(options.steps, options.batch_size, options.learning_rate),
            seeds=options.seeds,
            warps_per_scan=options.warps,
            part=options.part,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
