# SPDX-License-Identifier: MIT
"""How long the loops of a call would take on many cores, if their items took the times given."""

import dataclasses
import heapq
from collections import deque
from collections.abc import Iterable, Sequence

ITEMS_OF_SHARE = 4  # as in cpu/runtime/executor.cc


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
    """How many seconds the loops take, one after the other."""
    return sum(loop.before + makespan(loop.items, cores) for loop in loops) / 1e9


def makespan(items: Sequence[int], cores: int) -> int:
    """The nanoseconds from the start of a loop to the end of its last item.

    Each core first takes the items of its own share, and then items that other cores have left. With
    fewer than ITEMS_OF_SHARE items for each core, all items are one share.

    >>> makespan([3, 1, 1, 2], cores=2)
    4
    """
    count = len(items)
    cores = max(1, min(cores, count))
    parts = cores if count >= ITEMS_OF_SHARE * cores else 1
    shares = [deque(items[count * i // parts : count * (i + 1) // parts]) for i in range(parts)]
    free = [(0, core) for core in range(cores)]
    for _ in range(count):
        time, core = free[0]
        first = core % parts
        share = next(s for s in (*shares[first:], *shares[:first]) if s)
        heapq.heapreplace(free, (time + share.popleft(), core))
    return max(free)[0]
