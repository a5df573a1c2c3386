# SPDX-License-Identifier: MIT
"""Proves and measures the CUDA kernels on a GPU, in one command: `python -m benchmarks.gpu`

It builds them for this GPU, runs the whole test suite on it, compares results and gradients with XLA's,
checks that 100 runs give the same bits, runs compute-sanitizer on small problems, asks XLA for peak
memory, and times every layer of `WORKLOADS`: our kernels against torchvision, against XLA's ordinary
convolution and against our `"xla"` implementation, in device time and by the host's clock. The results
go to `benchmarks/results/gpu.json`, after each layer. Steps and layers can be named. `--smoke` proves this
program without a GPU: small problems, the build only configured, the suite only collected.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.gpu.steps import LAYERS, ROOT, STEPS
from benchmarks.timing import machine
from jax_dcn import available_implementations

FOUND = "found: "  # before the findings of a step in its output


def gpu() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader"]
    if not shutil.which(query[0]):
        return "none"
    return subprocess.run(query, capture_output=True, text=True).stdout.strip()


def reports_of(step: str, smoke: bool, layers: str) -> Iterator[dict]:
    """The findings of a step as they grow, from a process of its own: the GPU's memory is the step's.

    A step that fails reports the end of its output beside the findings before.
    """
    command = [sys.executable, "-m", "benchmarks.gpu", "--step", step]
    environment = os.environ | {LAYERS: layers}
    found: dict = {}
    output: list[str] = []
    with subprocess.Popen(
        [*command, *(["--smoke"] if smoke else [])],
        **dict(cwd=ROOT, env=environment, text=True),
        **dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT),
    ) as process:
        for line in process.stdout or ():
            if line.startswith(FOUND):
                found = json.loads(line.removeprefix(FOUND))
                yield found
            else:
                output.append(line.rstrip())
    if process.returncode:
        yield found | {"failed": output[-20:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--layers", nargs="+", default=[""], help="parts of layers' names")
    parser.add_argument("--json", type=pathlib.Path, default=ROOT / "benchmarks/results/gpu.json")
    parser.add_argument("--smoke", action="store_true", help="small problems, on whatever there is")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        for found in STEPS[options.step](options.smoke):
            print(FOUND + json.dumps(found), flush=True)
        return
    if not options.smoke and not shutil.which("nvidia-smi"):
        sys.exit("There is no GPU. --smoke needs none.")
    report = {"gpu": gpu(), "smoke": options.smoke}
    for name in options.steps:
        print(f"{name} ...", flush=True)
        for found in reports_of(name, options.smoke, ",".join(options.layers)):
            # The build is the first step: only afterwards is it known which kernels there are.
            state = {"machine": machine(), "implementations": available_implementations()}
            report |= {name: found} | state
            options.json.write_text(json.dumps(report, indent=1) + "\n")
        if name == "build" and "failed" in report[name]:
            sys.exit("the kernels do not build: " + "\n".join(report[name]["failed"]))
    print(f"written to {options.json}")
    failed = [name for name in options.steps if "failed" in report[name]]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
