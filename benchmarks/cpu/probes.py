# SPDX-License-Identifier: MIT
"""What a worker measures: time, memory, and the processor's peak."""

import ctypes
import dataclasses
import os
import pathlib
import re
import time

import numpy as np

from benchmarks.cpu.engines import Task

_STATUS = pathlib.Path("/proc/self/status")
_RESET_PEAK = "5"  # proc(5), clear_refs


@dataclasses.dataclass(frozen=True)
class Sample:
    """Times of some runs, and how many processors other processes kept busy meanwhile."""

    seconds: list[float]
    disturbance: float


def sample(task: Task) -> Sample:
    """A few runs, after one that fills the caches and wakes the threads."""
    task.run()
    start, others, seconds = time.perf_counter(), _busy_others(), []
    while not seconds or (time.perf_counter() - start < 0.1 and len(seconds) < 20):
        before = time.perf_counter()
        task.run()
        seconds.append(time.perf_counter() - before)
    span = time.perf_counter() - start
    # The kernel counts in ticks: one on each processor may be mistaken.
    tick = 1 / os.sysconf("SC_CLK_TCK")
    return Sample(seconds, max(0.0, _busy_others() - others - 2 * tick) / span)


def _busy_others() -> float:
    """Processor seconds that other processes have used, or nothing where that is not told."""
    statistics = pathlib.Path("/proc/stat")
    if not statistics.exists():
        return 0.0
    ticks = [int(field) for field in statistics.read_text().split("\n", 1)[0].split()[1:9]]
    idle = ticks[3] + ticks[4]  # and waiting for disks
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK") - time.process_time()


def memory(task: Task) -> dict[str, float]:
    """Of a run: its results, and the peak beside them and its arguments; 10^6 bytes."""
    peaks = []
    for _ in range(3):
        _give_freed_memory_back()
        before = _status("VmRSS")
        pathlib.Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
        results = task.run()
        peaks.append(_status("VmHWM") - before)
        result_bytes = sum(r.nbytes for r in results)
        del results
    return {"results": result_bytes / 1e6, "beside": (max(peaks) - result_bytes) / 1e6}


def _give_freed_memory_back() -> None:
    """What the allocator keeps of earlier runs would count as in use before, or beside this one."""
    ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> int:
    """Bytes, from a line like `VmRSS:  1234 kB`."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", _STATUS.read_text())[1])


def peak_gflops() -> float:
    """Of the best of some products of large matrices by NumPy's BLAS, in float32."""
    size, times = 2048, []
    a = np.random.default_rng(0).random((size, size), np.float32)
    for _ in range(8):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times) / 1e9
