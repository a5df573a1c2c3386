# SPDX-License-Identifier: MIT
"""Command line of the detectors: `python -m examples.detection --help`."""

import sys
from collections.abc import Sequence

import tyro

from examples.detection.stages import stages
from examples.detection.weights import import_weights
from examples.imagenet.errors import UserError

_DESCRIPTION = "Finds objects with Faster, Mask and Cascade R-CNN and deformable convolutions."
_COMMANDS = {
    "import-weights": import_weights,
    "stages": stages,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            _COMMANDS,
            prog="python -m examples.detection",
            description=_DESCRIPTION,
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
