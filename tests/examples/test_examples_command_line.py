# SPDX-License-Identifier: MIT
"""What both examples' command lines say of options, and how their programs end."""

import dataclasses
import re

import pytest

from examples.detection.__main__ import main as detection
from examples.detection.training import recipes
from examples.imagenet import settings
from examples.imagenet.__main__ import main as imagenet
from examples.imagenet.command_line import in_words
from examples.imagenet.errors import OptionError, UserError, check_option

TRAIN = {
    "imagenet": (imagenet, ["train", "digits"]),
    "detection": (detection, ["train", "composed"]),
}
TEST = {
    "imagenet": (imagenet, ["eval", "run", "--data", "digits"]),
    "detection": (detection, ["eval", "run", "--data", "folder"]),
}
OPTIONS = [
    field.name for kind in (settings.Run, settings.Processes) for field in dataclasses.fields(kind)
]
OUT_OF_RANGE = [
    ("steps", "0", "at least 1"),
    ("steps", str(2**31), f"at most {2**31 - 1}"),
    ("batch_size", "0", "at least 1"),
    ("checkpoint_every", "-5", "at least 1"),
    ("evaluate_every", "0", "at least 1"),
    ("log_every", "0", "at least 1"),
    ("epochs", "-1.0", "above 0 and finite"),
    ("epochs", "0.0", "above 0 and finite"),
    ("epochs", "inf", "above 0 and finite"),
    ("epochs", "nan", "above 0 and finite"),
    ("offset_rate", "-0.1", "at least 0"),
    ("offset_rate", "inf", "finite"),
    ("workers", "-1", "at least 0"),
    ("seed", "-1", "at least 0"),
    ("seed", str(2**32), f"at most {2**32 - 1}"),
    ("num_processes", "0", "at least 1"),
    ("process_id", "-1", "at least 0"),
    ("timeout", "0", "at least 1"),
]


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@pytest.mark.parametrize("program", TRAIN)
@pytest.mark.parametrize(("name", "value", "bound"), OUT_OF_RANGE)
def test_values_that_no_run_can_have_are_refused_in_a_sentence(program, name, value, bound, capsys):
    main, command = TRAIN[program]
    assert main([*command, flag(name), value]) == 2
    expected = f"error: {flag(name)} must be {bound}, got {value}.\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("program", TEST)
@pytest.mark.parametrize(
    ("name", "value"), [("step", "-1"), ("batch_size", "0"), ("workers", "-1")]
)
def test_values_that_no_test_can_have_are_refused_in_a_sentence(program, name, value, capsys):
    main, command = TEST[program]
    assert main([*command, flag(name), value]) == 2
    assert re.fullmatch(
        rf"error: {flag(name)} must be at least \d, got {value}\.\n", capsys.readouterr().err
    )


def test_number_of_a_process_is_less_than_that_of_all():
    with pytest.raises(OptionError, match="--process-id must be at most 1, got 2"):
        settings.Processes(num_processes=2, process_id=2)


@pytest.mark.parametrize("program", TRAIN)
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--batch-size", "several"], ["--batch-size", "several"]),
        (["--offset-rate", "slow"], ["--offset-rate", "slow"]),
        (["--dtype", "int8"], ["--dtype", "int8", "float32"]),
        (["--batchsize", "4"], ["--batchsize", "--batch-size"]),
        (["--steps"], ["--steps"]),
    ],
)
def test_values_of_another_kind_are_refused_with_the_option(program, arguments, named, capsys):
    main, command = TRAIN[program]
    with pytest.raises(SystemExit) as end:
        main([*command, "--data", "nowhere", *arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert all(word in error for word in named)


@pytest.mark.parametrize("program", TRAIN)
def test_help_of_training_names_every_shared_option(program, capsys):
    main, command = TRAIN[program]
    words = _help(main, command, capsys)
    assert not [name for name in OPTIONS if name != "processes" and flag(name) not in words]


@pytest.mark.parametrize("program", TEST)
def test_help_of_a_test_names_every_shared_option(program, capsys):
    main, command = TEST[program]
    words = _help(main, command[:1], capsys)
    names = [
        field.name
        for kind in (settings.Testing, settings.Processes)
        for field in dataclasses.fields(kind)
    ]
    assert not [name for name in names if name != "processes" and flag(name) not in words]


def _help(main, command, capsys) -> list[str]:
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    return re.split(r"[\s,|]+", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("There is no run."), 1, "error: There is no run.\n"),
        (OptionError("--top must be at least 1."), 2, "error: --top must be at least 1.\n"),
        (FileExistsError(17, "File exists", "out"), 1, "error: File exists: out.\n"),
        (OSError("disk"), 1, "error: disk.\n"),
        (KeyboardInterrupt(), 130, "\nInterrupted.\n"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory: 9 bytes.\n<stack>"),
            1,
            "error: Too little memory (RESOURCE_EXHAUSTED: Out of memory: 9 bytes): lower --batch-size,",
        ),
        (
            ValueError('RESOURCE_EXHAUSTED: Error writing "run/checkpoints/5": No space left'),
            1,
            "error: The disk is full: make room, then the same command goes on",
        ),
        (MemoryError(), 1, "error: Too little memory (MemoryError): lower --batch-size,"),
    ],
)
def test_programs_end_with_a_sentence_and_a_code(error, code, message, capsys):
    def fail():
        raise error

    assert in_words(fail) == code
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize(
    "error", [KeyError("nothing"), ValueError("fault"), RuntimeError("INTERNAL: fault")]
)
def test_faults_of_the_program_are_not_hidden(error):
    def fail():
        raise error

    with pytest.raises(type(error)):
        in_words(fail)
    assert in_words(lambda: None) == 0


def test_bounds_belong_to_the_range_and_nothing_given_is_in_it():
    for value in (None, 2, 3.5, 4):
        check_option("top", value, 2, 4)
    for value in (1.9, 4.1, float("nan")):
        with pytest.raises(OptionError, match=r"--top must be at (least 2|most 4), got"):
            check_option("top", value, 2, 4)


@pytest.mark.parametrize(
    "preset",
    [*settings.PRESETS.values(), *recipes.PRESETS.values()],
    ids=[*settings.PRESETS, *recipes.PRESETS],
)
def test_epochs_decide_the_steps_of_every_preset(preset):
    assert dataclasses.replace(preset, epochs=3.0).total_steps(100) == 300
    assert dataclasses.replace(preset, epochs=3.0, steps=7).total_steps(100) == 7


@pytest.mark.parametrize("epochs", [1e18, 1e308])
def test_epochs_of_more_steps_than_can_be_counted_are_refused(epochs):
    run = dataclasses.replace(settings.PRESETS["digits"], epochs=epochs)
    with pytest.raises(OptionError, match=r"^--epochs 1e\+\d+ would take .* steps"):
        run.total_steps(100)


def test_small_presets_take_the_steps_that_their_pages_say():
    images = {"generated": 1000, "composed": 4000}
    steps = {"generated": 20, "composed": 2000}
    for name, preset in (settings.PRESETS | recipes.PRESETS).items():
        if name in images:
            assert preset.total_steps(images[name] / preset.batch_size) == steps[name]


@pytest.mark.parametrize(
    "options",
    ["coco", "coco --norm learned", "coco --frozen-stages -1", "composed --norm kept"],
)
def test_layers_that_keep_random_weights_are_refused(options, capsys):
    message = "give --backbone or --initial, or train from scratch with --norm learned"
    assert detection(["train", *options.split(), "--data", "nowhere"]) == 2
    assert message in capsys.readouterr().err
    # Speed does not depend on weights.
    assert detection(["bench", *options.split(), "--data", "nowhere"]) == 1
    note, error = capsys.readouterr().err.splitlines()
    assert note.startswith("Note: ") and message in note and "no annotations" in error


@pytest.mark.parametrize(
    "options", ["--backbone a", "--initial a", "--norm learned --frozen-stages -1"]
)
def test_backbones_with_weights_or_that_learn_are_trained(options, capsys):
    assert detection(["train", "coco", *options.split(), "--data", "nowhere"]) == 1
    assert "no annotations" in capsys.readouterr().err


def test_backbone_is_of_one_run(capsys):
    assert detection(["train", "coco", "--data", "a", "--backbone", "b", "--initial", "c"]) == 2
    assert capsys.readouterr().err.startswith("error: Give --backbone or --initial:")


def test_sizes_beside_images_that_keep_their_size_are_noted(capsys):
    command = ["stages", "a.pth", "nowhere.png", "b.npz", "--no-resize"]
    assert detection(command) == 1
    assert "Note" not in capsys.readouterr().err
    assert detection([*command, "--short", "640"]) == 1
    assert capsys.readouterr().err.startswith("Note: --short and --long have no effect")
