# SPDX-License-Identifier: MIT
"""The exceptions that the commands turn into a message instead of a traceback."""

import math


class UserError(Exception):
    """What the user can put right; the message is a sentence that says how."""

    code = 1
    """The exit status of the program."""


class OptionError(UserError):
    """An option has a value that makes no sense, whatever the files hold."""

    code = 2  # As for options that nobody knows.


def check_option(
    name: str, value: float | None, least: float = -math.inf, most: float = math.inf
) -> None:
    """Refuses a value below `least` or above `most`; `None` stands for a value that is not given."""
    if value is None or least <= value <= most:
        return
    bound = f"at least {least}" if not value >= least else f"at most {most}"
    raise OptionError(f"--{name.replace('_', '-')} must be {bound}, got {value}.")
