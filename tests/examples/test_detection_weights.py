# SPDX-License-Identifier: MIT
"""Checkpoints of every generation of mmdetection become detectors; what does not fit is named."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from examples.detection.__main__ import main
from examples.detection.commands.evaluate import load
from examples.detection.commands.weights import initial_weights, load_published
from examples.detection.model.architecture import Architecture
from examples.detection.training.recipes import COMPOSED
from examples.imagenet.checkpoint import Checkpoints, Description
from examples.imagenet.devices import place
from examples.imagenet.errors import UserError
from examples.imagenet.settings import Model
from examples.imagenet.state import split
from tests.examples.published_names import cascade_mask_rcnn, faster_rcnn
from tests.examples.published_weights import FOLDER
from tests.examples.small_detectors import CLASSES, FLAGS, LEAVES, SMALL, small_detector


def original(weights: dict) -> dict:
    """The same detector as mmdetection 0.5 and the original's branch of it name its arrays."""

    def background_first(name, array):
        if "fc_cls" in name:
            return np.concatenate([array[-1:], array[:-1]])
        if "fc_reg" in name and len(array) > 4:
            return np.concatenate([np.full_like(array[:4], 7), array])
        if "conv_logits" in name:
            return np.concatenate([np.full_like(array[:1], 7), array])
        return array

    return {
        name.removeprefix("roi_head."): background_first(name, array)
        for name, array in weights.items()
    }


def variables(detector) -> dict:
    state = nnx.to_flat_state(nnx.state(detector, (nnx.Param, nnx.BatchStat)))
    return {".".join(map(str, path)): np.asarray(value[...]) for path, value in state}


@pytest.mark.parametrize(("model", "pool"), [("mask", "original"), ("cascade", "align")])
def test_original_names_and_class_order_give_the_detector_of_the_new_ones(tmp_path, model, pool):
    # A network of basic blocks has two deformable convolutions in a block: of a bottleneck's one
    # alone the original's name, which has no number, is clear.
    architecture = dataclasses.replace(SMALL, model=model, pool=pool, depth=50, width=2)
    new = small_detector(architecture)
    old = original(small_detector(architecture, "conv_offset_mask"))
    old["backbone.layer2.0.conv2.bias"] = np.zeros(4, np.float32)
    save_file(new, tmp_path / "new.safetensors")
    save_file(old, tmp_path / "old.safetensors")
    first, second = (
        load_published(tmp_path / f"{name}.safetensors", architecture) for name in ("new", "old")
    )
    assert first.classes == second.classes == CLASSES
    assert not first.unused and not second.unused
    expected, got = variables(first.detector), variables(second.detector)
    assert expected.keys() == got.keys()
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


def test_offsets_of_version_1_are_found_under_their_old_name(tmp_path):
    architecture = dataclasses.replace(SMALL, conv="deformable", depth=50, width=2)
    save_file(original(small_detector(architecture, "conv2_offset")), tmp_path / "old.safetensors")
    imported = load_published(tmp_path / "old.safetensors", architecture)
    assert sum("conv2_offset" in name for name in imported.used) == 2 * 13


def test_checkpoints_of_parallel_training_in_half_precision_are_read(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    weights = {name: torch.tensor(x) for name, x in small_detector(SMALL).items()}
    parallel = {f"module.{name}": x.half() for name, x in weights.items()}
    parallel |= {f"ema_{name.replace('.', '_')}": x for name, x in weights.items()}
    content = {"meta": {"epoch": 12}, "state_dict": parallel, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "one.pth")
    torch.save(content | {"ema_state_dict": {"steps": 3, **weights}}, tmp_path / "two.pth")
    imported = load_published(tmp_path / "one.pth", SMALL)
    assert len(imported.used) == len(imported.unused) == len(weights)
    save_file(
        {name: x.half().numpy() for name, x in weights.items()}, tmp_path / "half.safetensors"
    )
    expected = variables(load_published(tmp_path / "half.safetensors", SMALL).detector)
    for name, value in variables(imported.detector).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    arguments = ["import-weights", str(tmp_path / "two.pth"), str(tmp_path / "run"), *FLAGS]
    assert main(arguments) == 1
    assert "with --key, for example --key '" in capsys.readouterr().err
    assert main([*arguments, "--key", "state_dict"]) == 0
    kept = load(tmp_path / "run", None, place(1, devices=jax.devices()[:1])).weights
    for name, value in (kept.params | kept.stats).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"no weights at all", bytes(64)], ids=["empty", "text", "zeros"]
)
def test_file_that_holds_something_else_is_an_error(tmp_path, capsys, suffix, content):
    if suffix == "pth":
        pytest.importorskip("torch")
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    assert main(["import-weights", str(path), str(tmp_path / "run")]) == 1
    assert str(path) in capsys.readouterr().err


def test_import_reports_parts_that_the_detector_does_not_have(tmp_path, capsys):
    weights = small_detector(dataclasses.replace(SMALL, model="mask"))
    weights["ema.step"] = np.zeros(1, np.float32)
    save_file(weights, tmp_path / "mask.safetensors")
    arguments = [str(tmp_path / "mask.safetensors"), str(tmp_path / "run"), *FLAGS]
    assert main(["import-weights", *arguments]) == 0
    printed = capsys.readouterr().out
    unused = re.findall("not used: (.*)", printed)
    masks = sorted(name for name in weights if "mask_head" in name)
    assert unused == ["ema.step", *masks]
    assert f"left {len(masks) + 1} out" in printed
    params, stats = load(tmp_path / "run", None, place(1, devices=jax.devices()[:1])).weights
    assert len(params) + len(stats) == len(weights) - len(unused)
    assert main(["import-weights", *arguments]) == 1
    assert "choose another folder" in capsys.readouterr().err


def test_names_written_out_are_those_of_mmdetection():
    recorded = json.loads((FOLDER / "parameters.json").read_text())
    assert faster_rcnn(50) == {name: tuple(shape) for name, shape in recorded.items()}


@pytest.mark.parametrize(
    ("model", "depth", "published"),
    [("faster", 101, faster_rcnn), ("cascade", 50, cascade_mask_rcnn)],
)
def test_every_array_of_a_deep_detector_reaches_its_layer(tmp_path, model, depth, published):
    random = np.random.default_rng(0)
    shapes = published(depth, width=4, features=6, hidden=5, classes=CLASSES)
    arrays = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(arrays, tmp_path / "published.safetensors")
    architecture = Architecture(model=model, depth=depth, width=4, features=6, hidden=5)
    imported = load_published(tmp_path / "published.safetensors", architecture)
    counted = {name for name in arrays if not name.endswith("num_batches_tracked")}
    masks = {name for name in counted if "mask_head" in name}
    assert sorted(imported.unused) == sorted(masks) and len(masks) == 36 * (model == "cascade")
    assert sorted(imported.used) == sorted(counted - masks)
    found = variables(imported.detector)
    assert len(found) == len(counted - masks)
    for name, value in found.items():
        *modules, leaf = name.replace("offset_conv", "conv_offset").split(".")
        array = arrays[".".join([*modules, LEAVES.get(leaf, leaf)])]
        expected = np.moveaxis(array, (1, 0), (-2, -1)) if array.ndim > 1 else array
        np.testing.assert_array_equal(value, expected, err_msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--conv", "ordinary"], "conv_offset"),
        (["--offset-groups", "1"], "expected (27, "),
        (["--model", "cascade"], "roi_head.bbox_head.0."),
        (["--depth", "18"], "layer1.1."),
    ],
)
def test_wrong_architecture_is_an_error_that_names_the_array(tmp_path, capsys, options, message):
    save_file(small_detector(SMALL), tmp_path / "faster.safetensors")
    arguments = [str(tmp_path / "faster.safetensors"), str(tmp_path / "run"), *FLAGS, *options]
    assert main(["import-weights", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and "--offset-groups" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("pool", ["mmcv", "original"])
def test_branches_of_pooling_are_not_left_out(tmp_path, capsys, pool):
    pooled = dataclasses.replace(SMALL, pool=pool)
    save_file(small_detector(pooled), tmp_path / "pooled.safetensors")
    arguments = [str(tmp_path / "pooled.safetensors"), str(tmp_path / "run"), *FLAGS]
    assert main(["import-weights", *arguments]) == 1
    error = capsys.readouterr().err
    assert "roi_head.bbox_roi_extractor.roi_layers.0" in error and "--pool" in error
    assert main(["import-weights", *arguments, "--pool", pool]) == 0


def test_missing_or_foreign_file_is_an_error(tmp_path, capsys):
    save_file({"fc.bias": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    assert main(["import-weights", str(tmp_path / "none.safetensors"), str(tmp_path / "run")]) == 1
    assert "There is no file" in capsys.readouterr().err
    assert main(["import-weights", str(tmp_path / "other.safetensors"), str(tmp_path / "run")]) == 1
    assert "expected a checkpoint of Faster" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["", "module."])
def test_conventions_of_another_age_than_the_names_are_noted(tmp_path, capsys, prefix):
    new = small_detector(SMALL)
    for age, weights, right, wrong in (
        ("since", new, "mmdet3", "seed"),
        ("before", original(new), "seed", "mmdet3"),
    ):
        path = tmp_path / f"{age}.safetensors"
        save_file({f"{prefix}{name}": x for name, x in weights.items()}, path)
        load_published(path, dataclasses.replace(SMALL, conventions=right))
        assert capsys.readouterr().err == ""
        load_published(path, dataclasses.replace(SMALL, conventions=wrong))
        said = capsys.readouterr().err
        assert said.startswith(f"Note: {path} has the names of mmdetection {age} version 2:")
        assert said.endswith(f"measured by --conventions {right}.\n")


PLACEMENT = place(1, devices=jax.devices()[:1])


def started(architecture, **options):
    """The weights that a run of a detector starts with."""
    settings = dataclasses.replace(COMPOSED, architecture=architecture, **options)
    return initial_weights(settings, split(architecture.build(CLASSES))[1], PLACEMENT)


def test_detectors_of_other_arithmetic_are_refused_as_the_initial_one(tmp_path):
    kept = dataclasses.replace(SMALL, pool="original")
    save_file(small_detector(kept), tmp_path / "kept.safetensors")
    arguments = [str(tmp_path / "kept.safetensors"), str(tmp_path / "run"), *FLAGS]
    assert main(["import-weights", *arguments, "--pool", "original"]) == 0
    for option, there, here in (
        ("conventions", "mmdet3", "seed"),
        ("pool", "original", "mmcv"),
    ):
        message = (
            rf"has --{option} {there}, .* than --{option} {here}: choose --{option} {there}\.$"
        )
        with pytest.raises(UserError, match=message):
            started(dataclasses.replace(kept, **{option: here}), initial=tmp_path / "run")
    for pool in ("original", "align"):
        started(dataclasses.replace(kept, pool=pool), initial=tmp_path / "run")


def test_masks_of_another_scale_are_refused_in_the_backbone(tmp_path):
    model = Model(depth=10, width=8, conv="v2-exact")
    with Checkpoints(tmp_path, write=True) as checkpoints:
        checkpoints.save_weights(split(model.build(3))[1], Description(model, ["a", "b", "c"]))
    modulated = dataclasses.replace(SMALL, offset_groups=1)
    with pytest.raises(UserError, match="give a classifier of --conv v2, or of --conv ordinary"):
        started(modulated, backbone=tmp_path)
    started(dataclasses.replace(modulated, conv="ordinary"), backbone=tmp_path)
