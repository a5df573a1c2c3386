# SPDX-License-Identifier: MIT
"""Command line of the classifier: `python -m examples.imagenet --help`."""

import logging
import sys
from collections.abc import Sequence

import tyro

from examples.imagenet.bench import bench
from examples.imagenet.errors import UserError
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
    # Orbax warns of every checkpoint that was not tested.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        tyro.extras.subcommand_cli_from_dict(
            _COMMANDS,
            prog="python -m examples.imagenet",
            description=_DESCRIPTION,
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted: the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
