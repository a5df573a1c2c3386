# SPDX-License-Identifier: MIT
"""Reads off a compiled program what its devices send each other."""

import dataclasses
import math
import re

import jax
import numpy as np

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
_CALL = re.compile(rf"= (?P<result>.*?) (?P<kind>{_KINDS})(-start)?\(.*")
_ARRAY = re.compile(r"([a-z]+[0-9a-z]*)\[([0-9,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program; `shapes` are those of the results on one device."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: int


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
    )


def _item_bytes(dtype: str) -> int:
    return int(np.ceil(int(re.sub(r"\D", "", dtype) or 8) / 8))  # f32, bf16, s8, pred
