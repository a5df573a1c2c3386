# SPDX-License-Identifier: MIT
"""The ImageNet example trains alike, interrupted or not, on one device, several, or several processes."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_sample_images

from examples.imagenet import pack
from examples.imagenet.__main__ import main
from examples.imagenet.checkpoint import Checkpoints, Description
from examples.imagenet.data import centre_view
from examples.imagenet.devices import together
from examples.imagenet.errors import UserError
from examples.imagenet.readers import decode, open_reader
from examples.imagenet.settings import Model
from examples.imagenet.state import split
from tests.examples.checkpoints import arrays_of, assert_same_arrays

pytestmark = pytest.mark.usefixtures("like_the_commands")

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 20
# In float64, because the difference that rounding makes grows: fresh offsets are zero, where the
# derivative jumps.
TRAIN = (
    "train imagenet --depth 10 --width 8 --stages 4 5 --image-size 32 --dtype float64 --workers 0 "
    f"--batch-size 8 --steps {STEPS} --warmup-epochs 0.2 --checkpoint-every 5 --log-every 1"
).split()


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> pathlib.Path:
    """Pieces of the two photographs that come with scikit-learn, as JPEGs."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for name, image in zip(("china", "flower"), load_sample_images().images, strict=True):
        for part, count in (("train", 12), ("val", 5)):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                top, left = random.integers(0, np.array(image.shape[:2]) - 60)
                piece = Image.fromarray(image[top : top + 48 + index, left : left + 60])
                piece.save(folder / part / name / f"{index}.jpg")
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def losses(folder: pathlib.Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def uninterrupted(photographs, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert run(*TRAIN, "--data", photographs, "--output", folder) == 0
    return folder


def test_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    photographs, uninterrupted, tmp_path, run_interrupted
):
    run_interrupted(run, [*TRAIN, "--data", photographs, "--output", tmp_path], STEPS)
    assert_same_arrays(uninterrupted, tmp_path, STEPS)


KILLED = """
import os, signal, sys
from examples.imagenet.__main__ import main
from examples.imagenet.data import centre_view
rename = os.rename
def killed_before_checkpoint_10(source, target, *rest):
    if str(target).endswith("checkpoints/10"):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target, *rest)
os.rename = killed_before_checkpoint_10
main(sys.argv[1:])
"""


def test_run_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(
    photographs, uninterrupted, compilations, tmp_path, capsys
):
    command = [*TRAIN, "--data", str(photographs), "--output", str(tmp_path)]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *command],
        env=os.environ | compilations,
        cwd=ROOT,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    partial = [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name != "5"]
    assert len(partial) == 1 and partial[0].startswith("10.")
    assert run(*command) == 0
    assert f"Resumes after step 5 of {STEPS}." in capsys.readouterr().out
    assert_same_arrays(uninterrupted, tmp_path, STEPS)
    losses(tmp_path)  # Every step is in the log, once.


PROCESSES = """
import os, signal, sys
from examples.imagenet.__main__ import main
from examples.imagenet.logs import Log
resumed, fresh, process, *command = sys.argv[1:]
command += ["--process-id", process]
assert main([*command, "--output", resumed]) == 0
write = Log.write
def killed_at_step_7(log, step, **values):
    write(log, step, **values)
    if step == 7 and process == "1":
        os.kill(os.getpid(), signal.SIGKILL)
Log.write = killed_at_step_7
main([*command, "--output", fresh])
"""


@pytest.fixture(scope="module")
def of_two_processes(photographs, uninterrupted, compilations, tmp_path_factory):
    """Two runs of two processes with two devices each, and how the processes ended.

    The first goes on from a checkpoint of one process; the second starts, and loses a process.
    """
    resumed, fresh = (tmp_path_factory.mktemp(name) for name in ("resumed", "fresh"))
    shutil.copytree(uninterrupted, resumed, dirs_exist_ok=True)
    shutil.rmtree(resumed / "checkpoints" / str(STEPS))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    command = [*TRAIN, "--data", photographs, "--coordinator", address, "--num-processes", "2"]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESSES, resumed, fresh, process, *command],
            env=os.environ | compilations | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in ("0", "1")
    ]
    try:
        ends = [(process.communicate(timeout=400)[1], process.returncode) for process in started]
    finally:
        for process in started:
            process.kill()
    return resumed, fresh, ends


def test_two_processes_go_on_from_a_checkpoint_of_one(uninterrupted, of_two_processes):
    resumed, _, _ = of_two_processes
    np.testing.assert_allclose(losses(resumed), losses(uninterrupted), rtol=1e-9)


def test_process_ends_with_a_message_when_another_one_dies(of_two_processes):
    _, _, ((message, code), (_, killed)) = of_two_processes
    assert killed == -signal.SIGKILL and code == 1
    assert "Process 0 lost another one" in message and "start all again" in message


def test_one_process_goes_on_from_a_checkpoint_of_two(
    photographs, uninterrupted, of_two_processes, capsys
):
    _, fresh, _ = of_two_processes
    assert run(*TRAIN, "--data", photographs, "--output", fresh) == 0
    assert f"Resumes after step 5 of {STEPS}." in capsys.readouterr().out
    np.testing.assert_allclose(losses(fresh), losses(uninterrupted), rtol=1e-9)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("No images."), "error: Process 0: No images."),
        (KeyboardInterrupt(), "error: Process 0 was interrupted: start all again"),
        (jax.errors.JaxRuntimeError("UNKNOWN: reset"), "lost another one, or a device .*reset"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
            "^error: Process 0: Too little memory .*: lower --batch-size",
        ),
        (KeyError("name"), "KeyError: 'name'"),
    ],
)
def test_process_that_fails_does_not_wait_for_the_others(error, message, monkeypatch, capsys):
    def end(code):
        raise SystemExit(code)  # Which waits.

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(SystemExit, match="1"), together():
        raise error
    assert re.search(message, capsys.readouterr().err)


def test_loss_curve_of_two_devices_equals_that_of_one(
    photographs, uninterrupted, devices, tmp_path, monkeypatch
):
    assert len(devices) >= 2
    monkeypatch.setattr(jax, "devices", lambda: devices[:2])
    assert run(*TRAIN, "--data", photographs, "--output", tmp_path) == 0
    # Sums over the batch are added up in another order.
    np.testing.assert_allclose(losses(tmp_path), losses(uninterrupted), rtol=1e-9)


def test_every_command_works_on_a_trained_network(photographs, uninterrupted, tmp_path, capsys):
    image = photographs / "val" / "flower" / "0.jpg"
    logged = [json.loads(line) for line in (uninterrupted / "log.jsonl").read_text().splitlines()]
    shares = {name: 100 * logged[-1][name] for name in ("top1", "top5")}

    assert run("eval", uninterrupted, "--data", photographs, "--workers", 0, "--batch-size", 4) == 0
    expected = f"top-1 {shares['top1']:.2f} %, top-5 {shares['top5']:.2f} %"
    assert f"step {STEPS}, 10 images: {expected}" in capsys.readouterr().out

    picture = tmp_path / "samples.png"
    assert run("visualize", uninterrupted, image, "--output", picture, "--layers", 2) == 0
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 500

    weights = tmp_path / "weights.safetensors"
    program = tmp_path / "program.stablehlo"
    assert run("export", uninterrupted, weights) == 0
    assert run("export", uninterrupted, program) == 0
    torch_weights = tmp_path / "torch.safetensors"
    save_file(in_names_of_torch(load_file(weights)), torch_weights)
    imported = tmp_path / "imported"
    network = TRAIN[2:11]
    assert run("import-weights", torch_weights, imported, *network, "--data", photographs) == 0

    capsys.readouterr()
    assert run("predict", uninterrupted, image, photographs / "val" / "china" / "1.jpg") == 0
    predicted = capsys.readouterr().out
    assert predicted.count("flower\n") == 2 and predicted.count("china\n") == 2
    assert run("predict", imported, image, photographs / "val" / "china" / "1.jpg") == 0
    assert capsys.readouterr().out == predicted

    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("jax2onnx")
    assert run("export", uninterrupted, tmp_path / "program.onnx") == 0
    views = np.tile(centre_view(decode(image), 32), (3, 1, 1, 1))
    exported = jax.export.deserialize(bytearray(program.read_bytes()))
    probabilities = exported.call(views)[2]
    session = onnxruntime.InferenceSession(str(tmp_path / "program.onnx"))
    (inputs,) = session.get_inputs()
    (found,) = session.run(None, {inputs.name: views.astype(np.float32)})
    np.testing.assert_allclose(found, exported.call(views), atol=1e-4)
    best = json.loads(program.with_suffix(".json").read_text())[int(np.argmax(probabilities))]
    assert f"{image}\n  {100 * np.max(probabilities):5.1f} %  {best}" in predicted


def in_names_of_torch(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    leaves = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    renamed = {}
    for name, array in arrays.items():
        module, leaf = name.rsplit(".", 1)
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
        renamed[f"{module}.{leaves.get(leaf, leaf)}"] = np.ascontiguousarray(array.transpose(axes))
    return renamed


def test_network_starts_from_the_weights_of_another(photographs, uninterrupted, tmp_path):
    command = [*TRAIN, "--data", photographs, "--output", tmp_path, "--initial", uninterrupted]
    assert run(*command, "--learning-rate", 0, "--steps", 1) == 0
    old, new = arrays_of(uninterrupted, STEPS), arrays_of(tmp_path, 1)
    name = "[0]['params']['conv1.kernel']"
    # The checkpoint's are read in float32.
    np.testing.assert_allclose(new[name], old[name], rtol=1e-6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("train imagenet --data nowhere", "no folder train in .*nowhere"),
        ("train generated --batch-size 8 --accumulate 3", "multiple of 3, such as 9"),
        ("eval nowhere --data generated", "no run in .*nowhere"),
        ("predict nowhere image.jpg", "no run in .*nowhere"),
        ("import-weights nowhere.safetensors output", "no file nowhere.safetensors"),
        ("pack nowhere output", "no folder train in .*nowhere"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments.split()) == 1
    assert re.search(rf"^error: .*{message}", capsys.readouterr().err, re.DOTALL)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("train generated --depth 19", "depth must be one of"),
        ("train generated --stages 7", "stages must be among"),
        ("train generated --num-processes 2", "needs --coordinator"),
        ("export nowhere network.pth", "must end in .safetensors or .stablehlo or .onnx"),
        ("visualize nowhere image.jpg --output looks.txt", "must end in .png or .*svg"),
    ],
)
def test_options_that_make_no_sense_are_refused_as_such(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments.split()) == 2
    assert re.search(rf"^error: .*{message}", capsys.readouterr().err, re.DOTALL)


def test_checkpoint_of_another_network_is_not_resumed(photographs, uninterrupted, capsys):
    other = [argument if argument != "8" else "4" for argument in TRAIN]
    assert run(*other, "--data", photographs, "--output", uninterrupted) == 1
    error = capsys.readouterr().err
    assert "holds checkpoints of another network (width 8, not 4)" in error and "--output" in error


def test_options_that_a_resumed_run_changes_are_named(photographs, uninterrupted, capsys):
    command = [*TRAIN, "--data", photographs, "--output", uninterrupted]
    assert run(*command, "--seed", 1, "--no-flip", "--log-every", 7, "--workers", 2) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Note")]
    assert notes == ["Note: --flip is False, and was True.", "Note: --seed is 1, and was 0."]


def test_run_does_not_go_on_with_another_kind_of_average(photographs, uninterrupted, capsys):
    command = [*TRAIN, "--data", photographs, "--output", uninterrupted, "--average", 0]
    assert run(*command) == 1
    error = capsys.readouterr().err
    assert "has a moving average" in error and "choose --average 0.9999" in error
    assert "Note" not in error


def test_run_does_not_go_on_in_the_folder_of_imported_weights(photographs, tmp_path, capsys):
    model = Model(10, width=8)
    with Checkpoints(tmp_path, write=True) as checkpoints:
        checkpoints.save_weights(split(model.build(1))[1], Description(model, ["a"]))
    assert run(*TRAIN, "--data", photographs, "--output", tmp_path) == 1
    message = "weights that were not trained here: name it with --initial, and choose another --out"
    assert message in capsys.readouterr().err


def test_interruption_promises_to_go_on_where_a_run_was_trained_alone(tmp_path):
    description = Description(Model(), ["a"])
    with pytest.raises(KeyboardInterrupt) as end, Checkpoints(tmp_path, write=True) as checkpoints:
        checkpoints.save_weights(split(Model(10, width=8).build(1))[1], description)
        raise KeyboardInterrupt
    assert not hasattr(end.value, "__notes__")


def test_network_without_deformable_layers_has_nothing_to_draw(photographs, tmp_path, capsys):
    model = Model(depth=10, width=8, image_size=32, stages=())
    with Checkpoints(tmp_path, write=True) as checkpoints:
        checkpoints.save_weights(split(model.build(2))[1], Description(model, ["a", "b"]))
    assert run("visualize", tmp_path, photographs / "val" / "china" / "1.jpg") == 1
    assert "holds an ordinary network" in capsys.readouterr().err


def test_interrupted_packing_can_be_done_again(photographs, tmp_path, monkeypatch):
    pack_file, packed = pack._pack_file, tmp_path / "packed"

    def interrupted(reader, indices, path):
        if "00001" in path.name:
            raise KeyboardInterrupt
        pack_file(reader, indices, path)

    with monkeypatch.context() as patch:
        patch.setattr(pack, "_pack_file", interrupted)
        assert run("pack", photographs, packed, "--files", 3) == 130
    assert not packed.exists()
    assert run("pack", photographs, packed, "--files", 2) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
    assert len(open_reader(f"arrayrecord:{packed}", "train")) == 24
    assert run("pack", photographs, packed) == 1
    assert run("pack", photographs, tmp_path / "other", "--files", 0) == 2


def test_corrupt_jpeg_stops_a_command_with_its_name(photographs, uninterrupted, tmp_path, capsys):
    shutil.copytree(photographs, tmp_path, dirs_exist_ok=True)
    corrupt = tmp_path / "val" / "china" / "3.jpg"
    corrupt.write_bytes(corrupt.read_bytes()[:500])
    evaluate = ["eval", uninterrupted, "--data", tmp_path, "--workers", 0, "--batch-size", 4]
    assert run(*evaluate) == 1
    assert re.search(r"Cannot decode .*china/3.jpg .*replace the file", capsys.readouterr().err)


def test_every_command_explains_itself(capsys):
    commands = "train eval predict visualize import-weights export pack bench"
    for command in commands.split():
        with pytest.raises(SystemExit, match="0"):
            run(command, "--help")
        assert command in capsys.readouterr().out
