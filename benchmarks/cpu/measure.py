# SPDX-License-Identifier: MIT
"""Checks the engines against each other and times them in interleaved rounds."""

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.cpu.engines import CONVOLUTIONS, OURS, PEERS
from benchmarks.cpu.worker import Worker
from tests.deform_conv2d.cases import Case, workload

Key = tuple[str, Case, str, str]  # engine, case, mode, dtype
MODES = ("forward", "training")
HALVES = ("bfloat16", "float16")
DEPTHWISE = Case("depthwise", 8, (14, 14), 256, 256, feature_group_count=256)
BATCHES = (workload("N=1", 1, (28, 28), 128), workload("N=32", 32, (28, 28), 128))


@dataclasses.dataclass(frozen=True)
class Group:
    """Tasks that are compared with each other, and so are timed in turn."""

    tasks: list[Key]
    flops: int | None = None  # of one of a workload's matrix products


def groups(cases: Sequence[Case], engines: Sequence[str]) -> dict[str, Group]:
    """A group for each workload, depthwise convolution, and an image alone against one of many."""
    found = {case.name: _workload(case, engines) for case in cases}
    depthwise = [e for e in engines if e == OURS or e in CONVOLUTIONS]
    found["depthwise"] = Group([(e, DEPTHWISE, m, "float32") for m in MODES for e in depthwise])
    found["batch"] = Group([(OURS, case, m, "float32") for m in MODES for case in BATCHES])
    return found


def _workload(case: Case, engines: Sequence[str]) -> Group:
    tasks = [(engine, case, mode, "float32") for mode in MODES for engine in engines]
    tasks.append((OURS, case, "jvp", "float32"))
    tasks += [(OURS, case, mode, half) for mode in MODES for half in HALVES]
    pixels = case.batch * math.prod(case.output)
    depth = math.prod(case.kernel) * case.channels // case.feature_group_count
    return Group(tasks, 2 * pixels * depth * case.features)


def measure(workers: Mapping[str, Worker], group: Group, rounds: int) -> list[dict]:
    """The median times of a group, one row for each task that could be prepared."""
    tasks = [k for k in group.tasks if k[0] in workers and workers[k[0]]("prepare", *k[1:])]
    check(workers, tasks)
    times: dict[Key, list[float]] = {task: [] for task in tasks}
    for _ in range(rounds):
        for task in tasks:
            times[task] += undisturbed_seconds(workers[task[0]], task[1:])
    for worker in workers.values():
        worker("forget")
    rows = []
    for engine, case, mode, dtype in tasks:
        samples = times[engine, case, mode, dtype]
        row = {"workload": case.name, "mode": mode, "dtype": dtype, "engine": engine}
        row |= {"milliseconds": round(1e3 * statistics.median(samples), 4), "runs": len(samples)}
        rows.append(row | ({"flops": group.flops} if group.flops else {}))
    return rows


def undisturbed_seconds(worker: Worker, key: tuple, attempts: int = 3) -> list[float]:
    """Times of the attempt that others disturbed least; one that they left alone is the last."""
    best = None
    for _ in range(attempts):
        time.sleep(0.02)  # threads that another library left spinning fall asleep
        sample = worker("seconds", *key)
        if best is None or sample.disturbance < best.disturbance:
            best = sample
        if best.disturbance < 0.1:
            break
    return best.seconds


def check(workers: Mapping[str, Worker], keys: list[Key]) -> None:
    """A fast wrong answer is none: peers must agree with us, convolutions with us on the grid."""
    for engine, case, mode, dtype in keys:
        if engine in PEERS:
            ours = (case, mode, dtype)
        elif engine in CONVOLUTIONS:
            ours = (case, f"ordinary {mode}", dtype)
            workers[OURS]("prepare", *ours)
        else:
            continue
        expected = workers[OURS]("results", *ours)
        actual = workers[engine]("results", case, mode, dtype)
        for a, e in zip(actual, expected, strict=True):
            error = np.max(np.abs(a - e)) / np.max(np.abs(e))
            if not error < 1e-4:
                raise ValueError(f"{engine} differs from {OURS} by {error} in {case} {mode}")
