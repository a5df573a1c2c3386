# SPDX-License-Identifier: MIT
"""Programs of several commands: their errors in a sentence, and their exit codes."""

import logging
import sys
from collections.abc import Callable, Sequence

import tyro

from examples.imagenet.errors import UserError, lack_of_memory, lack_of_space


def run_command(
    commands: dict[str, Callable], program: str, description: str, arguments: Sequence[str] | None
) -> int:
    """Runs the command that the arguments name, and returns the exit code."""
    return in_words(
        lambda: tyro.extras.subcommand_cli_from_dict(
            commands,
            prog=f"python -m {program}",
            description=description,
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    )


def in_words(call: Callable[[], object]) -> int:
    """Calls, says what went wrong in a sentence, and returns the exit code."""
    # Orbax warns of every checkpoint that was not tested.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        call()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}" if error.filename else error
        print(f"error: {reason}.", file=sys.stderr)
        return 1
    except (RuntimeError, ValueError, MemoryError) as error:
        message = lack_of_space(error) or lack_of_memory(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print("\nInterrupted.", *getattr(error, "__notes__", ()), file=sys.stderr)
        return 130
    return 0
