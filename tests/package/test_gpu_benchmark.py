# SPDX-License-Identifier: MIT
"""The program that proves and measures the kernels on a GPU runs without one, on small problems."""

import json
import pathlib
import subprocess
import sys

from jax.profiler import ProfileData

from benchmarks.gpu.device_time import busy_seconds

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_every_step_reports_what_it_found(tmp_path):
    steps = ("build", "accuracy", "reproducibility", "sanitizer", "memory", "speed")
    done = run("--smoke", "--json", str(tmp_path / "gpu.json"), "--steps", *steps)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["smoke"] and set(steps) <= set(report)
    assert set(report["reproducibility"]["different results"].values()) == {1}
    (speeds,) = report["speed"]["microseconds"].values()
    for mode in ("forward", "backward"):
        assert {"native", "xla", "convolution"} <= set(speeds[mode])
        assert min(times["host"] for times in speeds[mode].values()) > 0


PROFILE = """
planes { name: "/host:CPU" lines { name: "Stream #9" events { duration_ps: 70000000 } } }
planes {
  name: "/device:GPU:0"
  lines { name: "Stream #7" timestamp_ns: 1000
    events { offset_ps: 0 duration_ps: 3000000 }
    events { offset_ps: 8000000 duration_ps: 2000000 }
  }
  lines { name: "Stream #8" timestamp_ns: 3000 events { offset_ps: 0 duration_ps: 4000000 } }
  lines { name: "XLA Modules" timestamp_ns: 1000 events { duration_ps: 50000000 } }
}
"""


def test_device_time_counts_what_overlaps_once_and_waiting_not_at_all():
    profile = ProfileData.from_serialized_xspace(
        ProfileData.text_proto_to_serialized_xspace(PROFILE)
    )
    # 1 to 4 and 3 to 7 microseconds, then 9 to 11.
    assert abs(busy_seconds(profile) - 8e-6) < 1e-12
