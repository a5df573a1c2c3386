# SPDX-License-Identifier: MIT
"""The detector's commands, one after the other, on a few composed images."""

import dataclasses
import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from PIL import Image
from pycocotools import mask as run_lengths
from safetensors.numpy import save_file

from examples.detection.__main__ import _COMMANDS, main
from examples.detection.commands.evaluate import load as load_run, make_finder
from examples.detection.commands.predict import drawn, images_of, load_detector
from examples.detection.commands.train import Training
from examples.detection.commands.weights import initial_weights
from examples.detection.data.coco import CocoReader
from examples.detection.data.measure import measure
from examples.detection.model.detect import Detections
from examples.detection.results import main as compare
from examples.detection.training.recipes import COMPOSED, Preset
from examples.imagenet.__main__ import main as classify
from examples.imagenet.checkpoint import Checkpoints, Description
from examples.imagenet.devices import place
from examples.imagenet.errors import UserError
from examples.imagenet.evaluate import check_classes
from examples.imagenet.settings import Model
from examples.imagenet.state import split
from tests.examples.checkpoints import arrays_of, assert_same_arrays
from tests.examples.small_detectors import CLASSES, FLAGS, SMALL as PUBLISHED, small_detector
from tests.examples.step_losses import step_losses

pytestmark = pytest.mark.usefixtures("like_the_commands")

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 20
SMALL = "--width 8 --features 8 --hidden 8 --short 64 --long 64 --candidates 12"
# All kinds of layers at once; in float64, because the difference that rounding makes grows.
TRAIN = (
    f"train composed {SMALL} --model mask --pool original --stages 5 --dtype float64 --steps {STEPS} "
    "--batch-size 4 --warmup-steps 4 --regions-per-image 8 --max-objects 4 --checkpoint-every 5 "
    "--evaluate-every 20 --log-every 1"
).split()
NAMES = ("rpn_class", "rpn_box", "class", "box", "mask", "loss")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def losses(folder) -> np.ndarray:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return np.array([[line[name] for name in NAMES] for line in lines])


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("composed") / "data"
    assert run("compose", folder, "--train", 12, "--val", 5, "--size", 64) == 0
    return folder


@pytest.fixture(scope="module")
def trained(composed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert run(*TRAIN, "--data", composed, "--output", folder) == 0
    return folder


def test_losses_fall_and_every_part_learns(trained):
    curve = losses(trained)
    assert np.all(np.isfinite(curve)) and curve[-4:, -1].mean() < 0.8 * curve[:4, -1].mean()
    np.testing.assert_allclose(curve[:, :-1].sum(1), curve[:, -1], rtol=1e-6)
    before, after = arrays_of(trained, 15), arrays_of(trained, STEPS)
    # The last layers of the branches of pooling start at zero, and their first layers wait for them.
    still = [
        name for name in before if "params" in name and not np.any(before[name] != after[name])
    ]
    assert not [name for name in still if "roi_layers" not in name]


def test_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    composed, trained, tmp_path, run_interrupted
):
    run_interrupted(run, [*TRAIN, "--data", composed, "--output", tmp_path], STEPS)
    assert_same_arrays(trained, tmp_path, STEPS)


def test_losses_of_two_devices_equal_those_of_one(
    composed, trained, devices, tmp_path, monkeypatch
):
    assert len(devices) >= 2
    monkeypatch.setattr(jax, "devices", lambda: devices[:2])
    assert run(*TRAIN, "--data", composed, "--output", tmp_path) == 0
    # Sums over the batch are added up in another order.
    np.testing.assert_allclose(losses(tmp_path), losses(trained), rtol=1e-6)


def test_losses_of_two_processes_equal_those_of_one(composed, compilations):
    arguments = (
        f"composed {SMALL} --stages 5 --dtype float64 --steps 3 --batch-size 4 --warmup-steps 2 "
        f"--regions-per-image 8 --max-objects 4 --data {composed}"
    ).split()
    expected = step_losses(arguments)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    arguments += ["--coordinator", address, "--num-processes", "2", "--timeout", "300"]
    command = [sys.executable, "-m", "tests.examples.step_losses", *arguments, "--process-id"]
    environment = os.environ | compilations | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [*command, process], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for process in ("0", "1")
    ]
    try:
        printed = [process.communicate(timeout=900)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    first, second = (json.loads(text.splitlines()[-1]) for text in printed)
    assert first == second and len(first) == 3
    for one, two in zip(expected, first, strict=True):
        # Sums over the batch are added up in another order.
        assert two == pytest.approx(one, rel=1e-9)


def training_of(arguments, data) -> Training:
    settings = tyro.cli(
        Preset, args=[*arguments, "--data", str(data)], config=(tyro.conf.OmitArgPrefixes,)
    )
    return Training(settings, None)


def test_choice_of_boxes_depends_on_the_number_of_the_step(composed):
    training = training_of(TRAIN[1:], composed)
    batch = training.placement.put_batch(next(training.batches(0)))

    def losses_of_step(step):
        state = jax.tree.map(jnp.copy, training.state)._replace(step=jnp.int32(step))
        return {name: float(loss) for name, loss in training.train_step(state, batch)[1].items()}

    found = losses_of_step(3)
    assert losses_of_step(3) == found
    other = losses_of_step(4)
    assert all(other[name] != found[name] for name in ("rpn_class", "class"))


def test_crowds_are_background_and_one_image_fills_a_batch(composed, tmp_path):
    found = {}
    for name, crowd, count in (("crowds", 1, None), ("one image", 0, 1)):
        content = json.loads((composed / "annotations" / "train.json").read_text())
        content["annotations"] = [entry | {"iscrowd": crowd} for entry in content["annotations"]]
        content["images"] = content["images"][:count]
        (tmp_path / name / "annotations").mkdir(parents=True)
        (tmp_path / name / "annotations" / "train.json").write_text(json.dumps(content))
        (tmp_path / name / "annotations" / "val.json").symlink_to(composed / "annotations/val.json")
        for part in ("train", "val"):
            (tmp_path / name / part).symlink_to(composed / part)
        training = training_of(TRAIN[1:], tmp_path / name)
        batch = training.placement.put_batch(next(training.batches(0)))
        found[name] = training.train_step(training.state, batch)[1]
    crowds, one = ({name: float(loss) for name, loss in each.items()} for each in found.values())
    assert crowds["rpn_box"] == crowds["box"] == crowds["mask"] == 0
    assert all(np.isfinite(crowds[name]) and crowds[name] > 0 for name in ("rpn_class", "class"))
    assert all(np.isfinite(loss) and loss > 0 for loss in one.values())


def test_networks_in_bfloat16_have_about_the_losses_of_float64(composed, trained):
    arguments = ["bfloat16" if word == "float64" else word for word in TRAIN[1:]]
    training = training_of(arguments, composed)
    batch = training.placement.put_batch(next(training.batches(0)))
    state, found = training.train_step(training.state, batch)
    assert {array.dtype for array in jax.tree.leaves(state.weights)} == {np.dtype(np.float32)}
    assert found["loss"].dtype == np.float32
    # Regions are other ones, since proposals move: the losses of boxes are not compared.
    names = ("rpn_class", "rpn_box", "class", "mask")
    expected = dict(zip(NAMES, losses(trained)[0], strict=True))
    difference = np.array([abs(found[name] / expected[name] - 1) for name in names])
    assert 1e-7 < difference.max() < 0.01


def test_eval_measures_what_pycocotools_does_with_its_file_of_results(
    composed, trained, tmp_path, capsys
):
    file = tmp_path / "results.json"
    options = ["--workers", 0, "--batch-size", 2, "--score-threshold", 0.0, "--results", file]
    assert run("eval", trained, "--data", composed, *options) == 0
    printed = capsys.readouterr().out
    results = json.loads(file.read_text())
    content = json.loads((composed / "annotations" / "val.json").read_text())
    measured = measure(content, results, masks=True)
    assert {entry["image_id"] for entry in results} == set(range(5))
    expected = f"boxes: AP {100 * measured.summary['AP']:.1f}"
    assert f"step {STEPS}, 5 images: {expected}" in printed and "masks: AP" in printed
    assert re.search(r"^  7 +AP", printed, re.MULTILINE)


def test_detections_do_not_depend_on_the_size_of_a_batch(composed, trained):
    reader = CocoReader(composed, "val")
    placement = place(1)
    network = load_run(trained, None, placement)
    finder = make_finder(network.model, network.description.model, placement, 1, workers=0)
    single, several = (
        dataclasses.replace(finder, batch_size=size).find_all(network.weights, reader, 0.0)
        for size in (1, 4)
    )
    assert len(single) == len(several)
    for one, other in zip(single, several, strict=True):
        np.testing.assert_allclose(one["bbox"], other["bbox"], atol=1e-2)


@pytest.fixture(scope="module")
def predicted(composed, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predicted")
    image = composed / "val" / "000001.png"
    options = ["--output", folder, "--score-threshold", 0.01]
    assert run("predict", trained, image, composed / "val" / "000002.png", *options) == 0
    return image, folder, json.loads((folder / "detections.json").read_text())


def test_predict_draws_and_lists_detections(predicted):
    image, folder, (first, _) = predicted
    assert first["image"] == str(image) and len(first["detections"]) > 0
    scores = [entry["score"] for entry in first["detections"]]
    assert scores == sorted(scores, reverse=True) and scores[-1] > 0.01
    entry = first["detections"][0]
    assert entry["class"] in "0123456789" and entry["mask"]["size"] == [64, 64]
    with Image.open(folder / first["picture"]) as drawn, Image.open(image) as plain:
        assert drawn.size == plain.size
        assert np.any(np.asarray(drawn) != np.asarray(plain))


def test_box_of_less_than_a_pixel_is_drawn():
    # As the seed measures: 0.5 pixels wide, 0.25 high.
    box = np.array([[12.0, 7.0, 11.5, 6.25]], np.float32)
    found = Detections(box, np.array([0.5]), np.array([1]), np.array([True]), None)
    pixels = np.zeros((19, 31, 3), np.uint8)
    picture = drawn(pixels, found, None, ["first", "second"])
    assert picture.shape == pixels.shape and picture[7, 12].any() and not picture[:6, :11].any()


def test_exported_program_finds_what_predict_does(predicted, trained, tmp_path):
    image, _, (first, _) = predicted
    file = tmp_path / "detector.stablehlo"
    assert run("export", trained, file, "--score-threshold", 0.01) == 0
    about = json.loads(file.with_suffix(".json").read_text())
    assert about["canvas"] == [64, 64] and about["class_names"] == list("0123456789")
    program = jax.export.deserialize(bytearray(file.read_bytes()))
    pixels = np.tile(np.asarray(Image.open(image))[None], (3, 1, 1, 1))
    found = program.call(pixels, np.full((3, 2), 64, np.float32))
    valid = np.asarray(found["valid"][2])
    boxes = [entry["box"] for entry in first["detections"]]
    assert valid.sum() == len(boxes) and found["masks"].shape == (3, 100, 28, 28)
    np.testing.assert_allclose(found["boxes"][2][valid], boxes, atol=0.05)


def test_onnx_of_the_raw_heads_runs_in_onnxruntime(predicted, trained, tmp_path):
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    image, *_ = predicted
    file = tmp_path / "heads.onnx"
    assert run("export", trained, file) == 0
    loaded = load_detector(trained, None)
    images = images_of(loaded.architecture, np.asarray(Image.open(image)))
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    (given,) = session.get_inputs()
    outputs = session.run(None, {given.name: np.asarray(images.pixels)})
    detector = loaded.detector
    pyramid = jax.jit(lambda x: detector.neck(detector.backbone.features(x)))(images.pixels)
    assert names == [f"{kind}{n}" for kind in ("P", "rpn_cls", "rpn_reg") for n in range(2, 7)]
    for output, expected in zip(outputs, pyramid, strict=False):
        np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-4)
    logits, _ = jax.jit(detector.rpn_head)(pyramid[1])
    np.testing.assert_allclose(outputs[6], logits, rtol=1e-3, atol=1e-4)


def test_visualize_draws_a_column_for_every_detection(predicted, trained, tmp_path):
    image, *_ = predicted
    picture = tmp_path / "looks.png"
    options = ["--output", picture, "--score-threshold", 0.01, "--detections", 2, "--layers", 1]
    assert run("visualize", trained, image, *options) == 0
    with Image.open(picture) as drawn:
        width, height = drawn.size
        assert abs(width / height - 2 / 3) < 0.05


def test_run_starts_from_the_weights_of_another(trained):
    placement = place(1)
    kept = load_run(trained, None, placement)
    architecture = kept.description.model
    settings = dataclasses.replace(COMPOSED, architecture=architecture, initial=trained)
    fresh = split(architecture.build(4))[1]
    weights = initial_weights(settings, fresh, placement)
    assert weights.params.keys() == fresh.params.keys()
    for name, value in weights.params.items():
        of_classes = "fc_cls" in name or "fc_reg" in name or "conv_logits" in name
        expected = fresh.params[name] if of_classes else kept.weights.params[name]
        np.testing.assert_array_equal(value, expected, err_msg=name)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A run of the other example, and its weights."""
    folder = tmp_path_factory.mktemp("classifier")
    model = Model(depth=10, width=8, image_size=32, stages=(4, 5))
    weights = split(model.build(3, seed=7))[1]
    with Checkpoints(folder, write=True) as checkpoints:
        checkpoints.save_weights(weights, Description(model, ["a", "b", "c"]))
    return folder, weights


def test_backbone_may_be_a_classifier_of_the_other_example(classifier, capsys):
    folder, kept = classifier
    architecture = dataclasses.replace(COMPOSED.architecture, width=8, stages=(3, 4, 5))
    settings = dataclasses.replace(COMPOSED, architecture=architecture, backbone=folder)
    fresh = split(architecture.build(4))[1]
    weights = initial_weights(settings, fresh, place(1))
    taken = len(kept.params) + len(kept.stats) - 2  # Without the head.
    names = [f"layer2.0.conv{n}.offset_conv.{part}" for n in (1, 2) for part in ("bias", "kernel")]
    expected = f"From {folder}: {taken} arrays. Fresh: 4 ({', '.join(names)}).\n"
    assert capsys.readouterr().out == expected
    for kind, of_classifier, of_detector in zip(fresh, kept, weights, strict=True):
        assert kind.keys() == of_detector.keys()
        for name, value in of_detector.items():
            own = of_classifier.get(name.removeprefix("backbone."), kind[name])
            np.testing.assert_array_equal(value, own, err_msg=name)


def test_run_of_the_other_program_is_refused_with_what_takes_it(
    classifier, composed, trained, tmp_path, capsys
):
    image = composed / "val" / "000001.png"
    assert run("predict", classifier[0], image) == 1
    assert (
        "holds a classifier: commands of `python -m examples.imagenet`" in capsys.readouterr().err
    )
    assert classify(["predict", str(trained), str(image)]) == 1
    assert "holds a detector: commands of `python -m examples.detection`" in capsys.readouterr().err
    for option, folder, named in (
        ("initial", classifier[0], "--backbone"),
        ("backbone", trained, "--initial"),
    ):
        settings = dataclasses.replace(COMPOSED, **{option: folder})
        with pytest.raises(UserError, match=f"`train {named}`"):
            initial_weights(settings, split(settings.architecture.build(4))[1], place(1))


def test_published_detector_is_tuned_on_other_classes(composed, tmp_path, capsys):
    save_file(small_detector(PUBLISHED), tmp_path / "published.safetensors")
    command = ["import-weights", tmp_path / "published.safetensors", tmp_path / "run", *FLAGS]
    assert run(*command, "--data", composed) == 1
    assert f"knows {CLASSES} classes, and {composed} has 10" in capsys.readouterr().err
    content = json.loads((composed / "annotations" / "val.json").read_text())
    names = ["first", "second", "third"]
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    copy_with(content | {"categories": categories, "annotations": []}, composed, tmp_path)
    assert run(*command, "--data", tmp_path) == 0
    kept = load_run(tmp_path / "run", None, place(1))
    assert kept.description.class_names == names
    capsys.readouterr()
    training = training_of(["coco", *FLAGS, "--initial", str(tmp_path / "run")], composed)
    heads = [f"roi_head.bbox_head.fc_{kind}" for kind in ("cls", "reg")]
    fresh = [f"{head}.{part}" for head in heads for part in ("bias", "kernel")]
    assert f" arrays. Fresh: 4 ({', '.join(fresh)}).\n" in capsys.readouterr().out
    for name, value in training.state.weights.params.items():
        assert (name in fresh) or np.array_equal(value, kept.weights.params[name]), name


def test_demo_of_other_images_is_not_the_demo_that_is_there(
    composed, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("examples.detection.commands.demo.train", lambda _: pytest.fail("trains"))
    (tmp_path / "data").symlink_to(composed)
    for options in ("--images 5", "--images 12 --seed 1"):
        assert run("demo", "--output", tmp_path, *options.split()) == 1
        assert re.search(r"12 training images .* seed 0.*another --output", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train composed --data nowhere", "no annotations/.*train.*compose"),
        ("eval nowhere --data {data}", "no run in .*nowhere"),
        ("predict {run}", "no image to look at"),
        ("predict {run} nowhere.png", "no image nowhere.png"),
        ("visualize {run} {data}/val/000001.png --score-threshold 0.99", "Nothing is found"),
        ("compose {data}", "has a data set already"),
        (f"{' '.join(TRAIN)} --width 4 --data {{data}} --output {{run}}", "another network"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(
    arguments, message, composed, trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments.format(data=composed, run=trained).split()) == 1
    assert re.search(rf"^error: .*{message}", capsys.readouterr().err, re.DOTALL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train composed --data {data} --depth 19", "depth must be one of"),
        ("train composed --data {data} --model cascade --pool mmcv", "cascade pools by"),
        ("train composed --data {data} --num-processes 2", "needs --coordinator"),
        ("export nowhere network.pth", "must end in .stablehlo or .onnx"),
        ("export nowhere network.onnx --score-threshold 0.5", "score-threshold has no effect"),
        ("visualize nowhere image.png --output looks.txt", "must end in .png or .*svg"),
        ("visualize nowhere image.png --output looks", "must end in .png or .*svg"),
    ],
)
def test_options_that_make_no_sense_are_refused_as_such(
    arguments, message, composed, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments.format(data=composed).split()) == 2
    assert re.search(rf"^error: .*{message}", capsys.readouterr().err, re.DOTALL)


@pytest.mark.parametrize("command", ["eval", "predict", "visualize", "stages", "export"])
@pytest.mark.parametrize("value", ["-0.1", "1.5", "nan"])
def test_scores_that_no_detection_has_are_refused(command, value, capsys):
    given = {"eval": ["--data", "b"], "stages": ["b", "c"], "export": ["b.onnx"]}.get(
        command, ["b"]
    )
    assert run(command, "a", *given, "--score-threshold", value) == 2
    assert capsys.readouterr().err.startswith("error: --score-threshold must be at ")


def copy_with(content, composed, folder) -> None:
    """A validation split of the composed images with other annotations."""
    (folder / "annotations").mkdir()
    (folder / "val").symlink_to(composed / "val")
    (folder / "annotations" / "val.json").write_text(json.dumps(content))


def test_data_of_other_classes_is_refused(composed, trained, tmp_path, capsys):
    content = json.loads((composed / "annotations" / "val.json").read_text())
    copy_with(content | {"categories": content["categories"][:9]}, composed, tmp_path)
    assert run("eval", trained, "--data", tmp_path) == 1
    assert "10 classes (0, ...), and the data has 9: choose the data" in capsys.readouterr().err
    # Imported weights have numbers as the names of their classes.
    check_classes(["a", "b"], Description(None, ["0", "1"]))
    with pytest.raises(UserError, match="the class b, and the data has c in its place"):
        check_classes(["a", "c"], Description(None, ["a", "b"]))


def test_classes_without_objects_have_no_precision(composed, trained, tmp_path, capsys):
    content = json.loads((composed / "annotations" / "val.json").read_text())
    copy_with(content | {"annotations": []}, composed, tmp_path)
    assert run("eval", trained, "--data", tmp_path, "--workers", 0, "--batch-size", 2) == 0
    first, *classes = capsys.readouterr().out.splitlines()
    nothing = "AP -, AP50 -, AP75 -"
    assert first == f"step {STEPS}, 5 images: boxes: {nothing}; masks: {nothing}"
    assert [line.split() for line in classes] == [
        [str(n), "AP", "-", "mask_AP", "-"] for n in range(10)
    ]


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        run(command, "--help")
    assert command in capsys.readouterr().out


def test_results_refuse_a_file_of_another_budget(tmp_path, capsys):
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"budget": {"steps": 1}, "runs": []}))
    assert compare(["--file", str(file), "--output", str(tmp_path)]) == 1
    assert "results of another budget" in capsys.readouterr().err


def test_masks_of_detections_lie_in_their_boxes(predicted):
    _, _, images = predicted
    for image in images:
        for entry in image["detections"]:
            rows, columns = np.nonzero(run_lengths.decode(entry["mask"]))
            x1, y1, x2, y2 = entry["box"]
            assert np.all((rows + 1 >= y1) & (rows <= y2) & (columns + 1 >= x1) & (columns <= x2))
