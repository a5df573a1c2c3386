# SPDX-License-Identifier: MIT
"""The examples run from the command line to the files they leave, on tiny budgets."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.digits import compare
from examples.digits.__main__ import _parse, main
from examples.digits.data import CANVAS, CLASSES, DIGIT, Scans, Warp, load_scans, warp_images
from examples.digits.models import NETWORKS
from examples.digits.report import Result, load_parameters, paired_gains, save_parameters, table
from examples.digits.train import Budget, accuracy, train, warped_test_set
from examples.roi_pool.__main__ import main as pool_boxes


def fake_scans(count: int = 20) -> Scans:
    images = np.random.default_rng(0).uniform(size=(count, DIGIT, DIGIT)).astype(np.float32)
    return Scans(images, np.arange(count, dtype=np.int32) % CLASSES)


@pytest.fixture
def optax_promotion():
    """Adam of optax raises floats to integer powers, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def tiny_run(optax_promotion, monkeypatch, tmp_path) -> list[str]:
    """Arguments of a run on fake scans with two of the networks."""
    parts = dict.fromkeys(("train", "validation", "test"), fake_scans())
    networks = {name: NETWORKS[name] for name in ("ordinary", "deformable")}
    monkeypatch.setattr(compare, "load_scans", lambda: parts)
    monkeypatch.setattr(compare, "NETWORKS", networks)
    return f"--output {tmp_path} --seeds 1 --steps 2 --batch-size 4 --warps 1".split()


def test_every_digit_is_split_alike_and_no_scan_is_in_two_parts():
    parts = load_scans()
    scans = np.concatenate([part.images.reshape(-1, DIGIT**2) for part in parts.values()])
    assert len(scans) == 1797 and len(np.unique(scans, axis=0)) == 1797
    for part in parts.values():
        counts = np.bincount(part.labels)
        assert len(counts) == CLASSES and np.ptp(counts) <= 6


def test_warp_of_no_strength_shows_the_upright_scan():
    scans = fake_scans(2)
    images = warp_images(jnp.asarray(scans.images), jax.random.key(0), Warp(0, 1, 0, 0, 0))
    margin = (CANVAS - DIGIT) // 2
    expected = np.pad(scans.images, ((0, 0), (margin, margin), (margin, margin)))
    np.testing.assert_allclose(images[..., 0], expected, atol=1e-5)


def test_same_seed_gives_the_same_parameters(optax_promotion):
    def parameters() -> nnx.State:
        model = NETWORKS["deformable"](nnx.Rngs(0))
        train(model, fake_scans(), Budget(steps=2, batch_size=4, learning_rate=5e-3), seed=0)
        return nnx.state(model, nnx.Param)

    jax.tree.map(np.testing.assert_array_equal, parameters(), parameters())


def test_run_leaves_table_results_parameters_and_picture(tiny_run, tmp_path, capsys):
    assert main(tiny_run) == 0
    printed = capsys.readouterr().out
    assert "deformable less ordinary" in printed and str(tmp_path / "samples.png") in printed
    content = json.loads((tmp_path / "results.json").read_text())
    assert [result["network"] for result in content["results"]] == ["ordinary", "deformable"]
    assert (tmp_path / "samples.png").stat().st_size < 500_000
    model = NETWORKS["deformable"](nnx.Rngs(1))
    load_parameters(tmp_path / "parameters" / "deformable-seed0", model)
    test_set = warped_test_set(fake_scans(), Warp(), warps_per_scan=1)
    assert accuracy(model, test_set) == content["results"][1]["accuracy"]


def test_ctrl_c_says_what_was_saved(tiny_run, tmp_path, capsys, monkeypatch):
    seconds = iter([0.5])

    def interrupted_train(*_):
        for value in seconds:
            return value
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "train", interrupted_train)
    monkeypatch.setattr(compare, "accuracy", lambda *_: 0.5)
    assert main(tiny_run) == 130
    printed, message = capsys.readouterr()
    assert message.endswith("\nInterrupted.\n") and str(tmp_path / "results.json") in printed
    assert len(json.loads((tmp_path / "results.json").read_text())["results"]) == 1


def test_ctrl_c_before_the_first_result_says_that_nothing_was_saved(tiny_run, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "load_scans", interrupted)
    assert main(tiny_run) == 130
    assert "Nothing was saved yet." in capsys.readouterr().out


def test_saved_parameters_come_back_whole(optax_promotion, tmp_path):
    saved, loaded = (NETWORKS["deformable"](nnx.Rngs(seed)) for seed in (0, 1))
    save_parameters(tmp_path / "parameters", saved)
    load_parameters(tmp_path / "parameters", loaded)
    states = (nnx.state(model, nnx.Param) for model in (saved, loaded))
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_table_pairs_networks_by_seed():
    scores = {("ordinary", 0): 0.5, ("ordinary", 1): 0.75, ("deformable", 1): 1.0}
    results = [Result(name, seed, 10, score, 100.0) for (name, seed), score in scores.items()]
    assert paired_gains(results, "deformable", "ordinary") == [0.25]
    assert "62.5 % ± 17.7" in table(results)


@pytest.mark.parametrize("arguments", [["--steps", "1"], ["--seeds", "0"], ["--warps", "0"]])
def test_command_line_refuses_nonsense(arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {arguments[0]} must be at least ")
    with pytest.raises(SystemExit, match="2"):
        main(["--part", "train"])


def test_quick_run_takes_the_steps_that_are_given():
    quick, given = _parse(["--quick"]), _parse(["--quick", "--steps", "500"])
    assert (quick.seeds, quick.steps, quick.warps) == (1, 20, 1)
    assert (given.seeds, given.steps, given.warps) == (1, 500, 1)


@pytest.mark.parametrize("program", [main, pool_boxes])
def test_output_that_cannot_be_written_is_an_error(program, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    output = file if program is main else file / "picture.png"
    assert program(["--output", str(output)]) == 1
    assert capsys.readouterr().err == f"error: File exists: {file}.\n"


def test_boxes_are_pooled_with_steps_and_pictures_that_there_are(capsys):
    assert pool_boxes(["--steps", "-1"]) == 2
    assert capsys.readouterr().err == "error: --steps must be at least 0, got -1.\n"
    assert pool_boxes(["--output", "picture.txt"]) == 2
    assert "picture.txt must end in .png or " in capsys.readouterr().err


def test_displaced_bins_find_the_box_that_was_missed(optax_promotion, tmp_path, capsys):
    picture = tmp_path / "new" / "pooled.png"
    assert pool_boxes(["--steps", "60", "--output", str(picture)]) == 0
    before, after = (float(n) for n in re.findall(r"differ by ([0-9.]+)", capsys.readouterr().out))
    assert after < 0.6 * before
    assert 1000 < picture.stat().st_size < 500_000
