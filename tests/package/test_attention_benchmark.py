# SPDX-License-Identifier: MIT
"""The benchmark of attention measures a tiny layer in processes of its own, and reports it."""

import json

import pytest

from benchmarks.attention import __main__ as command, plot, report, results
from benchmarks.attention.cases import AttentionCase
from benchmarks.attention.engines import GATHER, OURS
from benchmarks.cpu.measure import MODES
from benchmarks.timing import merged

TINY = AttentionCase("A tiny", ((5, 7), (3, 4)), points=2, heads=3, channels=8, queries=11)


@pytest.fixture(scope="module")
def measured() -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "case", lambda name: TINY)
        found = command.run([TINY.name], (OURS, GATHER), threads=[1], rounds=1)
    found["command"] = "python -m benchmarks.attention"
    return json.loads(json.dumps(found))


def test_every_engine_is_timed_in_every_mode(measured):
    rows = {(row["engine"], row["mode"], row["dtype"]) for row in measured["times"]}
    assert rows == {
        *((engine, mode, "float32") for engine in (OURS, GATHER) for mode in MODES),
        *((OURS, mode, "bfloat16") for mode in MODES),
    }


def test_new_rows_replace_the_old_rows_of_the_same_task_only(measured):
    training = [row | {"milliseconds": 7} for row in measured["times"] if row["mode"] == "training"]
    both = results.Results(merged(measured, {**measured, "times": training}, ("case", "mode")))
    assert both.milliseconds(TINY.name, "training", 1) == 7
    old = results.Results(measured)
    for engine in (OURS, GATHER):
        task = TINY.name, "forward", 1, engine
        assert both.milliseconds(*task) == old.milliseconds(*task)
    assert len(both.report["times"]) == len(measured["times"])


def test_rows_of_another_machine_are_not_kept(measured):
    new = {**measured, "machine": measured["machine"] | {"cores": "0"}, "times": []}
    assert merged(measured, new, ("case", "mode")) == new


def test_report_divides_what_was_measured(measured, tmp_path):
    found = results.Results(measured)
    ours, theirs = (found.milliseconds(TINY.name, "forward", 1, e) for e in (OURS, GATHER))
    assert found.slower(GATHER, "A", "forward", 1) == [theirs / ours]
    assert results.targets(found)[0].ratios == {TINY.name: ours / theirs}
    assert f"{ours:.2f}" in report.text(found)
    readme = tmp_path / "README.md"
    readme.write_text(
        "above\n<!-- made by benchmarks.attention.report -->\nold\n<!-- end -->\nbelow\n"
        "<!-- made by another -->\nkept\n<!-- end -->\n"
    )
    report.write_readme(found, readme)
    content = readme.read_text()
    assert "old" not in content and "**jax_dcn**" in content and "kept" in content
    plot.plot(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
