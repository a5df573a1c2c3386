# SPDX-License-Identifier: MIT
"""The program that proves and measures the kernels on a GPU runs without one, on small problems."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_every_step_reports_what_it_found(tmp_path):
    steps = ("build", "reproducibility", "sanitizer", "memory", "speed")
    done = run("--smoke", "--json", str(tmp_path / "gpu.json"), "--steps", *steps)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["smoke"] and set(steps) <= set(report)
    assert set(report["reproducibility"]["different results"].values()) == {1}
    (speeds,) = report["speed"]["microseconds"].values()
    for mode in ("forward", "backward"):
        assert {"native", "xla", "convolution"} <= set(speeds[mode])
        assert min(speeds[mode].values()) > 0
