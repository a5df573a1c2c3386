# SPDX-License-Identifier: MIT
"""Calls every operator for minutes from many Python threads on several virtual devices, and compares bits.

    python tests/native/soak.py --minutes 10

Each thread draws cases of the laws' table, forward and gradients, and a device. Every result must have the
bits that the case gave first. Memory and file handles at the end must be those after the first round.
"""

import argparse
import concurrent.futures
import hashlib
import os
import pathlib
import random
import sys
import time
from collections.abc import Callable

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from tests.laws.table import OPERATORS

THREADS, DEVICES = 16, 8


class Task:
    """A compiled call on one device, and the bits of its results."""

    def __init__(self, operator, case, dtype: str, device: jax.Device):
        self.name = f"{operator} {case} {dtype}"
        self._run = jax.jit(operator.derivatives(case.function("native")))
        arrays = case.arrays(dtype), case.arrays(dtype, 5), case.cotangent(dtype)
        self._arrays = jax.device_put(arrays, device)
        self.expected = self.digest()

    def digest(self) -> str:
        leaves = jax.tree.leaves(self._run(*self._arrays))
        return hashlib.sha256(
            b"".join(leaf.tobytes() for leaf in jax.device_get(leaves))
        ).hexdigest()


def tasks() -> list[Task]:
    """Every case of every operator in two types, each on one of the devices."""
    pairs = [(operator, case) for operator in OPERATORS for case in operator.cases]
    devices = jax.devices()
    return [
        Task(operator, case, dtype, devices[i % len(devices)])
        for dtype in ("float32", "bfloat16")
        for i, (operator, case) in enumerate(pairs)
    ]


def call_until(end: float, seed: int, drawn: list[Task]) -> int:
    """Calls random tasks, and returns how many; raises if a result has other bits."""
    draw, calls = random.Random(seed), 0
    while time.monotonic() < end:
        task = draw.choice(drawn)
        assert task.digest() == task.expected, f"{task.name} gave other bits"
        calls += 1
    return calls


def soak(seconds: float, drawn: list[Task]) -> int:
    end = time.monotonic() + seconds
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(lambda seed: call_until(end, seed, drawn), range(THREADS)))


def resident_mib() -> int:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    minutes = parser.parse_args().minutes
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_disable_most_optimizations", True)
    drawn = tasks()
    measure: Callable[[], tuple[int, int]] = lambda: (resident_mib(), open_files())
    soak(6 * minutes, drawn)  # a tenth, in which threads and buffers come to be
    before = measure()
    calls = soak(60 * minutes, drawn)
    after = measure()
    print(f"{calls} calls of {len(drawn)} tasks from {THREADS} threads on {DEVICES} devices")
    print(f"resident MiB, open files: {before} before, {after} after")
    assert after[0] <= 1.1 * before[0] + 16, "memory grew"
    assert after[1] <= before[1], "files stay open"


if __name__ == "__main__":
    main()
