# SPDX-License-Identifier: MIT
"""The program that proves and measures the kernels on a GPU runs without one, on small problems."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from jax.profiler import ProfileData

from benchmarks.gpu import __main__ as program, rule, steps
from benchmarks.gpu.device_time import busy_seconds
from jax_dcn._src.deform_conv2d import cost
from jax_dcn._src.operator import libraries

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments: str, path: pathlib.Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    environment = dict(os.environ)
    if path is not None:
        environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.fixture
def fake_device(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with the programs of a machine with a GPU, which know what they may be asked."""
    programs = {
        "nvidia-smi": """case "$1" in
            --query-gpu=compute_cap) echo 9.0 ;;
            --query-gpu=name,*) echo "Fake GPU, 580.00, 1980 MHz" ;;
            *) exit 1 ;;
        esac""",
        "compute-sanitizer": """[ "$1 $3 $4" = "--tool --error-exitcode 1" ] || exit 2
        case "$2" in memcheck|racecheck|initcheck|synccheck) ;; *) exit 2 ;; esac
        shift 4; exec "$@" """,
    }
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


def test_every_step_reports_what_it_found(tmp_path, fake_device):
    pytest.importorskip("pybind11")  # with which the step "build" configures
    done = run("--smoke", "--json", str(tmp_path / "gpu.json"), path=fake_device)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert (
        report["smoke"] and set(steps.STEPS) <= set(report) and report["gpu"].startswith("Fake GPU")
    )
    assert {"configured", "skipped"} & set(report["build"])
    assert report["suite"]["passed"], report["suite"]
    assert all(check["clean"] for check in report["sanitizer"].values()), report["sanitizer"]
    assert set(report["reproducibility"]["different results"].values()) == {1}
    layer, attention = report["speed"]["microseconds"].values()
    for speeds, names in ((layer, {"convolution"}), (attention, set())):
        for mode in ("forward", "backward"):
            assert {"native", "xla"} | names <= set(speeds[mode])
            assert min(times["host"] for times in speeds[mode].values()) > 0
    assert report["rule"]["gpu"] == "H100" and len(report["rule"]["microseconds"]) == 6


def test_the_rule_is_corrected_by_measured_times():
    *_, found = steps.rule(smoke=True)
    # The invented times are three and two times the expected times.
    factors = found["write into jax_dcn/_src/deform_conv2d/cost.py"]
    assert factors == {"forward": 1.5, "backward": 1.5}
    assert found["wrong with these factors"] == []
    for times in found["microseconds"]:
        times["measured"] = {"fused": 1.0, "columns": 2.0}
    found = rule.correction(cost.GPUS[90], found["microseconds"])
    assert len(found["wrong now"]) == 6 and found["wrong with these factors"] == []


def test_programs_are_lowered_to_the_path_that_is_measured(monkeypatch):
    monkeypatch.setenv(cost.VARIABLE, "columns")
    with rule.on_path("fused"):
        assert os.environ[cost.VARIABLE] == "fused"
    assert os.environ[cost.VARIABLE] == "columns"


def test_both_paths_are_proven_whatever_the_model_chooses():
    proven = [
        (number, path, os.environ[cost.VARIABLE])
        for number, path in steps.variants(steps.WORKLOADS[0], False)
    ]
    assert {(number, path) for number, path, _ in proven} == {
        (number, path) for number in steps.NUMBERS for path in cost.PATHS
    }
    assert all(path == lowered for _, path, lowered in proven)
    assert cost.VARIABLE not in os.environ


def test_a_missing_kernel_is_not_timed_as_native(monkeypatch):
    monkeypatch.setitem(libraries._unavailable, "cpu", "there is none in this test")
    with pytest.raises(NotImplementedError, match="there is none in this test"):
        next(steps.speed(smoke=True))


def test_findings_are_written_after_every_layer_and_kept_when_a_later_one_fails(
    tmp_path, monkeypatch, capsys
):
    process = """print("found: {\\"first\\": 1}"); print("found: {\\"first\\": 1, \\"second\\": 2}")
raise SystemExit("the third is wrong")"""
    (tmp_path / "python").write_text(f"#!/bin/sh\nexec {sys.executable} -c '{process}'\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(program.sys, "executable", str(tmp_path / "python"))
    reports = list(program.reports_of("speed", True, ""))
    assert reports[:2] == [{"first": 1}, {"first": 1, "second": 2}]
    assert reports[2] == reports[1] | {"failed": ["the third is wrong"]}


def test_layers_can_be_chosen(monkeypatch):
    for chosen, names in (
        ("28x28,7x7", ["7x7x512 N32", "28x28x128 N32"]),
        ("A1,A4", ["A1", "A1 scattered", "A4", "A4 scattered"]),
    ):
        monkeypatch.setenv(steps.LAYERS, chosen)
        assert [case.name for case in steps.layers(smoke=False)] == names
    monkeypatch.setenv(steps.LAYERS, "")
    assert steps.layers(smoke=False) == steps.WORKLOADS


def test_float32_in_the_suite_is_not_tf32():
    code = "import jax; print(jax.config.jax_default_matmul_precision)"
    environment = os.environ | steps.SUITE_ENVIRONMENT
    output = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert output.strip() == "highest"
    assert steps.TOLERANCE["tf32"] >= 2.0**-10 > steps.TOLERANCE["float32"]


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
