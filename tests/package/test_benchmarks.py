# SPDX-License-Identifier: MIT
"""The benchmark command measures a tiny workload in processes of its own, and reports it."""

import json
import os
import shutil

import numpy as np
import pytest

from benchmarks.cpu import __main__ as command, measure, plot, report, results
from benchmarks.cpu.engines import OURS
from benchmarks.cpu.scaling import model
from benchmarks.cpu.scaling.program import Program
from tests.deform_conv2d.cases import Case

TINY = Case("tiny", 1, (6, 7), 8, 8)
ENGINES = (OURS, "xla_convolution")


@pytest.fixture(scope="module")
def measured() -> results.Results:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "MEMORY", (TINY, "training", "float32"))
        found = command.run([TINY], ENGINES, threads=[1], rounds=1, chosen=["tiny"])
    found["command"] = "python -m benchmarks.cpu"
    return results.Results(json.loads(json.dumps(found)))


def test_every_task_that_an_engine_can_do_is_timed(measured):
    modes = {(r["engine"], r["mode"], r["dtype"]) for r in measured.report["times"]}
    forward_and_training = {(e, m, "float32") for e in ENGINES for m in measure.MODES}
    assert forward_and_training < modes and (OURS, "jvp", "float32") in modes
    assert all(row["milliseconds"] > 0 for row in measured.report["times"])


def test_report_shows_ratios_of_what_was_measured(measured):
    ours = measured.milliseconds("tiny", "forward", 1)
    convolution = measured.milliseconds("tiny", "forward", 1, engine="xla_convolution")
    assert results.relative(measured, OURS, "forward", 1) == {"tiny": ours / convolution}
    jvp = measured.milliseconds("tiny", "jvp", 1)
    target = next(t for t in results.targets(measured) if t.name == "jvp / forward")
    assert target.worst == pytest.approx(jvp / ours)
    assert f"{ours:.2f}" in report.text(measured)


def test_readme_and_plot_are_made_of_the_results(measured, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- made by benchmarks.cpu.report -->\nold\n<!-- end -->\nbelow\n")
    report.write_readme({"here": measured}, readme)
    content = readme.read_text()
    assert "old" not in content and "**jax_dcn**" in content
    assert content.startswith("above\n") and content.endswith("<!-- end -->\nbelow\n")
    plot.plot(measured, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_an_engine_with_other_results_is_refused():
    class Fake:
        def __init__(self, value):
            self.value = np.full(3, value)

        def __call__(self, command, *arguments):
            return [self.value] if command == "results" else True

    workers = {OURS: Fake(1.0), "openvino": Fake(1.001)}
    with pytest.raises(ValueError, match="openvino differs"):
        measure.check(workers, [("openvino", TINY, "forward", "float32")])
    workers["openvino"] = Fake(1.0)
    measure.check(workers, [("openvino", TINY, "forward", "float32")])


def test_a_core_takes_its_share_of_items_and_then_what_others_have_left():
    assert [model.makespan((5, 3, 1, 2, 4), cores) for cores in (1, 2, 3, 64)] == [15, 9, 7, 5]
    assert model.makespan((5, 1, 1, 1, 1, 1, 1, 1), 2) == 6
    assert model.makespan((1, 1, 1, 1, 5, 5, 5, 5), 2) == 14
    loops = [model.Loop(10, 3, 3), model.Loop(1, 2, 2, 2), model.Loop(7)]
    assert model.seconds(loops, 2) == (10 + 3 + 1 + 4 + 7) / 1e9
    assert model.Loop.least([model.Loop(5, 1, 4), model.Loop(3, 2, 2)]) == model.Loop(3, 1, 2)


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "c++")), reason="no C++ compiler")
def test_the_scaling_model_times_the_items_of_every_loop(tmp_path):
    program = Program("baseline", tmp_path, "-O0")
    loops = program.loops(TINY, "training", workers=3, calls=2)
    assert max(len(loop.items) for loop in loops) >= 3  # tiles of the forward pass
    assert sum(not loop.items for loop in loops) == 2  # the ends of forward and backward
    assert all(time > 0 for loop in loops for time in loop.items)
    assert program.seconds(TINY, "forward", threads=2, calls=2) > 0
