# SPDX-License-Identifier: MIT
"""Command line of the comparison: `python -m examples.digits --help`."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from examples.imagenet.command_line import in_words
from examples.imagenet.errors import check_option

_DESCRIPTION = """
Trains a small classifier of handwritten digits, under random rotation, scale, shear and elastic
warps, with ordinary and with deformable convolutions; prints accuracy and speed, saves the
trained parameters and draws what the deformable convolutions look at.
"""
_QUICK = dict(seeds=1, steps=20, warps=1)
# The first step compiles, and is not timed.
_LEAST = dict(seeds=1, steps=2, batch_size=1, learning_rate=0, warps=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison and returns the exit code."""
    options = _parse(arguments)
    return in_words(lambda: _compare(options))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.digits",
        description=_DESCRIPTION,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=pathlib.Path, default=pathlib.Path("build/digits"), help="folder to fill")
    add("--seeds", type=int, default=3, help="networks of each kind")
    add("--steps", type=int, default=1000, help="training steps of a network")
    add("--batch-size", type=int, default=64, help="images in a training step")
    add("--learning-rate", type=float, default=5e-3, help="of Adam, at the start")
    add("--warps", type=int, default=8, help="test images made of each test scan")
    add(
        "--part",
        choices=["test", "validation"],
        default="test",
        help="the scans to test on; choose settings on the validation scans",
    )
    add(
        "--quick",
        action="store_true",
        help="see that all works: --seeds 1, --steps 20 and --warps 1, unless they are given",
    )
    if parser.parse_args(arguments).quick:
        parser.set_defaults(**_QUICK)
    return parser.parse_args(arguments)


def _compare(options: argparse.Namespace) -> None:
    # Imported here: --help answers at once, and Ctrl-C is polite while JAX starts.
    from examples.digits.compare import Comparison, Settings
    from examples.digits.train import Budget

    for name, least in _LEAST.items():
        check_option(name, getattr(options, name), least)
    comparison = Comparison(
        Settings(
            output=options.output,
            budget=Budget(options.steps, options.batch_size, options.learning_rate),
            seeds=options.seeds,
            warps_per_scan=options.warps,
            part=options.part,
        )
    )
    try:
        comparison.run()
    finally:
        print(comparison.report())


if __name__ == "__main__":
    sys.exit(main())
