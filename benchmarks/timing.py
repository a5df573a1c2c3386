# SPDX-License-Identifier: MIT
"""Times functions side by side, says on what, and joins results that were measured one after another."""

import importlib.metadata
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import jax_dcn
from jax_dcn._src.operator import libraries

PACKAGES = ("jax_dcn", "jax", "jaxlib", "torch", "numpy")


def medians(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each; a slow spell of the machine falls on all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            time.sleep(0.01)  # threads that another library left spinning fall asleep
            function()  # caches hold this function's data, not the last one's
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(samples) for name, samples in times.items()}


def merged(old: dict, new: dict, task: Sequence[str]) -> dict:
    """The new results, and of old ones of the same machine what was not measured anew.

    `task` names the columns that say what a row of `times` is about. The other tables have a value for
    each number of threads.
    """
    if old["machine"] != new["machine"]:
        return new

    def key(row: Mapping[str, object]) -> tuple[object, ...]:
        return tuple(row[column] for column in task)

    measured = set(map(key, new["times"]))
    kept = [row for row in old["times"] if key(row) not in measured]
    tables = {name: old[name] | new[name] for name in ("memory", "peak_gflops") if name in new}
    return {**new, **tables, "times": kept + new["times"]}


def machine() -> dict[str, str]:
    """Hardware and versions that a result was measured with."""
    return {
        "cpu": _cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernels": libraries.describe("cpu"),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _cpu_model() -> str:
    """Name, family and model: of a virtual machine, several generations have the same name."""
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    pairs = (line.partition(":") for line in reversed(lines))  # the first processor's come last
    found = {name.strip(): value.strip() for name, _, value in pairs}
    name = found.get("model name", platform.processor())
    fields = {"family": "cpu family", "model": "model"}
    generation = [f"{word} {found[field]}" for word, field in fields.items() if field in found]
    return f"{name} ({', '.join(generation)})" if generation else name


def _version(package: str) -> str:
    if package == "jax_dcn":
        return jax_dcn.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
