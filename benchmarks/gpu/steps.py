# SPDX-License-Identifier: MIT
"""The steps of the proof on a GPU. Each yields its findings for the report, growing layer by layer.

`smoke` runs small problems, and puts in the place of what needs a GPU what can be checked without one.
"""

import concurrent.futures
import importlib.util
import itertools
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from benchmarks.attention.cases import CASES as ATTENTION, AttentionCase
from benchmarks.gpu.contestants import (
    MODES,
    NUMBERS,
    REPEATS,
    Layer,
    arrays_of,
    contestants,
    numbers_of,
    programs,
    reason,
    repeatedly,
)
from benchmarks.gpu.device_time import seconds_on_device
from benchmarks.gpu.rule import (
    correction,
    environment_variable,
    expected_times,
    invented,
    on_path,
    program_of,
)
from jax_dcn._src.deform_conv2d import cost
from jax_dcn._src.operator.chunks import VARIABLE, chunk_bytes
from tests.deform_conv2d.cases import Case, workload
from tests.deform_roi_pool.cases import RoICase

ROOT = pathlib.Path(__file__).parents[2]
FOUND = "found: "  # before the findings of a step in its output

WORKLOADS: list[Layer] = [
    workload("14x14x256 N32", 32, (14, 14), 256),
    workload("7x7x512 N32", 32, (7, 7), 512),
    workload("28x28x128 N32", 32, (28, 28), 128),
    workload("100x168x256 N2", 2, (100, 168), 256),
    workload("50x84x256 N2", 2, (50, 84), 256),
    *(case for case in ATTENTION if case.name.startswith("A")),
]
SMALL: list[Layer] = [
    workload("5x6x8 N2", 2, (5, 6), 8),
    AttentionCase("attention", ((4, 5), (2, 3)), 2, 2, 8, batch=2),
    RoICase("regions", 2, (6, 5), 4, 3, samples=2),
]
# Three layers that the fused kernels take, of which the last has more tiles of 128 features than any GPU
# has multiprocessors, and one that they do not; attention by vectors and not, in whose last map a pixel is read
# more often than a warp sorts; features of regions by vectors and not.
PROVEN: list[Layer] = [
    workload("9x11x64 N3", 3, (9, 11), 64),
    workload("9x11x192 N3", 3, (9, 11), 192, feature_group_count=2, offset_groups=3),
    workload("40x41x256 N4", 4, (40, 41), 256),
    workload("9x11x36 N3", 3, (9, 11), 36, offset_groups=2),
    AttentionCase("attention 8x32 N2", ((19, 17), (3, 4)), 4, 8, 32, batch=2),
    AttentionCase("attention 2x37 N2", ((19, 17), (3, 4)), 23, 2, 37, scattered=True, batch=2),
    RoICase("regions of 16", 2, (9, 11), 16, 7, samples=2, group_size=2, classes=2),
    RoICase("regions of 5", 2, (9, 11), 5, 7, pooled_size=(2, 3), samples=0, aligned=True),
]
SMALL_CHUNKS = 200_000  # bytes: parts of an image, of all but the smallest layers
# Parts of the names of the layers to run, and the numbers to compute in, separated by commas.
LAYERS, CHOSEN_NUMBERS = "JAX_DCN_GPU_LAYERS", "JAX_DCN_GPU_NUMBERS"

# Largest error relative to the largest value: some units in the last place of what is multiplied.
TOLERANCE = {"bfloat16": 3e-2, "float16": 4e-3, "tf32": 4e-3, "float32": 1e-5}


# Float32 in the test suite means float32: XLA's products on a GPU are in TF32 unless told otherwise,
# which the suite's tolerances do not allow. TF32 is proven by `accuracy`.
# Several processes share the memory of the GPU.
SUITE_ENVIRONMENT = {
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}


def build(smoke: bool) -> Iterator[dict]:
    """The kernels for this GPU; `smoke` configures the same build, and compiles nothing.

    The build needs no network where its tools are installed. A second build compiles what has changed.
    """
    definitions = "JAX_DCN_CUDA=ON;JAX_DCN_CUDA_ARCHITECTURES=native"
    if smoke:
        yield _configure(definitions)
        return
    environment = os.environ | {"SKBUILD_CMAKE_DEFINE": definitions}
    subprocess.run(build_command(), check=True, cwd=ROOT, env=environment)
    yield {"definitions": definitions}


def build_command() -> list[str]:
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--editable", str(ROOT)]
    command += ["--disable-pip-version-check"]  # which waits for the network
    command += [f"--config-settings=build-dir={ROOT / 'build/gpu'}"]
    tools = ("scikit_build_core", "pybind11")
    here = all(importlib.util.find_spec(tool) for tool in tools)
    return [*command, *(["--no-build-isolation"] if here else [])]


def _configure(definitions: str) -> dict:
    missing = [tool for tool in ("cmake", "ninja", "nvcc", "nvidia-smi") if not shutil.which(tool)]
    if missing:
        return {"skipped": f"there is no {', '.join(missing)}"}
    import pybind11

    options = [f"-D{definition}" for definition in definitions.split(";")]
    options += [
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        command = ["cmake", "-S", str(ROOT), "-B", folder, "-G", "Ninja", *options]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the build does not configure:\n{done.stderr}")
    return {"configured": definitions}


# Tests of the kernels without a GPU: kernels are built, chosen, lowered, and run by an emulator.
HOST_TESTS = [
    f"tests/native/test_cuda_{name}.py"
    for name in ("build", "cost", "divisor", "fused_rule", "lowering", "on_host")
]
# The tests that run on the device. What the others test is the same with a GPU and without.
SUITE = [
    f"tests/{name}"
    for name in ("laws", "deform_conv2d", "deform_aggregate", "deform_roi_pool", "layers")
]


def host(smoke: bool) -> Iterator[dict]:
    """The tests of the kernels on the processor of this machine; `smoke` only collects them."""
    yield from _tests(HOST_TESTS, smoke, {"JAX_PLATFORMS": "cpu"})


def suite(smoke: bool) -> Iterator[dict]:
    """The tests of the operators and of their layers, on the GPU; `smoke` only collects them."""
    yield from _tests(SUITE, smoke, SUITE_ENVIRONMENT)


def _tests(tests: list[str], smoke: bool, environment: dict[str, str]) -> Iterator[dict]:
    """How many tests have ended in which way so far, and the names of those that failed."""
    # Files that need a package that is not here must not keep the other files from their run.
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", *tests]
    command += ["--continue-on-collection-errors", "--maxfail", str(MOST_FAILURES)]
    if smoke:
        command.append("--collect-only")
    elif importlib.util.find_spec("xdist"):
        command += ["--numprocesses", "8", "--dist", "loadfile", "--no-loadscope-reorder"]
    counts: dict[str, int] = {}
    failed: list[str] = []
    lines: list[str] = []
    with subprocess.Popen(
        command,
        **dict(cwd=ROOT, env=os.environ | environment, text=True),
        **dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT),
    ) as process:
        for line in process.stdout or ():
            lines.append(line.rstrip())
            outcome = next((o for o in OUTCOMES if f" {o}" in line and "::" in line), None)
            if outcome is None:
                continue
            counts[outcome] = counts.get(outcome, 0) + 1
            failed += [line.strip()] if outcome in ("FAILED", "ERROR") else []
            if sum(counts.values()) % 50 == 0:
                yield {"counts": counts, "failed tests": failed}
    passed = process.returncode == 0
    found = {"passed": passed, "counts": counts, "summary": lines[-1:]}
    yield found if passed else found | {"failed tests": failed, "end": lines[-400:]}


OUTCOMES = ("PASSED", "FAILED", "ERROR", "SKIPPED", "XFAIL")
MOST_FAILURES = 40  # after which pytest says why tests have failed, while there is time


def layers(smoke: bool, large: list[Layer] = WORKLOADS) -> list[Layer]:
    """The layers of a step; of `large`, only the layers that `--layers` names."""
    chosen = os.environ.get(LAYERS, "").split(",")
    return SMALL if smoke else [case for case in large if any(n in case.name for n in chosen)]


def chosen_numbers(case: Layer, smoke: bool) -> list[str]:
    """The numbers that a layer computes in and that `--numbers` names."""
    chosen = os.environ.get(CHOSEN_NUMBERS) or ",".join(NUMBERS)
    numbers = [n for n in numbers_of(case) if n in chosen.split(",")]
    return numbers_of(case)[-1:] if smoke else numbers


def problems(smoke: bool) -> Iterator[tuple[str, Layer]]:
    """All layers in one kind of number, then all in the next one."""
    for number in NUMBERS:
        for case in layers(smoke):
            if number in chosen_numbers(case, smoke):
                yield number, case


def paths_of(case: Layer, smoke: bool) -> Iterator[str]:
    """The paths on CUDA, on each of which programs are lowered: the path that is not chosen, too."""
    one_path = smoke or not isinstance(case, Case)
    for path in cost.PATHS[-1:] if one_path else cost.PATHS:
        with on_path(path):
            yield path


def ways_of(case: Layer, smoke: bool, sizes: Sequence[int | None]) -> Iterator[str]:
    """The paths on CUDA with each size of chunks, and with the size of this GPU where it is None."""
    for path, size in itertools.product(paths_of(case, smoke), sizes):
        if size is None:
            yield path
        else:
            with environment_variable(VARIABLE, str(size)):
                yield f"{path} in chunks"


def accuracy(smoke: bool) -> Iterator[dict]:
    """Largest errors of results, gradients and tangents, relative to the largest value, against XLA's.

    Every layer is computed, also after one that is wrong.
    """
    found: dict[str, float | str] = {}
    wrong = []
    for case in SMALL if smoke else PROVEN:
        for number in chosen_numbers(case, smoke):
            arrays, _ = arrays_of(case, NUMBERS[number][0])
            exact = _results(case, number, arrays, "xla", "highest")
            for way in ways_of(case, smoke, (None, SMALL_CHUNKS)):
                name = f"{case}, {number}, {way}"
                try:
                    error = _error(_results(case, number, arrays, "native"), exact)
                except Exception as failure:
                    found[name] = reason(failure)
                    wrong.append(name)
                    continue
                found[name] = error
                wrong += [] if error <= TOLERANCE[number] else [name]
        yield found
    assert not wrong, f"wrong: {wrong}"


def _results(case: Layer, number: str, arrays: list[jax.Array], *how: str) -> list:
    """The result, the gradients and the tangent along the operands, which XLA compiles side by side."""
    functions = programs(case, number, *how)
    functions["tangent"] = lambda *arrays: jax.jvp(functions["forward"], arrays, arrays)[1]
    lowered = [jax.jit(f).lower(*arrays) for f in functions.values()]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return [program(*arrays) for program in pool.map(lambda one: one.compile(), lowered)]


def _error(actual, exact) -> float:
    """The largest error of several arrays, each relative to its largest value; NaN if there is one."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(exact), strict=True)
    wide = [[np.asarray(a, np.float64) for a in pair] for pair in pairs]
    # The gradient of regions is zero.
    return float(np.max([np.max(abs(a - e)) / (np.max(abs(e)) or 1.0) for a, e in wide]))


def reproducibility(smoke: bool) -> Iterator[dict]:
    """How many different results so many runs give; one is right."""
    runs, found = (3 if smoke else 100), {}
    for number, case in problems(smoke):
        arrays, _ = arrays_of(case, NUMBERS[number][0])
        for path in paths_of(case, smoke):
            compute = jax.jit(programs(case, number, "native")["backward"])
            bits = {
                b"".join(np.asarray(grad).tobytes() for grad in compute(*arrays))
                for _ in range(runs)
            }
            found[f"{case}, {number}, {path}"] = len(bits)
        yield {"runs": runs, "different results": found}


def kernels(smoke: bool) -> Iterator[dict]:
    """Runs what `accuracy` proves, for the sanitizers, and keeps the compiled programs for them."""
    # Memory from XLA's own pool would be one array to a sanitizer, and XLA would time its own kernels.
    os.environ["XLA_PYTHON_CLIENT_ALLOCATOR"] = "platform"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    if not smoke:
        jax.config.update("jax_compilation_cache_dir", str(ROOT / "build/gpu-programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    ran: list[str] = []
    for case in SMALL if smoke else PROVEN:
        # The kernels of both 16-bit types are the same code.
        for number in (n for n in chosen_numbers(case, smoke) if n != "float16"):
            arrays, _ = arrays_of(case, NUMBERS[number][0])
            for way in ways_of(case, smoke, (SMALL_CHUNKS,)):
                jax.block_until_ready(_results(case, number, arrays, "native"))
                ran.append(f"{case}, {number}, {way}")
        yield {"ran": ran}


def memcheck(smoke: bool) -> Iterator[dict]:
    """Accesses out of bounds, as compute-sanitizer finds them."""
    yield from _checked("memcheck", smoke, "--report-api-errors", "no")


def racecheck(smoke: bool) -> Iterator[dict]:
    """Races in shared memory."""
    yield from _checked("racecheck", smoke)


def synccheck(smoke: bool) -> Iterator[dict]:
    """Barriers that some threads do not reach."""
    yield from _checked("synccheck", smoke)


def initcheck(smoke: bool) -> Iterator[dict]:
    """Reads of memory that nobody has written. The kernels of others write what ours read."""
    yield from _checked("initcheck", smoke)


def _checked(check: str, smoke: bool, *options: str) -> Iterator[dict]:
    """The output of compute-sanitizer so far, while `kernels` runs, and its reports of our kernels."""
    folders = os.environ.get("PATH", ""), "/usr/local/cuda/bin"
    tool = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
    if not tool:
        yield {"skipped": "there is no compute-sanitizer"}
        return
    only_ours = [] if check == "initcheck" else ["--kernel-name", "kns=jax_dcn"]
    command = [tool, "--tool", check, "--error-exitcode", "1", *options, *only_ours]
    command += [sys.executable, "-m", "benchmarks.gpu", "--step", "kernels"]
    lines: list[str] = []
    with subprocess.Popen(
        [*command, *(["--smoke"] if smoke else [])],
        **dict(cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT),
    ) as process:
        for line in process.stdout or ():
            lines.append(line.rstrip())
            # One line follows the programs of each layer, and says which have run.
            if line.startswith(FOUND):
                yield _said(lines)
    yield _said(lines) | {"clean": process.returncode == 0}


def _said(lines: list[str]) -> dict:
    """The last lines, and the lines that name one of our kernels, with the line before each."""
    said = [line for line in lines if line.startswith("=====")]
    ours = [i for i, line in enumerate(said) if "jax_dcn" in line]
    around = [text for i in ours[:20] for text in said[max(0, i - 1) : i + 1]]
    return {"reports of our kernels": len(ours), "the first": around, "end": lines[-20:]}


def memory(smoke: bool) -> Iterator[dict]:
    """Bytes of temporary memory of the compiled programs, as XLA plans it."""
    found: dict[str, dict] = {}
    for number, case in problems(smoke):
        arrays, _ = arrays_of(case, NUMBERS[number][0])
        found[f"{case}, {number}"] = {
            mode: jax.jit(f).lower(*arrays).compile().memory_analysis().temp_size_in_bytes
            for mode, f in programs(case, number, "native").items()
        }
        yield found


def speed(smoke: bool) -> Iterator[dict]:
    """Microseconds of one run: on the device, and by the host's clock, which waits for it."""
    rounds, found = (1 if smoke else 7), {}
    for number, case in problems(smoke):
        functions, failed = contestants(case, number)
        found[f"{case}, {number}"] = {
            mode: _times({n: f[mode] for n, f in functions.items()}, rounds) for mode in MODES
        }
        found[f"{case}, {number}"] |= {"failed": failed} if failed else {}
        yield {
            "backward holds": "the forward pass where gradients need it",
            "microseconds": found,
        }


def rule(smoke: bool) -> Iterator[dict]:
    """Both paths on CUDA of each part beside what the cost model expects, and what its factors should be.

    `smoke` takes invented times.
    """
    gpu, found = cost.gpu_here(), []
    for number in ("bfloat16", "float16", "tf32"):
        for case in PROVEN[:1] if smoke else layers(smoke):
            if not isinstance(case, Case):
                continue
            for part in cost.PARTS:
                expected = expected_times(gpu, case, number, part)
                found.append(invented(expected) if smoke else _measured(case, number, part))
                found[-1] |= {"layer": f"{case}, {number}", "part": part, "expected": expected}
            yield correction(gpu, found)


def _measured(case: Case, number: str, part: str) -> dict:
    arrays, _ = arrays_of(case, NUMBERS[number][0])
    functions = {}
    for path in cost.PATHS:
        functions[path] = repeatedly({part: program_of(part, case, number)}, arrays)[part]
        with on_path(path):
            functions[path]()  # compiles
    times = _times(functions, rounds=7)
    return {"measured": {p: times[p]["device"] or times[p]["host"] for p in cost.PATHS}}


def chunks(smoke: bool) -> Iterator[dict]:
    """Microseconds of the backward pass by the size of chunks, which jax_dcn/_src/operator/chunks.py names."""
    found: dict[str, dict] = {}
    for case in layers(smoke):
        number = "bfloat16" if isinstance(case, Case) else "float32"
        arrays, _ = arrays_of(case, NUMBERS[number][0])
        functions = {}
        for megabytes in (10, 20, 40, 80):
            backward = programs(case, number, "native")["backward"]
            functions[megabytes] = repeatedly({"backward": backward}, arrays)["backward"]
            with on_path("columns"), environment_variable(VARIABLE, str(megabytes * 10**6)):
                functions[megabytes]()  # compiles
        times = _times(functions, rounds=1 if smoke else 7)
        found[f"{case}, {number}"] = {f"{size} MB": time for size, time in times.items()}
        yield {"used here": chunk_bytes(), "microseconds": found}


def _times(functions: dict[str, Callable], rounds: int) -> dict[str, dict[str, float | None]]:
    """Medians of interleaved rounds, after one that compiles."""
    for function in functions.values():
        function()
    clocks = {"device": seconds_on_device, "host": _seconds_by_host}
    times: dict[str, dict[str, list]] = {name: {c: [] for c in clocks} for name in functions}
    for done in range(rounds):
        for name, function in functions.items():
            for clock, seconds in clocks.items():
                if clock == "host" or done < DEVICE_ROUNDS:
                    times[name][clock].append(seconds(function))
    return {name: {c: _median(t) for c, t in of.items()} for name, of in times.items()}


# The profiler takes far longer to start and to write its record than the function takes.
DEVICE_ROUNDS = 3


def _median(times: list[float | None]) -> float | None:
    """Microseconds of one run of `REPEATS`; nothing where no device was."""
    seconds = [t for t in times if t is not None]
    return 1e6 * statistics.median(seconds) / REPEATS if seconds else None


def _seconds_by_host(function: Callable) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


CHECKS = (memcheck, racecheck, synccheck, initcheck)
STEPS = {
    step.__name__: step
    for step in (
        *(build, host, accuracy, speed, reproducibility),
        *(kernels, *CHECKS),
        *(rule, chunks, memory, suite),
    )
}
# These run other programs, which need the memory of the GPU, or choose how XLA starts.
OTHER_PROGRAMS = (build, host, kernels, *CHECKS, suite)
