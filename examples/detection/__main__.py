# SPDX-License-Identifier: MIT
"""Command line of the detectors: `python -m examples.detection --help`."""

import sys
from collections.abc import Sequence

from examples.detection.commands.bench import bench
from examples.detection.commands.demo import demo
from examples.detection.commands.evaluate import evaluate
from examples.detection.commands.export import export
from examples.detection.commands.predict import predict
from examples.detection.commands.stages import stages
from examples.detection.commands.train import train
from examples.detection.commands.visualize import visualize
from examples.detection.commands.weights import import_weights
from examples.detection.data.compose import compose
from examples.imagenet.command_line import run_command

_DESCRIPTION = "Finds objects with Faster, Mask and Cascade R-CNN and deformable convolutions."
_COMMANDS = {
    "demo": demo,
    "compose": compose,
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "visualize": visualize,
    "import-weights": import_weights,
    "export": export,
    "stages": stages,
    "bench": bench,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    return run_command(_COMMANDS, "examples.detection", _DESCRIPTION, arguments)


if __name__ == "__main__":
    sys.exit(main())
