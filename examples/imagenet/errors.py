# SPDX-License-Identifier: MIT
"""The one exception that the commands turn into a message instead of a traceback."""


class UserError(Exception):
    """What the user can put right; the message is a sentence that says how."""
