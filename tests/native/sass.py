# SPDX-License-Identifier: MIT
"""Counts the machine instructions of a kernel's main loop, from the listing of `cuobjdump -sass`."""

import collections
import dataclasses
import re

# Opcodes by kind: a kind holds the opcodes that start with one of its prefixes.
KINDS = {
    "tensor": ("HMMA",),
    "global": ("LDG", "STG", "LDGSTS", "RED", "ATOMG"),
    "shared": ("LDS", "STS", "LDSM", "ATOMS"),
    "local": ("LDL", "STL"),
    "float": ("FADD", "FMUL", "FFMA", "HADD", "HFMA", "DADD", "DMUL", "DFMA", "F2F"),
    "integer": ("I", "LEA", "LOP", "SHF", "SEL", "UI", "UL", "US", "VI", "POPC", "FLO", "PRMT"),
}
OTHER = "other"  # moves, predicates, branches, barriers, conversions


@dataclasses.dataclass(frozen=True)
class Instruction:
    address: int
    guarded: bool  # executed under a predicate
    opcode: str
    target: int | None  # of a branch


def functions(listing: str) -> dict[str, list[Instruction]]:
    """The instructions of each function in the listing, by mangled name."""
    parts = re.split(r"Function : (\S+)", listing)[1:]
    return {
        name: [_instruction(match) for match in _LINE.finditer(text)]
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    }


_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+ )?\s*([A-Z][\w.]*)([^;]*);")


def _instruction(match: re.Match) -> Instruction:
    address, guard, opcode, operands = match.groups()
    branches = opcode.split(".")[0] == "BRA"
    target = re.search(r"0x([0-9a-f]+)", operands) if branches else None
    # `BRA P1, 0x40` and `BRA.U UP0, 0x40` are conditional, too.
    guarded = bool(guard) or (branches and bool(re.search(r"\bU?!?U?P\w", operands)))
    return Instruction(int(address, 16), guarded, opcode, int(target[1], 16) if target else None)


def main_loop(code: list[Instruction]) -> collections.Counter:
    """Instructions by kind of one round of the main loop; empty where there is no loop.

    The main loop is the innermost loop with tensor instructions or, without any, the loop with the
    most loads from global memory. A round is the longest way through the loop that enters no inner
    loop.
    """
    blocks = _blocks(code)
    loops = _loops(blocks)
    opcodes = lambda loop: [i.opcode for start in loop for i in blocks[start].code]
    count = lambda loop, prefix: sum(o.startswith(prefix) for o in opcodes(loop))
    if not loops:
        return collections.Counter()
    tensor = {head: loop for head, loop in loops.items() if count(loop, "HMMA")}
    if tensor:
        head = min(tensor, key=lambda h: len(tensor[h]))
    else:
        head = max(loops, key=lambda h: (count(_own(loops, h), "LDG"), len(loops[h])))
    return collections.Counter(kind(i.opcode) for i in _longest_round(blocks, loops, head))


def kind(opcode: str) -> str:
    """The kind of an opcode, one of `KINDS` or `OTHER`."""
    base = opcode.split(".")[0]
    found = (name for name, prefixes in KINDS.items() if base.startswith(prefixes))
    return next(found, OTHER) if base not in ("ISETP", "BAR") else OTHER


@dataclasses.dataclass
class _Block:
    code: list[Instruction]
    next: list[int]  # the addresses of the blocks that may follow


def _blocks(code: list[Instruction]) -> dict[int, _Block]:
    addresses = [i.address for i in code]
    starts = {addresses[0]} if addresses else set()
    for i, after in zip(code, [*addresses[1:], None], strict=True):
        if i.opcode.split(".")[0] in ("BRA", "EXIT", "RET", "BRX"):
            starts |= {a for a in (i.target, after) if a is not None}
    blocks: dict[int, _Block] = {}
    for i in code:
        if i.address in starts:
            blocks[i.address] = current = _Block([], [])
        current.code.append(i)
    order = list(blocks)
    for start, after in zip(order, [*order[1:], None], strict=True):
        last = blocks[start].code[-1]
        ends = last.opcode.split(".")[0] in ("BRA", "EXIT", "RET", "BRX") and not last.guarded
        follow = [last.target, None if ends else after]
        blocks[start].next = [a for a in follow if a in blocks]
    return blocks


def _loops(blocks: dict[int, _Block]) -> dict[int, set[int]]:
    """The natural loops by the address of their first block; loops of one first block are merged."""
    before = collections.defaultdict(set)
    for start, block in blocks.items():
        for after in block.next:
            before[after].add(start)
    loops: dict[int, set[int]] = {}
    for start, block in blocks.items():
        for head in (a for a in block.next if a <= start):
            body, rest = {head}, [start]
            while rest:
                block_start = rest.pop()
                if block_start not in body:
                    body.add(block_start)
                    rest += before[block_start]
            loops[head] = loops.get(head, set()) | body
    # A loop that is all of the function is a branch to where a warp waits after its last instruction.
    return {h: b for h, b in loops.items() if any(len(blocks[s].code) > 1 for s in b)}


def _own(loops: dict[int, set[int]], head: int) -> set[int]:
    """The blocks of a loop that are in no inner loop."""
    inner = (
        b for h, b in loops.items() if h != head and h in loops[head] and len(b) < len(loops[head])
    )
    return loops[head] - set().union(*inner)


def _longest_round(blocks: dict[int, _Block], loops: dict, head: int) -> list[Instruction]:
    own = _own(loops, head)
    best: dict[int, list[Instruction] | None] = {}

    def longest(start: int) -> list[Instruction] | None:
        """From a block to the next round; `None` where no way leads there."""
        if start not in best:
            best[start] = None
            ways = [
                [] if after == head else longest(after)
                for after in blocks[start].next
                if after == head or after in own
            ]
            ends = [way for way in ways if way is not None]
            if ends:
                best[start] = blocks[start].code + max(ends, key=len)
        return best[start]

    return longest(head) or []
