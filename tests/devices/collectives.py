# SPDX-License-Identifier: MIT
"""Reads off a compiled program what its devices send each other."""

import dataclasses
import math
import re

import jax
import numpy as np

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
_CALL = re.compile(rf"= (?P<result>.*?) (?P<kind>{_KINDS})(-start)?\(.*")
_GROUPS = {
    "list": re.compile(r"replica_groups=\{\{([0-9,]*)\}"),  # {{0,1},{2,3}}
    # [2,2]<=[4]: groups, devices in each
    "iota": re.compile(r"replica_groups=\[[0-9]+,([0-9]+)\]"),
    # mesh['a'=2,'b'=2] {'a'}, with the order of the devices where it is not theirs
    "mesh": re.compile(r"replica_groups=mesh\[([^]]*)\](?:, device_ids=\S*)? \{([^}]*)\}"),
}
_ARRAY = re.compile(r"([a-z]+[0-9a-z]*)\[([0-9,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program, seen from one device.

    Attributes:
      kind: As XLA calls it.
      shapes: Those of the results.
      bytes: Those of the results.
      devices: How many take part.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    devices: int

    @property
    def sent_bytes(self) -> float:
        """What each device sends when the devices form a ring, the least that it can send."""
        others = (self.devices - 1) / self.devices
        rounds = {"all-reduce": 2 * others, "reduce-scatter": self.devices - 1}
        return self.bytes * rounds.get(self.kind, 1 if "collective" in self.kind else others)


def collectives(program: jax.stages.Compiled) -> list[Collective]:
    return [_parse(match) for match in _CALL.finditer(program.as_text())]


def _parse(call: re.Match) -> Collective:
    arrays = [
        (dtype, tuple(int(size) for size in sizes.split(",") if size))
        for dtype, sizes in _ARRAY.findall(call["result"])
    ]
    return Collective(
        call["kind"],
        tuple(shape for _, shape in arrays),
        sum(math.prod(shape) * _item_bytes(dtype) for dtype, shape in arrays),
        _group_size(call[0]),
    )


def _group_size(call: str) -> int:
    """The number of devices in a group, which XLA writes in three ways."""
    if "source_target_pairs=" in call:
        return 2
    if groups := _GROUPS["list"].search(call):
        return len(groups[1].split(","))
    if groups := _GROUPS["iota"].search(call):
        return int(groups[1])
    if groups := _GROUPS["mesh"].search(call):
        sizes = dict(axis.split("=") for axis in groups[1].split(","))
        return math.prod(int(sizes[axis.split(":")[0]]) for axis in groups[2].split(","))
    raise ValueError(f"unknown replica groups in {call}")


def _item_bytes(dtype: str) -> int:
    return int(np.ceil(int(re.sub(r"\D", "", dtype) or 8) / 8))  # f32, bf16, s8, pred
