# SPDX-License-Identifier: MIT
"""Checks the engines against each other and times them in interleaved rounds."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.attention.cases import AttentionCase
from benchmarks.attention.engines import ENGINES, OURS
from benchmarks.cpu.measure import MODES, undisturbed_seconds
from benchmarks.cpu.worker import Worker

PACKAGE = "benchmarks.attention.engines"
HALF = "bfloat16"
# A task that takes longer is timed once.
SLOW_SECONDS = 1.0


def start(engines, threads: int) -> tuple[dict[str, Worker], dict[str, str], dict[str, str]]:
    """A worker for each engine, their versions, and why others are left out."""
    workers, versions, left_out = {}, {}, {}
    for name in engines:
        worker = Worker(name, threads, PACKAGE)
        try:
            versions[name] = worker("version")
            workers[name] = worker
        except RuntimeError as error:
            left_out[name] = str(error)
            worker.close()
    return workers, versions, left_out


def measure(
    workers: Mapping[str, Worker], case: AttentionCase, rounds: int, modes: Sequence[str] = MODES
) -> list[dict]:
    """The median times of a problem, one row for each engine, mode and dtype."""
    return [row for mode in modes for row in _mode(workers, case, mode, rounds)]


def _mode(workers: Mapping[str, Worker], case, mode: str, rounds: int) -> list[dict]:
    wanted = [(engine, "float32") for engine in ENGINES if engine in workers] + [(OURS, HALF)]
    tasks = [(e, d) for e, d in wanted if workers[e]("prepare", case, mode, d)]
    check(workers, case, mode, [engine for engine, dtype in tasks if dtype == "float32"])
    times: dict[tuple, list[float]] = {task: [] for task in tasks}
    for _ in range(rounds):
        for task, seconds in times.items():
            if not seconds or min(seconds) < SLOW_SECONDS:
                engine, dtype = task
                seconds += _seconds(workers[engine], (case, mode, dtype))
    for worker in workers.values():
        worker("forget")
    return [
        {"case": case.name, "mode": mode, "dtype": dtype, "engine": engine}
        | {"milliseconds": round(1e3 * statistics.median(samples), 4), "runs": len(samples)}
        for (engine, dtype), samples in times.items()
    ]


def _seconds(worker: Worker, key: tuple) -> list[float]:
    first = worker("seconds", *key)
    return first.seconds if min(first.seconds) > SLOW_SECONDS else undisturbed_seconds(worker, key)


def check(workers: Mapping[str, Worker], case, mode: str, engines: list[str]) -> None:
    """A fast wrong answer is none."""
    expected = workers[OURS]("results", case, mode, "float32")
    for engine in engines:
        actual = workers[engine]("results", case, mode, "float32")
        for a, e in zip(actual, expected, strict=True):
            error = np.max(np.abs(a - e)) / np.max(np.abs(e))
            if not error < 1e-3:
                raise ValueError(f"{engine} differs from {OURS} by {error} in {case} {mode}")
