# SPDX-License-Identifier: MIT
"""What a detector finds in a data set, and how good that is."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import tyro
from pycocotools import mask as run_lengths

from examples.detection.data.batches import NOTHING, evaluation_batches
from examples.detection.data.coco import CocoReader
from examples.detection.data.images import normalise
from examples.detection.data.masks import paste
from examples.detection.data.measure import Measured, measure
from examples.detection.model.architecture import Architecture
from examples.detection.model.boxes import Conventions
from examples.detection.model.detect import Detections, run
from examples.detection.model.networks import Detector
from examples.detection.training.checkpoint import Checkpoints
from examples.imagenet.devices import Placement, connect, place, together
from examples.imagenet.errors import check_option, check_suffix
from examples.imagenet.evaluate import Network, check_classes, load_network, shown
from examples.imagenet.settings import Testing
from examples.imagenet.state import Weights, merge, split


def evaluate(
    run: tyro.conf.Positional[pathlib.Path],
    data: pathlib.Path,
    *,
    split: Literal["train", "val"] = "val",
    score_threshold: float = 0.05,
    results: pathlib.Path | None = None,
    testing: Testing = Testing(),
) -> None:
    """Tests a detector: COCO's average precisions of boxes, and of masks if it makes them.

    A class without an object in the images has no precision, which is shown as "-".

    Args:
      run: Folder of a training run, or of imported weights.
      data: As for `train`.
      split: Which images.
      score_threshold: Detections have higher scores.
      results: A file .json to write the detections to, in COCO's format of results.
      testing: Which checkpoint, and how to go through the images.
    """
    check_option("score_threshold", score_threshold, 0, 1)
    if results is not None:
        check_suffix(results, (".json",))
    connect(testing.processes)
    with together():
        placement = place(testing.batch_size)
        network = load(run, testing.step, placement)
        architecture = network.description.model
        reader = open_split(data, split, architecture)
        check_classes(reader.class_names, network.description)
        finder = make_finder(
            network.model, architecture, placement, testing.batch_size, testing.workers
        )
        found = finder.find_all(network.weights, reader, score_threshold)
        measured = measure(reader.content, found, masks=architecture.model == "mask")
        if jax.process_index() == 0:
            print(f"step {network.step}, {len(reader)} images: {show(measured.summary)}")
            print(table(measured))
            if results is not None:
                _write(results, found)


def open_split(
    data: pathlib.Path, split: str, architecture: Architecture, *, to_train: bool = False
) -> CocoReader:
    """A split of a data set, with all that a detector of this architecture needs.

    `to_train`: whether annotations that training leaves out may lack a mask.
    """
    reader = CocoReader(data, split, architecture.rule.extent)
    if architecture.model == "mask":
        reader.check_masks(of_objects=to_train)
    return reader


def _write(path: pathlib.Path, found: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    print(f"Wrote {path}.")


def load(run: pathlib.Path, step: int | None, placement: Placement) -> Network:
    """The detector of a run's best checkpoint, or of the checkpoint of `step`."""
    return load_network(
        Checkpoints(run),
        step,
        placement,
        lambda description: description.model.build(len(description.class_names)),
    )


@dataclasses.dataclass(frozen=True)
class Finder:
    """A detector that goes through the images of a data set; results are whole on every process."""

    find: Callable[[Weights, dict[str, Any], float], tuple[jax.Array, Detections]]
    """From weights, a batch and a threshold of the score to the batch's `index` and what is found."""
    architecture: Architecture
    placement: Placement
    batch_size: int
    workers: int

    def find_all(
        self, weights: Weights, reader: CocoReader, score_threshold: float = 0.05
    ) -> list[dict[str, Any]]:
        """What is found in all images of a reader, in COCO's format of results."""
        batches, steps = evaluation_batches(
            reader,
            batch_size=self.batch_size,
            view=self.architecture.view,
            workers=self.workers,
            share=self.placement.share,
        )
        found: list[dict[str, Any]] = []
        for batch in shown(batches, steps * self.batch_size, self.placement):
            index, detections = self.find(weights, batch, score_threshold)
            detections = jax.tree.map(np.asarray, detections)
            for row, image in enumerate(np.asarray(index)):
                if image != NOTHING:
                    found += _results(detections, row, reader, int(image), self.architecture.rule)
        return found

    def measure(self, weights: Weights, reader: CocoReader) -> Measured:
        """The average precisions on all images of a reader."""
        found = self.find_all(weights, reader)
        return measure(reader.content, found, masks=self.architecture.model == "mask")


def make_finder(
    detector: Detector,
    architecture: Architecture,
    placement: Placement,
    batch_size: int,
    workers: int,
) -> Finder:
    """A finder with the structure, and without the weights, of `detector`."""
    detector.eval()
    graph, _ = split(detector)

    def find(weights: Weights, batch: dict, score_threshold: float) -> tuple[jax.Array, Detections]:
        images = normalise(batch["image"], batch["size"], batch["scale"])
        return batch["index"], run(merge(graph, weights), images, score_threshold).detections

    compiled = jax.jit(find, out_shardings=placement.whole)
    return Finder(compiled, architecture, placement, batch_size, workers)


def _results(
    detections: Detections, row: int, reader: CocoReader, index: int, rule: Conventions
) -> list[dict[str, Any]]:
    """The detections of one image of a batch in COCO's format."""
    image = reader.images[index]
    one = of_image(detections, row)
    entries = [
        {
            "image_id": image["id"],
            "category_id": reader.category_ids[label],
            "bbox": coco_box(box, rule),
            "score": float(score),
        }
        for box, score, label in zip(one.boxes, one.scores, one.labels, strict=True)
    ]
    if one.masks is not None:
        masks = paste(one.masks, one.boxes, (image["height"], image["width"]), rule)
        entries = [
            entry | {"segmentation": encode(mask)}
            for entry, mask in zip(entries, masks, strict=True)
        ]
    return entries


def of_image(detections: Detections, row: int) -> Detections:
    """The detections of one image of a batch, without the rows that only fill arrays."""
    valid = np.asarray(detections.valid[row])
    return jax.tree.map(lambda array: np.asarray(array[row])[valid], detections)


def coco_box(box: np.ndarray, rule: Conventions) -> list[float]:
    """A box as COCO writes it: left, top, width, height."""
    return [*map(float, box[:2]), *map(float, box[2:] - box[:2] + rule.extent)]


def encode(mask: np.ndarray) -> dict[str, Any]:
    """The run lengths of a mask `[H, W]`, as COCO writes them."""
    runs = run_lengths.encode(np.asfortranarray(mask, np.uint8))
    return {"size": runs["size"], "counts": runs["counts"].decode()}


def show(result: dict[str, float]) -> str:
    """The average precisions in words; "-" where there is nothing to find."""
    words = []
    for prefix, name in (("", "boxes"), ("mask_", "masks")):
        if f"{prefix}AP" in result:
            values = [f"{key} {_percent(result[prefix + key])}" for key in ("AP", "AP50", "AP75")]
            words.append(f"{name}: {', '.join(values)}")
    return "; ".join(words)


def table(measured: Measured) -> str:
    """The average precision of every class, a line each."""
    lines = []
    for name, values in measured.classes.items():
        cells = "  ".join(f"{key} {_percent(value):>5}" for key, value in values.items())
        lines.append(f"  {name:20} {cells}")
    return "\n".join(lines)


def _percent(precision: float) -> str:
    return "-" if precision < 0 else f"{100 * precision:.1f}"
