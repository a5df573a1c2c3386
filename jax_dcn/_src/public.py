# SPDX-License-Identifier: MIT
"""Gives functions and classes the name that users import them by."""

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])


def public(module: str) -> Callable[[T], T]:
    """Decorates a function or class that users import from `module`.

    `help()`, `repr`, pickles and error messages then show `module`, not the file of the definition.
    """

    def named(definition: T) -> T:
        definition.__module__ = module
        return definition

    return named
