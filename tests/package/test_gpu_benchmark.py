# SPDX-License-Identifier: MIT
"""The program that proves and measures the kernels on a GPU runs without one, on small problems."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.profiler import ProfileData

from benchmarks.gpu import __main__ as program, contestants, rule, steps
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
        check=$2
        shift 4
        if [ $check = memcheck ]; then
            [ "$1 $2" = "--report-api-errors no" ] && shift 2 || exit 2
        fi
        case $check in
            initcheck) ;;
            memcheck|racecheck|synccheck) [ "$1 $2" = "--kernel-name kns=jax_dcn" ] && shift 2 || exit 2 ;;
            *) exit 2 ;;
        esac
        echo "========= COMPUTE-SANITIZER"
        exec "$@" """,
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
    assert report["suite"]["passed"] and report["host"]["passed"], report
    assert set(steps.STEPS) == set(report["seconds"]) and "native" in report["implementations"]
    assert len(report["kernels"]["ran"]) == 3
    for found in (report[check.__name__] for check in steps.CHECKS):
        assert found["clean"] and found["reports of our kernels"] == 0, found
        assert found["end"][0] == "========= COMPUTE-SANITIZER"
    assert set(report["reproducibility"]["different results"].values()) == {1}
    layer, *others = report["speed"]["microseconds"].values()
    for speeds, names in ((layer, {"convolution"}), *((other, set()) for other in others)):
        for mode in ("forward", "backward"):
            assert {"native", "xla"} | names <= set(speeds[mode])
            assert min(times["host"] for times in speeds[mode].values()) > 0
    assert report["rule"]["gpu"] == "H100" and len(report["rule"]["microseconds"]) == 9
    assert all(len(sizes) == 4 for sizes in report["chunks"]["microseconds"].values())


def test_the_rule_is_corrected_by_measured_times():
    *_, found = steps.rule(smoke=True)
    # The invented times are three and two times the expected times.
    factors = found["write into jax_dcn/_src/deform_conv2d/cost.py"]
    assert factors == {"forward": 1.5, "kernel": 1.5, "samples": 1.5}
    assert found["wrong with these factors"] == []
    for times in found["microseconds"]:
        times["measured"] = {"fused": 1.0, "columns": 2.0}
    found = rule.correction(cost.GPUS[90], found["microseconds"])
    assert len(found["wrong now"]) == 9 and found["wrong with these factors"] == []


def test_programs_are_lowered_to_the_path_that_is_measured(monkeypatch):
    monkeypatch.setenv(cost.VARIABLE, "columns")
    with rule.on_path("fused"):
        assert os.environ[cost.VARIABLE] == "fused"
    assert os.environ[cost.VARIABLE] == "columns"


def test_both_paths_are_proven_whatever_the_model_chooses():
    layer, attention = steps.WORKLOADS[0], steps.WORKLOADS[-1]
    lowered = [(path, os.environ[cost.VARIABLE]) for path in steps.paths_of(layer, False)]
    assert lowered == [(path, path) for path in cost.PATHS]
    assert len(list(steps.paths_of(attention, False))) == 1
    assert cost.VARIABLE not in os.environ


def test_all_layers_come_in_one_kind_of_number_before_the_next(monkeypatch):
    monkeypatch.setenv(steps.LAYERS, "28x28,A1")
    monkeypatch.setenv(steps.CHOSEN_NUMBERS, "tf32,float16")
    found = [(number, str(case)) for number, case in steps.problems(smoke=False)]
    layers = ["28x28x128 N32", "A1", "A1 scattered"]
    assert found == [*(("float16", name) for name in layers), ("tf32", layers[0])]


def test_the_gradients_of_a_part_are_those_of_its_operands_alone():
    case, number = steps.SMALL[0], "float32"
    arrays, _ = steps.arrays_of(case, number)
    parts = {part: rule.program_of(part, case, number)(*arrays) for part in cost.PARTS}
    programs = steps.programs(case, number, "native")
    *_, grad_kernel, grad_offset, grad_mask, _ = programs["backward"](*arrays)
    expected = dict(
        forward=[programs["forward"](*arrays)],
        kernel=[grad_kernel],
        samples=[grad_offset, grad_mask],
    )
    for part, results in parts.items():
        found = [results] if part == "forward" else results
        for one, other in zip(found, expected[part], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_sessions_share_all_steps_and_numbers():
    sessions = program.SESSIONS.values()
    named = {step for of_session, _, _ in sessions for step in of_session}
    assert named == set(steps.STEPS) - {"host"}  # which needs no GPU
    timed = [numbers for of_session, numbers, _ in sessions if "speed" in of_session]
    assert sorted(n for numbers in timed for n in numbers) == sorted(steps.NUMBERS)


def test_the_build_needs_no_network_where_its_tools_are(monkeypatch):
    for tools in (True, False):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, tools=tools: tools or None)
        command = steps.build_command()
        assert ("--no-build-isolation" in command) == tools and "--no-deps" in command


def test_a_missing_kernel_is_not_timed_as_native(monkeypatch):
    monkeypatch.setitem(libraries._unavailable, "cpu", "there is none in this test")
    with pytest.raises(NotImplementedError, match="there is none in this test"):
        next(steps.speed(smoke=True))


def test_a_contestant_that_fails_is_named_and_the_others_are_timed(monkeypatch):
    def broken(*_):
        raise RuntimeError("there is no convolution in this test")

    monkeypatch.setattr(contestants, "ordinary_convolution", broken)
    times = next(steps.speed(smoke=True))["microseconds"]["5x6x8 N2, float32"]
    assert times["failed"] == {"convolution": "RuntimeError: there is no convolution in this test"}
    for mode in ("forward", "backward"):
        assert {"native", "xla"} <= set(times[mode]) and "convolution" not in times[mode]


def test_layers_after_a_wrong_one_are_proven_and_the_step_fails(monkeypatch):
    errors = iter([np.inf, *[0.0] * 100])
    monkeypatch.setattr(steps, "_error", lambda actual, exact: next(errors))
    found = []
    with pytest.raises(AssertionError, match=r"wrong: \['5x6x8 N2, float32, columns'\]"):
        found += steps.accuracy(smoke=True)
    names = [f"{case}, float32, columns" for case in ("5x6x8 N2", "attention", "regions")]
    ways = [f"{name}{chunks}" for name in names for chunks in ("", " in chunks")]
    assert found[-1] == dict.fromkeys(ways, 0.0) | {ways[0]: np.inf}


def test_an_error_is_that_of_the_worst_array():
    exact = [np.array([3.0, -4.0]), np.array([2.0]), np.zeros(2)]
    for wrong, error in (([4.0, -4.0], 0.25), ([3.0, np.nan], np.nan), ([3.0, np.inf], np.inf)):
        for i in range(3):
            # After arrays that are wrong, and before them.
            order = np.roll([0, 1, 2], i)
            actual = [np.array(wrong), *exact[1:]]
            found = steps._error([actual[j] for j in order], [exact[j] for j in order])
            np.testing.assert_equal(found, error)
    assert steps._error([np.array([1e-3, 0])], [np.zeros(2)]) == 1e-3  # of nothing


def test_xla_does_not_know_the_gradient_of_y_of_a_program_that_is_timed():
    case = steps.SMALL[0]
    arrays, _ = steps.arrays_of(case, "float32")
    backward = contestants.programs(case, "float32", "native")["backward"]
    for timed in (backward, rule.program_of("kernel", case, "float32")):
        assert "optimization_barrier" in jax.jit(timed).lower(*arrays).as_text()


REPORT = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at void jax_dcn::BinMeansKernel<float>(Problem)+0x120
=========     by thread (3,0,0) in block (0,0,0)
========= Uninitialized __global__ memory read of size 4 bytes
=========     at cutlass_kernel+0x10
found: {"ran": ["jax_dcn"]}
========= ERROR SUMMARY: 2 errors"""


def test_reports_of_our_kernels_are_told_from_those_of_others():
    lines = REPORT.splitlines()
    found = steps._said(lines)
    assert found == {"reports of our kernels": 1, "the first": lines[1:3], "end": lines}


def test_files_that_cannot_be_collected_do_not_keep_others_from_their_run(tmp_path, monkeypatch):
    (tmp_path / "test_runs.py").write_text("def test_runs(): pass\n")
    (tmp_path / "test_needs.py").write_text("import a_package_that_is_not_here\n")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # as without xdist
    *_, found = steps._tests([str(tmp_path)], False, {})
    assert found["counts"]["PASSED"] == 1 and not found["passed"], found


def test_findings_are_written_after_every_layer_and_kept_when_a_later_one_fails(
    tmp_path, monkeypatch, capsys
):
    process = """print("found: {\\"first\\": 1}"); print("found: {\\"first\\": 1, \\"second\\": 2}")
raise SystemExit("the third is wrong")"""
    fake_python(tmp_path, monkeypatch, process)
    reports = [of["speed"] for of in program.reports_of("speed", True, {}, 60)]
    assert reports[:2] == [{"first": 1}, {"first": 1, "second": 2}]
    assert reports[2] == reports[1] | {"failed": ["the third is wrong"]}


def test_a_line_that_others_wrote_into_ends_no_step(tmp_path, monkeypatch):
    process = """print("found: {\\"first\\": 1, WARNING"); print("found: {\\"second\\": 2}")
raise SystemExit("wrong")"""
    fake_python(tmp_path, monkeypatch, process)
    first, last = [of["speed"] for of in program.reports_of("speed", True, {}, 60)]
    assert first == {"second": 2}
    assert last["failed"] == ['found: {"first": 1, WARNING', "wrong"]


def fake_python(folder: pathlib.Path, monkeypatch, code: str) -> None:
    """Makes `code` what the processes of steps run."""
    (folder / "python").write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}'\n")
    (folder / "python").chmod(0o755)
    monkeypatch.setattr(program.sys, "executable", str(folder / "python"))


def test_a_step_without_time_is_stopped_with_all_it_has_started(tmp_path, monkeypatch):
    child = tmp_path / "child"
    process = f"""import subprocess
print("state: {{\\"machine\\": 7}}")
print("found: {{\\"first\\": 1}}", flush=True)
subprocess.run(["sh", "-c", "sleep 8; touch {child}"])"""
    fake_python(tmp_path, monkeypatch, process)
    start = time.monotonic()
    report = program.run(["speed", "rule"], tmp_path / "gpu.json", True, {}, start + 4)
    assert time.monotonic() - start < 8 and report["seconds"]["speed"] < 3
    assert report["machine"] == 7 and report["speed"] == {"first": 1, "stopped": STOPPED}
    assert report["rule"]["stopped"] == STOPPED
    assert json.loads((tmp_path / "gpu.json").read_text()) == report
    time.sleep(max(0.0, start + 9 - time.monotonic()))
    assert not child.exists()


STOPPED = "there was no time left"


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
