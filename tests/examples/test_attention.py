# SPDX-License-Identifier: MIT
"""The example of deformable attention finds digits, draws where it looks, and says what is wrong."""

import re

import pytest

from examples.attention.__main__ import main
from examples.attention.data import SIZE, compose_images


@pytest.fixture(autouse=True)
def as_in_its_own_process(like_the_commands):
    """The dtype promotion that optax and flax's layers need."""


def test_queries_come_closer_to_the_digit_by_training(tmp_path, capsys):
    sizes = ["--steps", "40", "--train-images", "200", "--val-images", "40", "--batch-size", "16"]
    assert main([*sizes, "--output", str(tmp_path)]) == 0
    untrained, trained = re.findall(r"digit ([0-9.]+) after layer 1", capsys.readouterr().out)
    assert float(trained) > float(untrained) + 0.05
    assert 10_000 < (tmp_path / "attention.png").stat().st_size < 1_000_000


def test_boxes_surround_the_digit_and_stay_in_the_image():
    images = compose_images("val", 5, seed=1)
    centre, size = images.boxes[:, :2], images.boxes[:, 2:]
    assert (centre - size / 2 >= 0).all() and (centre + size / 2 <= 1).all()
    assert (size > 4 / SIZE).all() and (size < 1).all()
    assert len({image.tobytes() for image in images.pixels}) == 5


@pytest.mark.parametrize(
    ("option", "least"),
    [("--steps", 1), ("--val-images", 1), ("--batch-size", 1), ("--seed", 0)],
)
def test_numbers_below_the_least_are_refused(option, least, capsys):
    assert main([option, str(least - 1)]) == 2
    expected = f"error: {option} must be at least {least}, got {least - 1}.\n"
    assert capsys.readouterr().err == expected


def test_output_that_is_a_file_is_refused(tmp_path, capsys):
    path = tmp_path / "file"
    path.touch()
    assert main(["--output", str(path)]) == 1
    assert str(path) in capsys.readouterr().err


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert "--train-images" in text and "--learning-rate" in text
    with pytest.raises(SystemExit, match="2"):
        main(["--unknown"])
