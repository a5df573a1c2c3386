# SPDX-License-Identifier: MIT
"""How long the loops of a call would take on many cores, if their items took the times given."""

import dataclasses
import heapq
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class Loop:
    """Nanoseconds before the loop, when one thread works alone, and of the loop's items in order."""

    before: int
    items: tuple[int, ...]

    def __init__(self, before: int, *items: int):
        object.__setattr__(self, "before", before)
        object.__setattr__(self, "items", items)

    @staticmethod
    def least(loops: Sequence["Loop"]) -> "Loop":
        """The least time of each item over several calls of one loop."""
        items = zip(*(loop.items for loop in loops), strict=True)
        return Loop(min(loop.before for loop in loops), *map(min, items))


def seconds(loops: Iterable[Loop], cores: int) -> float:
    """The loops one after the other. Each item goes to the core that is free first, in order."""
    return sum(loop.before + makespan(loop.items, cores) for loop in loops) / 1e9


def makespan(items: Iterable[int], cores: int) -> int:
    """When the last of some items ends.

    >>> makespan([3, 1, 1, 2], cores=2)
    4
    """
    free = [0] * cores
    for item in items:
        heapq.heapreplace(free, free[0] + item)
    return max(free)
