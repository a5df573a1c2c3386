# SPDX-License-Identifier: MIT
"""The steps of the proof on a GPU. Each returns what it found, for the report; `smoke` makes it small,
and leaves out what needs a GPU."""

import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.gpu.contestants import MODES, NUMBERS, REPEATS, arrays_of, contestants, programs
from benchmarks.gpu.device_time import seconds_on_device
from tests.deform_conv2d.cases import workload

ROOT = pathlib.Path(__file__).parents[2]

WORKLOADS = [
    workload("14x14x256 N32", 32, (14, 14), 256),
    workload("7x7x512 N32", 32, (7, 7), 512),
    workload("28x28x128 N32", 32, (28, 28), 128),
    workload("100x168x256 N2", 2, (100, 168), 256),
    workload("50x84x256 N2", 2, (50, 84), 256),
]
SMALL = [workload("5x6x8 N2", 2, (5, 6), 8)]
# Those that the fused kernels take, and one that they do not.
PROVEN = [
    workload("9x11x64 N3", 3, (9, 11), 64),
    workload("9x11x192 N3", 3, (9, 11), 192, feature_group_count=2, offset_groups=3),
    workload("9x11x36 N3", 3, (9, 11), 36, offset_groups=2),
]
# Largest error relative to the largest value: some units in the last place of what is multiplied.
TOLERANCE = {"bfloat16": 3e-2, "float16": 4e-3, "tf32": 4e-3, "float32": 1e-5}


def build(smoke: bool) -> dict:
    """The kernels for this GPU."""
    if smoke:
        return {"skipped": "nothing to build for"}
    definitions = "JAX_DCN_CUDA=ON;JAX_DCN_CUDA_ARCHITECTURES=native"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--editable", str(ROOT)]
    subprocess.run(command, check=True, env=os.environ | {"SKBUILD_CMAKE_DEFINE": definitions})
    return {"definitions": definitions}


def suite(smoke: bool) -> dict:
    """The whole test suite, on the GPU."""
    tests = ["tests/package/test_package.py"] if smoke else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return {"passed": done.returncode == 0, "summary": done.stdout.strip().splitlines()[-1:]}


def accuracy(smoke: bool) -> dict:
    """Largest errors of results and gradients, relative to the largest value, against XLA's."""
    found = {}
    for case in SMALL if smoke else PROVEN:
        for number in list(NUMBERS)[-1:] if smoke else NUMBERS:
            arrays, _ = arrays_of(case, NUMBERS[number][0])
            errors = [
                _error(jax.jit(f)(*arrays), jax.jit(exact)(*arrays))
                for f, exact in zip(
                    programs(case, number).values(),
                    programs(case, number, "xla", "highest").values(),
                    strict=True,
                )
            ]
            found[f"{case}, {number}"] = max(errors)
            assert max(errors) <= TOLERANCE[number], f"{case}, {number}: {errors}"
    return found


def _error(actual, exact) -> float:
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(exact), strict=True)
    wide = [[np.asarray(a, np.float64) for a in pair] for pair in pairs]
    return max(float(np.max(abs(a - e)) / np.max(abs(e))) for a, e in wide)


def reproducibility(smoke: bool) -> dict:
    """How many different results so many runs give; one is right."""
    runs, found = (3 if smoke else 100), {}
    for case in SMALL if smoke else WORKLOADS:
        for number in list(NUMBERS)[-1:] if smoke else NUMBERS:
            arrays, _ = arrays_of(case, NUMBERS[number][0])
            compute = jax.jit(programs(case, number)["backward"])
            bits = {
                b"".join(np.asarray(grad).tobytes() for grad in compute(*arrays))
                for _ in range(runs)
            }
            found[f"{case}, {number}"] = len(bits)
    return {"runs": runs, "different results": found}


def sanitizer(smoke: bool) -> dict:
    """What compute-sanitizer says while `accuracy` runs, on every kernel and type."""
    tool = shutil.which("compute-sanitizer")
    if smoke or not tool:
        return {"skipped": "there is no compute-sanitizer" if not tool else "there is no GPU"}
    found = {}
    # Memory from XLA's own pool would be one array to it.
    environment = os.environ | {"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}
    program = [sys.executable, "-m", "benchmarks.gpu", "--step", "accuracy"]
    for check in ("memcheck", "racecheck", "initcheck", "synccheck"):
        command = [tool, "--tool", check, "--error-exitcode", "1", *program]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        found[check] = {"clean": done.returncode == 0, "end": done.stdout.splitlines()[-3:]}
    return found


def memory(smoke: bool) -> dict:
    """Bytes of temporary memory of the compiled programs, as XLA plans it."""
    found: dict[str, dict] = {}
    for case in SMALL if smoke else WORKLOADS:
        for number in list(NUMBERS)[-1:] if smoke else NUMBERS:
            arrays, _ = arrays_of(case, NUMBERS[number][0])
            found[f"{case}, {number}"] = {
                mode: jax.jit(f).lower(*arrays).compile().memory_analysis().temp_size_in_bytes
                for mode, f in programs(case, number).items()
            }
    return found


def speed(smoke: bool) -> dict:
    """Microseconds of one run: on the device, and by the host's clock, which waits for it."""
    rounds, found = (1 if smoke else 7), {}
    for case in SMALL if smoke else WORKLOADS:
        for number in list(NUMBERS)[-1:] if smoke else NUMBERS:
            functions = contestants(case, number)
            found[f"{case}, {number}"] = {
                mode: _times({n: f[mode] for n, f in functions.items()}, rounds) for mode in MODES
            }
            print(case, number, found[f"{case}, {number}"], flush=True)
    return {"backward holds": "the forward pass where gradients need it", "microseconds": found}


def _times(functions: dict[str, Callable], rounds: int) -> dict[str, dict[str, float | None]]:
    """Medians of interleaved rounds, after one that compiles."""
    for function in functions.values():
        function()
    clocks = {"device": seconds_on_device, "host": _seconds_by_host}
    times: dict[str, dict[str, list]] = {name: {c: [] for c in clocks} for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            for clock, seconds in clocks.items():
                times[name][clock].append(seconds(function))
    return {name: {c: _median(t) for c, t in of.items()} for name, of in times.items()}


def _median(times: list[float | None]) -> float | None:
    """Microseconds of one run of `REPEATS`; nothing where no device was."""
    seconds = [t for t in times if t is not None]
    return 1e6 * statistics.median(seconds) / REPEATS if seconds else None


def _seconds_by_host(function: Callable) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


STEPS = {
    step.__name__: step
    for step in (build, suite, accuracy, reproducibility, sanitizer, memory, speed)
}
