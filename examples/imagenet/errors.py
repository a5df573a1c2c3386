# SPDX-License-Identifier: MIT
"""The exceptions that the commands turn into a message instead of a traceback."""

import math
import pathlib
import re
from collections.abc import Collection


class UserError(Exception):
    """What the user can put right; the message is a sentence that says how."""

    code = 1
    """The exit status of the program."""


class OptionError(UserError):
    """An option has a value that makes no sense, whatever the files hold."""

    code = 2  # As for options that nobody knows.


PICTURES = (".png", ".jpg", ".webp", ".pdf", ".svg")
"""Ends of the names of files that pictures are written to."""


def check_option(
    name: str, value: float | None, least: float = -math.inf, most: float = math.inf
) -> None:
    """Refuses a value below `least`, above `most` or infinite; `None` is a value that is not given."""
    if value is None or (least <= value <= most and math.isfinite(value)):
        return
    above = "finite" if math.isinf(most) else f"at most {most}"
    bound = above if value >= least else f"at least {least}"
    raise OptionError(f"--{name.replace('_', '-')} must be {bound}, got {value}.")


def check_suffix(path: pathlib.Path, suffixes: Collection[str]) -> None:
    """Refuses a file whose name does not end as one of the files that can be written."""
    if path.suffix not in suffixes:
        raise OptionError(f"{path} must end in {' or '.join(suffixes)}.")


def lack_of_space(error: BaseException) -> str | None:
    """Advice where a full disk has cut a checkpoint off; `None` for every other error."""
    if not re.search("RESOURCE_EXHAUSTED.*(Error writing|No space left)", str(error), re.DOTALL):
        return None
    return "The disk is full: make room, then the same command goes on after the last checkpoint."


def lack_of_memory(error: BaseException) -> str | None:
    """What to do about an error that lack of memory made; `None` for every other error."""
    if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
        return None
    reason = (str(error).splitlines() or ["MemoryError"])[0].rstrip(".")
    return (
        f"Too little memory ({reason}): lower --batch-size, or raise --accumulate, where the "
        "command has these options."
    )
