# SPDX-License-Identifier: MIT
"""Proves and measures the CUDA kernels on a GPU, in one command: `python -m benchmarks.gpu`

It builds them for this GPU, runs the whole test suite on it, checks that 100 runs give the same bits,
runs compute-sanitizer on small problems, and times every layer of `WORKLOADS`: our kernels against
torchvision, against XLA's ordinary convolution and against our `"xla"` implementation, in device time.
The results go to `benchmarks/results/gpu.json`. Steps can be named; `--smoke` runs what needs no GPU,
on small problems, to prove this program.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import machine
from jax_dcn import deform_conv2d
from tests.cases import Case, workload

ROOT = pathlib.Path(__file__).parents[1]

WORKLOADS = [
    workload("14x14x256 N32", 32, (14, 14), 256),
    workload("7x7x512 N32", 32, (7, 7), 512),
    workload("28x28x128 N32", 32, (28, 28), 128),
    workload("100x168x256 N2", 2, (100, 168), 256),
    workload("50x84x256 N2", 2, (50, 84), 256),
]
SMALL = [workload("5x6x8 N2", 2, (5, 6), 8)]
# (dtype, precision of products): TF32 is what XLA does with float32 unless it is told otherwise.
NUMBERS = {
    "bfloat16": ("bfloat16", "default"),
    "float16": ("float16", "default"),
    "tf32": ("float32", "default"),
    "float32": ("float32", "highest"),
}
MODES = ("forward", "backward")
REPEATS = 20  # of a function in one measurement, so that a launch is small beside it


# ---------------------------------------------------------------------------------------- contestants


def arrays_of(case: Case, dtype: str) -> tuple[list[jax.Array], jax.Array]:
    """The operands and the cotangent; offset and mask are in float32 at least."""
    names = ("x", "kernel", "offset", "mask", "bias")
    wide = {"offset": "float32", "mask": "float32"}
    arrays = [
        jnp.asarray(a).astype(wide.get(name, dtype))
        for name, a in zip(names, case.arrays(), strict=True)
    ]
    return arrays, jnp.asarray(case.cotangent()).astype(dtype)


def programs(case: Case, number: str, implementation: str | None = None) -> dict[str, Callable]:
    """The operator, and all its gradients, as functions of the operands."""
    dtype, precision = NUMBERS[number]
    options = dict(**case.options, precision=precision, implementation=implementation)
    return with_backward(
        lambda *arrays: deform_conv2d(*arrays, **options), arrays_of(case, dtype)[1]
    )


def with_backward(f: Callable, grad_y: jax.Array) -> dict[str, Callable]:
    return {"forward": f, "backward": lambda *arrays: jax.vjp(f, *arrays)[1](grad_y)}


def repeatedly(functions: dict[str, Callable], arrays: list) -> dict[str, Callable]:
    """`REPEATS` runs of each, one after the other in one program."""

    def repeated(g):
        def step(values, _):
            # The next run's input hangs on this one's output, so that none is left out.
            results = jax.tree.leaves(g(*values))
            first = results[0].ravel()[0].astype(values[0].dtype)
            moved = values[0] + (first * 0)[None, None, None, None]
            return (moved, *values[1:]), first

        run = jax.jit(lambda *values: jax.lax.scan(step, values, length=REPEATS)[1])
        return lambda: jax.block_until_ready(run(*arrays))

    return {mode: repeated(function) for mode, function in functions.items()}


def ordinary_convolution(case: Case, number: str) -> dict[str, Callable]:
    dtype, precision = NUMBERS[number]
    (x, kernel, _, _, bias), grad_y = arrays_of(case, dtype)

    def convolve(x, kernel, bias):
        with jax.default_matmul_precision(precision):
            return case.ordinary_convolution(x, kernel) + bias[None, None, None, :]

    return repeatedly(with_backward(convolve, grad_y), [x, kernel, bias])


def torchvision(case: Case, number: str) -> dict[str, Callable]:
    """Torchvision's operator in its better layout; nothing where it is not, or not of the dtype."""
    if not importlib.util.find_spec("torchvision") or number == "bfloat16":
        return {}
    import torch
    from torchvision.ops import deform_conv2d as operator

    if not torch.cuda.is_available() and jax.default_backend() == "gpu":
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and number != "float32":
        return {}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = number == "tf32"
    dtype = torch.float16 if number == "float16" else torch.float32

    def tensor(array, axes=None):
        array = torch.from_numpy(np.array(array, np.float32)).to(device, dtype)
        return (array if axes is None else array.permute(axes)).contiguous()

    x, kernel, offset, mask, bias = case.arrays()
    channels_first = (0, 3, 1, 2)
    operands = [
        tensor(x, channels_first),
        tensor(offset.reshape(*offset.shape[:3], -1), channels_first),
        tensor(kernel, (3, 2, 0, 1)),
        tensor(bias),
    ]
    mask = tensor(mask.reshape(*mask.shape[:3], -1), channels_first)
    grad_y = tensor(case.cotangent(), channels_first)
    (top, _), (left, _) = case.geometry.padding
    options = dict(stride=case.strides, padding=(top, left), dilation=case.kernel_dilation)
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    for array in (*operands, mask):
        array.requires_grad_()

    def forward():
        with torch.no_grad():
            for _ in range(REPEATS):
                operator(*operands, mask=mask, **options)
        synchronize()

    def backward():
        for _ in range(REPEATS):
            y = operator(*operands, mask=mask, **options)
            torch.autograd.grad(y, (*operands, mask), grad_y)
        synchronize()

    return {"forward": forward, "backward": backward}


def contestants(case: Case, number: str) -> dict[str, dict[str, Callable]]:
    arrays, _ = arrays_of(case, NUMBERS[number][0])
    found = {
        "native": repeatedly(programs(case, number), arrays),
        "xla": repeatedly(programs(case, number, "xla"), arrays),
        "convolution": ordinary_convolution(case, number),
        "torchvision": torchvision(case, number),
    }
    return {name: functions for name, functions in found.items() if functions}


# ----------------------------------------------------------------------------------------------- steps


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
    tests = ["tests/test_cuda_lowering.py", "-k", "one_call"] if smoke else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return {"passed": done.returncode == 0, "summary": done.stdout.strip().splitlines()[-1:]}


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
    """What compute-sanitizer says of small problems."""
    tool = shutil.which("compute-sanitizer")
    if smoke or not tool:
        return {"skipped": "there is no compute-sanitizer" if not tool else "there is no GPU"}
    found = {}
    for check in ("memcheck", "racecheck", "initcheck", "synccheck"):
        command = [tool, "--tool", check, "--error-exitcode", "1", sys.executable, "-m", "pytest"]
        tests = [
            "-q",
            "tests/test_deform_conv2d.py",
            "-k",
            "native and float32 and (plain or deep)",
        ]
        done = subprocess.run(
            [*command, *tests],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=os.environ | {"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"},
        )
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
    """Microseconds of one run, the median of interleaved rounds."""
    rounds, found = (1 if smoke else 7), {}
    for case in SMALL if smoke else WORKLOADS:
        for number in list(NUMBERS)[-1:] if smoke else NUMBERS:
            functions = contestants(case, number)
            found[f"{case}, {number}"] = {
                mode: _medians({n: f[mode] for n, f in functions.items()}, rounds) for mode in MODES
            }
            print(case, number, found[f"{case}, {number}"], flush=True)
    return {"backward holds": "the forward pass where gradients need it", "microseconds": found}


def _medians(functions: dict[str, Callable], rounds: int) -> dict[str, float]:
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - start) / REPEATS)
    return {name: 1e6 * statistics.median(seconds) for name, seconds in times.items()}


STEPS = {step.__name__: step for step in (build, suite, reproducibility, sanitizer, memory, speed)}


def gpu() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader"]
    if not shutil.which(query[0]):
        return "none"
    return subprocess.run(query, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--json", type=pathlib.Path, default=ROOT / "benchmarks/results/gpu.json")
    parser.add_argument("--smoke", action="store_true", help="small problems, on whatever there is")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:  # a process of its own, so that no step holds the GPU's memory for the next
        if not options.smoke and jax.default_backend() != "gpu":
            sys.exit("There is no GPU, or JAX was installed without CUDA. --smoke needs none.")
        print(json.dumps(STEPS[options.step](options.smoke)))
        return
    report = {"gpu": gpu(), "machine": machine(), "smoke": options.smoke}
    for name in options.steps:
        print(f"{name} ...", flush=True)
        flags = ["--smoke"] if options.smoke else []
        command = [sys.executable, "-m", "benchmarks.gpu", "--step", name, *flags]
        output = subprocess.run(
            command, cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
        report[name] = json.loads(output.splitlines()[-1])
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {options.json}")


if __name__ == "__main__":
    main()
