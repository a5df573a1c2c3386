# SPDX-License-Identifier: MIT
"""Times functions side by side, and says on what."""

import importlib.metadata
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping

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
    information = pathlib.Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str:
    if package == "jax_dcn":
        return jax_dcn.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
