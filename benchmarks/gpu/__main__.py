# SPDX-License-Identifier: MIT
"""Proves and measures the CUDA kernels on a GPU, in one command: `python -m benchmarks.gpu`

It builds the kernels for this GPU, runs their tests on the host and the operators' tests on the GPU, compares
results, gradients and tangents with XLA's, checks that 100 runs give the same bits, runs compute-sanitizer,
asks XLA for peak memory, and times every layer of `WORKLOADS`: our kernels against torchvision, against XLA's
ordinary convolution and against our `"xla"` implementation, in device time and by the host's clock. The
results go to `benchmarks/results/gpu.json`, after each layer. Steps, layers and numbers can be named.

`--session 1`, `2` and `3` share the work between three commands of ten minutes, of which the first is worth
most. What a session has no time for is named in its results. `--smoke` proves this program without a GPU:
small problems, the build only configured, the tests only collected.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import jax

from benchmarks.gpu.contestants import NUMBERS
from benchmarks.gpu.steps import (
    CHECKS,
    CHOSEN_NUMBERS,
    FOUND,
    LAYERS,
    OTHER_PROGRAMS,
    ROOT,
    STEPS,
)
from benchmarks.timing import machine
from jax_dcn import available_implementations

STATE = "state: "  # before what the step runs on

# Steps, numbers and minutes of each session: less than ten with all that starts before the first step, and
# less than thirty together with the start of the machine. The step "host" needs no GPU, and is in no session.
SESSIONS = {
    1: (("build", "accuracy", "speed"), ("float16", "bfloat16"), 9.2),
    2: (
        ("build", "kernels", *(check.__name__ for check in CHECKS), "reproducibility", "suite"),
        tuple(NUMBERS),
        9.2,
    ),
    3: (("build", "rule", "chunks", "memory", "speed"), ("tf32", "float32"), 7.0),
}
ALL = (tuple(STEPS), tuple(NUMBERS), 24 * 60.0)


def gpu() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader"]
    if not shutil.which(query[0]):
        return "none"
    return subprocess.run(query, capture_output=True, text=True).stdout.strip()


def reports_of(
    step: str, smoke: bool, environment: dict[str, str], seconds: float
) -> Iterator[dict]:
    """The report of a step as it grows, from a process of its own: the GPU's memory is the step's.

    The step reports its findings under its name, and what it runs on. A step that fails reports the end of
    its output beside the findings before. A step that takes more than `seconds` is stopped.
    """
    command = [sys.executable, "-m", "benchmarks.gpu", "--step", step]
    found: dict = {}
    state: dict = {}
    output: list[str] = []
    with subprocess.Popen(
        [*command, *(["--smoke"] if smoke else [])],
        **dict(cwd=ROOT, env=os.environ | environment, text=True, start_new_session=True),
        **dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT),
    ) as process:
        late = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
        late.start()
        try:
            for line in process.stdout or ():
                if (said := _said_after(STATE, line)) is not None:
                    state = said
                elif (said := _said_after(FOUND, line)) is not None:
                    found = said
                    yield state | {step: found}
                else:
                    output.append(line.rstrip())
            process.wait()
        finally:
            late.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode == -signal.SIGKILL:
        yield state | {step: found | {"stopped": "there was no time left"}}
    elif process.returncode:
        yield state | {step: found | {"failed": output[-80:]}}


def _said_after(start: str, line: str) -> dict | None:
    """The report in a line of a step; `None` for other lines, and for reports that other output cut up."""
    try:
        return json.loads(line.removeprefix(start)) if line.startswith(start) else None
    except ValueError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--session", type=int, choices=SESSIONS, help="a part of the work")
    parser.add_argument("--steps", nargs="+", choices=STEPS)
    parser.add_argument("--layers", nargs="+", default=[""], help="parts of layers' names")
    parser.add_argument("--numbers", nargs="+", choices=NUMBERS)
    parser.add_argument("--minutes", type=float, help="no step runs on after so many")
    parser.add_argument("--json", type=pathlib.Path, default=ROOT / "benchmarks/results/gpu.json")
    parser.add_argument("--smoke", action="store_true", help="small problems, on whatever there is")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        return run_step(options.step, options.smoke)
    # The memory of the GPU is for the processes of the steps.
    jax.config.update("jax_platforms", "cpu")
    if not (options.smoke or options.steps == ["host"] or shutil.which("nvidia-smi")):
        sys.exit("There is no GPU. --smoke and --steps host need none.")
    steps, numbers, minutes = SESSIONS.get(options.session, ALL)
    environment = {
        LAYERS: ",".join(options.layers),
        CHOSEN_NUMBERS: ",".join(options.numbers or numbers),
    }
    report = run(
        *(options.steps or steps, options.json, options.smoke, environment),
        deadline(options.minutes or minutes),
    )
    print(f"written to {options.json}")
    failed = [name for name in options.steps or steps if "failed" in report[name]]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run_step(step: str, smoke: bool) -> None:
    """Prints what a step runs on and finds, in the process of the step."""
    if STEPS[step] not in OTHER_PROGRAMS:
        state = {"machine": machine(), "implementations": available_implementations()}
        print(STATE + json.dumps(state), flush=True)
    for found in STEPS[step](smoke):
        print(FOUND + json.dumps(found), flush=True)


def deadline(minutes: float) -> float:
    return time.monotonic() + 60 * minutes


def run(
    steps: list[str] | tuple[str, ...],
    results: pathlib.Path,
    smoke: bool,
    environment: dict[str, str],
    end: float,
) -> dict:
    """Runs the steps one after the other, and writes the report to `results` whenever it grows.

    Each step has an equal share of the time that is left, but for the build, without which there is nothing.
    """
    report: dict = {"gpu": gpu(), "smoke": smoke, "seconds": {}}
    for i, name in enumerate(steps):
        print(f"{name} ...", flush=True)
        start = time.monotonic()
        seconds = max(0.0, end - start) / (1 if name == "build" else len(steps) - i)
        for of_step in reports_of(name, smoke, environment, seconds):
            report |= of_step
            report["seconds"][name] = round(time.monotonic() - start, 1)
            results.write_text(json.dumps(report, indent=1) + "\n")
        if name == "build" and "failed" in report[name]:
            sys.exit("the kernels do not build: " + "\n".join(report[name]["failed"]))
    return report


if __name__ == "__main__":
    main()
