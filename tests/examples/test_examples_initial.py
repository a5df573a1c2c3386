# SPDX-License-Identifier: MIT
"""Weights of another run are taken where they fit; what is not taken is named, or refused."""

import dataclasses
import pathlib
import re

import jax
import numpy as np
import pytest

from examples.imagenet.checkpoint import Checkpoints, Description
from examples.imagenet.devices import place
from examples.imagenet.errors import UserError
from examples.imagenet.settings import Model
from examples.imagenet.state import Weights, split
from examples.imagenet.weights import initial_weights, over_fresh

RUN = pathlib.Path("runs/other")
OFFSETS = "backbone.layer2.0.conv2.offset_conv.kernel"
POOLING = "roi_head.bbox_roi_extractor.roi_layers.0.offset_fc.kernel"
MASKS = "roi_head.mask_head.convs.0.conv.kernel"
CLASSES = ["fc.kernel", "roi_head.bbox_head.fc_cls.bias", "roi_head.bbox_head.2.fc_reg.kernel"]


def weights(value: float, **shapes: tuple[int, ...]) -> Weights:
    params = {name: np.full(shape, value) for name, shape in shapes.items()}
    return Weights(
        {"conv1.kernel": np.full((7, 7, 3, 4), value)} | params, {"bn1.mean": np.full(4, value)}
    )


def started(mine: dict, theirs: dict) -> dict[str, float]:
    """The values that weights of zeros get from a run with weights of ones."""
    found = over_fresh(RUN, weights(0, **mine), weights(1, **theirs), "--depth and --width")
    assert found.stats.keys() == {"bn1.mean"}
    assert {name: x.shape for name, x in found.params.items() if name in mine} == mine
    return {name: float(x.flat[0]) for name, x in (found.params | found.stats).items()}


def test_arrays_that_fit_are_taken(capsys):
    assert set(started({OFFSETS: (3, 3, 4, 27)}, {OFFSETS: (3, 3, 4, 27)}).values()) == {1}
    assert capsys.readouterr().out == "From runs/other: 3 arrays.\n"


@pytest.mark.parametrize("name", CLASSES)
def test_layers_for_other_classes_start_fresh_and_are_named(name, capsys):
    assert started({name: (5, 4)}, {name: (5, 9)}) == {"conv1.kernel": 1, "bn1.mean": 1, name: 0}
    assert capsys.readouterr().out == f"From runs/other: 2 arrays. Fresh: 1 ({name}).\n"


@pytest.mark.parametrize("name", [OFFSETS, POOLING, MASKS])
def test_parts_that_one_network_does_not_have_are_named(name, capsys):
    assert started({name: (5, 4)}, {})[name] == 0
    assert capsys.readouterr().out == f"From runs/other: 2 arrays. Fresh: 1 ({name}).\n"
    assert set(started({}, {name: (5, 4)}).values()) == {1}
    assert capsys.readouterr().out == f"From runs/other: 2 arrays. Not used: 1 ({name}).\n"


@pytest.mark.parametrize("name", [OFFSETS, POOLING, MASKS, "conv1.kernel"])
def test_trained_arrays_of_another_shape_are_refused(name):
    message = rf"in {re.escape(name)} \(there \(5, 8\), here \(5, 4\)\): choose its --depth and"
    with pytest.raises(UserError, match=message):
        started({name: (5, 4)}, {name: (5, 8)})


def test_networks_of_other_depth_are_refused():
    with pytest.raises(UserError, match=r"layer1.1.conv1.kernel .there none, here .3, 3, 4, 4.."):
        started({"layer1.1.conv1.kernel": (3, 3, 4, 4)}, {})


def test_first_process_alone_names_a_few_of_many_arrays(capsys, monkeypatch):
    many = {f"layer2.{index}.conv2.offset_conv.bias": (27,) for index in range(7)}
    started(many, {})
    names = ", ".join(sorted(many)[:4])
    assert capsys.readouterr().out == f"From runs/other: 2 arrays. Fresh: 7 ({names}, ...).\n"
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    started(many, {})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("there", "here"), [("v2", "v2-exact"), ("v2-exact", "v2")])
def test_masks_of_another_scale_are_refused(tmp_path, there, here):
    model = Model(depth=10, width=4, stages=(5,), conv=there)
    weights = split(model.build(3))[1]
    with Checkpoints(tmp_path, write=True) as checkpoints:
        checkpoints.save_weights(weights, Description(model, ["a", "b", "c"]))
    placement = place(1, devices=jax.devices()[:1])
    other = dataclasses.replace(model, conv=here)
    with pytest.raises(UserError, match=rf"has --conv {there}, .*: choose --conv {there}\.$"):
        initial_weights(tmp_path, other, weights, placement)
    ordinary = dataclasses.replace(model, conv="ordinary")
    for taken in (model, ordinary):
        fresh = split(taken.build(3, seed=1))[1]
        found = initial_weights(tmp_path, taken, fresh, placement)
        for name, value in found.params.items():
            np.testing.assert_array_equal(value, weights.params[name], err_msg=name)
