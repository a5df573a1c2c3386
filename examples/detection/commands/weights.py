# SPDX-License-Identifier: MIT
"""Weights of mmdetection, old and new, and of the original repository's branch of it."""

import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import tyro
from flax import nnx

from examples.detection.commands.evaluate import load
from examples.detection.data.coco import CocoReader
from examples.detection.model.architecture import Architecture
from examples.detection.model.networks import Detector
from examples.detection.training.checkpoint import Checkpoints
from examples.detection.training.recipes import Settings
from examples.imagenet.checkpoint import Description
from examples.imagenet.devices import Placement
from examples.imagenet.errors import UserError
from examples.imagenet.evaluate import load as classifier
from examples.imagenet.state import Weights, split
from examples.imagenet.weights import other_network, over_fresh, read_weights
from jax_dcn.interop.torch_weights import to_flax, to_flax_and_report

Arrays = dict[str, np.ndarray]

_BACKBONE = "backbone."
_OPTIONS = "--model, --conv, --offset-groups, --pool, --depth, --width, --features and --hidden"
_OPTIONS_OF_BACKBONE = "--conv, --offset-groups, --depth and --width"
_UNLIKE_POOLS = {"mmcv", "original"}  # Values of --pool with equal arrays.


class Imported(NamedTuple):
    """A detector made of a file of another program."""

    detector: Detector
    classes: int
    used: list[str]
    unused: list[str]
    """Arrays of parts that the detector does not have."""


def import_weights(
    source: tyro.conf.Positional[pathlib.Path],
    output: tyro.conf.Positional[pathlib.Path],
    *,
    architecture: Architecture = Architecture(),
    data: pathlib.Path | None = None,
    key: str | None = None,
) -> None:
    """Makes a checkpoint of mmdetection or of the original repository one for the other commands.

    Args:
      source: A file .safetensors, or .pth (which needs torch).
      output: Folder for the checkpoint.
      architecture: The detector that the weights are of.
      data: Where to take the names of the classes from, as for `train`; else they are numbers.
      key: The entry of a .pth file that holds the weights, if several do, such as state_dict.
    """
    imported = load_published(source, architecture, key)
    names = _class_names(source, imported.classes, data)
    with Checkpoints(output, write=True) as checkpoints:
        checkpoints.save_weights(split(imported.detector)[1], Description(architecture, names))
    print(f"Used {len(imported.used)} arrays of {source}, and left {len(imported.unused)} out.")
    for name in imported.unused:
        print(f"  not used: {name}")
    print(f"Wrote {output}.")


def _class_names(source: pathlib.Path, classes: int, data: pathlib.Path | None) -> list[str]:
    if data is None:
        return [str(index) for index in range(classes)]
    names = CocoReader(data, "val").class_names
    if len(names) != classes:
        raise UserError(
            f"{source} knows {classes} classes, and {data} has {len(names)}: give the --data that "
            "its detector was trained for, or none."
        )
    return names


def load_published(
    source: pathlib.Path, architecture: Architecture, key: str | None = None
) -> Imported:
    """The detector of a file of mmdetection, or of the original repository's branch."""
    given = read_weights(source, key)
    weights = renamed(given)
    classes = _classes(source, weights)
    _note_conventions(source, given, architecture)
    detector = nnx.eval_shape(lambda: architecture.build(classes))
    try:
        _, report = to_flax_and_report(weights, detector, strict=False)
        # Arrays that are left over of a part that is used mean another architecture.
        parts = {_part(name) for name in report.loaded_keys}
        kept = {name: array for name, array in weights.items() if _part(name) in parts}
        nnx.update(detector, to_flax(kept, detector))
    except ValueError as error:
        raise UserError(
            f"{error}\nChoose the --model, --conv, --offset-groups, --pool and --depth of {source}."
        ) from error
    detector.eval()
    return Imported(detector, classes, report.loaded_keys, report.unexpected_keys)


def _note_conventions(
    source: pathlib.Path, names: Iterable[str], architecture: Architecture
) -> None:
    """Prints a note where the names come from a program with other conventions than `--conventions`."""
    age, conventions = ("before", "seed") if _is_old(names) else ("since", "mmdet3")
    if architecture.conventions != conventions:
        print(
            f"Note: {source} has the names of mmdetection {age} version 2: the boxes of such a "
            f"detector are measured by --conventions {conventions}.",
            file=sys.stderr,
        )


def renamed(weights: Mapping[str, np.ndarray]) -> Arrays:
    """Weights under the names, and with the classes in the order, of mmdetection 2 and 3.

    Before mmdetection 2, names had no `roi_head.`, and the background was the first class.
    """
    weights = {
        name.removeprefix("module."): array  # The prefix of parallel training.
        for name, array in weights.items()
        if not name.endswith("num_batches_tracked")
    }
    if not _is_old(weights):
        return weights
    roi_parts = ("bbox_head.", "mask_head.", "bbox_roi_extractor.", "mask_roi_extractor.")
    return {
        f"roi_head.{name}" if name.startswith(roi_parts) else name: _background_last(name, array)
        for name, array in weights.items()
        if not _is_idle_bias(name, array)
    }


def _is_old(names: Iterable[str]) -> bool:
    """Whether mmdetection before version 2 gave these names."""
    return any(name.removeprefix("module.").startswith("bbox_head.") for name in names)


def _background_last(name: str, array: np.ndarray) -> np.ndarray:
    """The rows of a last layer whose first class was the background."""
    layer = name.split(".")[-2] if "." in name else ""
    if layer == "fc_cls":
        return np.roll(array, -1, axis=0)
    if layer == "fc_reg" and len(array) > 4:  # One regression for each class.
        return array[4:]
    if layer == "conv_logits":
        return array[1:]
    return array


def _is_idle_bias(name: str, array: np.ndarray) -> bool:
    """Whether this is the bias of zeros that the original's modulated convolutions have."""
    return name.startswith("backbone.layer") and name.endswith(".conv2.bias") and not np.any(array)


def _part(name: str) -> str:
    """The part of a detector that a parameter belongs to: `backbone`, `roi_head.mask_head`.

    The branches of pooling belong to the head that they feed.
    """
    words = name.split(".")
    part = ".".join(words[: 2 if words[0] == "roi_head" else 1])
    return part.replace("bbox_roi_extractor", "bbox_head")


def _classes(source: pathlib.Path, weights: Arrays) -> int:
    for name, array in weights.items():
        if name.startswith("roi_head.bbox_head.") and name.endswith("fc_cls.bias"):
            return len(array) - 1
    raise UserError(
        f"{source} has no roi_head.bbox_head.fc_cls.bias or bbox_head.fc_cls.bias: expected a "
        "checkpoint of Faster, Mask or Cascade R-CNN of mmdetection."
    )


def initial_weights(settings: Settings, fresh: Weights, placement: Placement) -> Weights:
    """The weights to start with: fresh ones, where no run of the settings has others."""
    if settings.backbone is not None:
        return _with_backbone(settings.backbone, settings.architecture, fresh, placement)
    if settings.initial is not None:
        kept = load(settings.initial, None, placement)
        _check_initial(settings.initial, kept.description.model, settings.architecture)
        return over_fresh(settings.initial, fresh, kept.weights, _OPTIONS)
    return fresh


def _check_initial(run: pathlib.Path, there: Architecture, here: Architecture) -> None:
    """Refuses a detector that computes something else with the same weights."""
    if there.conventions != here.conventions:
        raise other_network(run, "--conventions", there.conventions, here.conventions)
    if {there.pool, here.pool} == _UNLIKE_POOLS:
        raise other_network(run, "--pool", there.pool, here.pool)


def _with_backbone(
    run: pathlib.Path, architecture: Architecture, fresh: Weights, placement: Placement
) -> Weights:
    """The weights of a detector, in its backbone those of a classifier without the head."""
    kept = classifier(run, None, placement, "float32")
    if (kept.description.model.conv, architecture.conv) == ("v2-exact", "modulated"):
        raise UserError(
            f"--backbone {run} is a classifier of --conv v2-exact, whose masks go from 0 to 2. Masks "
            "of --conv modulated go from 0 to 1: give a classifier of --conv v2, or of --conv ordinary."
        )
    headless = Weights(*(_without_head(part) for part in kept.weights))
    mine = Weights(*(_backbone(part) for part in fresh))
    found = over_fresh(run, mine, headless, _OPTIONS_OF_BACKBONE)
    backbone = ({f"{_BACKBONE}{name}": x for name, x in part.items()} for part in found)
    return Weights(*(whole | part for whole, part in zip(fresh, backbone, strict=True)))


def _without_head(arrays: Arrays) -> Arrays:
    return {name: x for name, x in arrays.items() if not name.startswith("fc.")}


def _backbone(arrays: Arrays) -> Arrays:
    """The arrays of the backbone under the names that they have in a classifier."""
    names = [name for name in arrays if name.startswith(_BACKBONE)]
    return {name.removeprefix(_BACKBONE): arrays[name] for name in names}
