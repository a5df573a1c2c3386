# SPDX-License-Identifier: MIT
"""Proves and measures the CUDA kernels on a GPU, in one command: `python -m benchmarks.gpu`

It builds them for this GPU, runs the whole test suite on it, compares results and gradients with XLA's,
checks that 100 runs give the same bits, runs compute-sanitizer on small problems, asks XLA for peak
memory, and times every layer of `WORKLOADS`: our kernels against torchvision, against XLA's ordinary
convolution and against our `"xla"` implementation, in device time and by the host's clock. The results
go to `benchmarks/results/gpu.json`. Steps can be named; `--smoke` runs what needs no GPU, on small
problems, to prove this program.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

from benchmarks.gpu.steps import ROOT, STEPS
from benchmarks.timing import machine
from jax_dcn import available_implementations


def gpu() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader"]
    if not shutil.which(query[0]):
        return "none"
    return subprocess.run(query, capture_output=True, text=True).stdout.strip()


def report_of(step: str, smoke: bool) -> dict:
    """What the step found, in a process of its own, which leaves the GPU's memory to the next."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--step", step]
    done = subprocess.run(
        [*command, *(["--smoke"] if smoke else [])], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        return {"failed": done.stdout.splitlines()[-20:]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--json", type=pathlib.Path, default=ROOT / "benchmarks/results/gpu.json")
    parser.add_argument("--smoke", action="store_true", help="small problems, on whatever there is")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        found = STEPS[options.step](options.smoke)
        print(json.dumps(found))
        return
    if not options.smoke and not shutil.which("nvidia-smi"):
        sys.exit("There is no GPU. --smoke needs none.")
    report = {"gpu": gpu(), "smoke": options.smoke}
    for name in options.steps:
        print(f"{name} ...", flush=True)
        report[name] = report_of(name, options.smoke)
        # After the first step, which builds the kernels.
        report |= {"machine": machine(), "implementations": available_implementations()}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {options.json}")
    failed = [name for name in options.steps if "failed" in report[name]]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
