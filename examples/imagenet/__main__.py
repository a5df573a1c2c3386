# SPDX-License-Identifier: MIT
"""Command line of the classifier: `python -m examples.imagenet --help`."""

import sys
from collections.abc import Sequence

from examples.imagenet.bench import bench
from examples.imagenet.command_line import run_command
from examples.imagenet.evaluate import evaluate
from examples.imagenet.pack import pack
from examples.imagenet.predict import predict
from examples.imagenet.train import train
from examples.imagenet.visualize import visualize
from examples.imagenet.weights import export, import_weights

_DESCRIPTION = "Trains, tests and shows image classifiers with deformable convolutions."
_COMMANDS = {
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "visualize": visualize,
    "import-weights": import_weights,
    "export": export,
    "pack": pack,
    "bench": bench,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    return run_command(_COMMANDS, "examples.imagenet", _DESCRIPTION, arguments)


if __name__ == "__main__":
    sys.exit(main())
