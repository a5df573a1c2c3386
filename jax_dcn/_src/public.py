# SPDX-License-Identifier: MIT
"""A decorator that gives functions and classes their public module."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])


def public(module: str) -> Callable[[T], T]:
    """Decorates a function or class that users import from `module`.

    `help()`, `repr`, pickles and error messages then show `module`, not the file of the definition.
    """

    def named(definition: T) -> T:
        source, definition.__module__ = definition.__module__, module
        for method in vars(definition).values() if isinstance(definition, type) else ():
            if inspect.isfunction(method) and method.__module__ == source:
                method.__module__ = module  # Python 3.13 shows it in help()
        return definition

    return named
