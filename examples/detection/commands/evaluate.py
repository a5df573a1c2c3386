# SPDX-License-Identifier: MIT
"""What a detector finds in a data set, and how good that is."""

import json
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import tyro
from pycocotools import mask as run_lengths
from tqdm import tqdm

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
from examples.imagenet.errors import UserError
from examples.imagenet.evaluate import Network, load_network
from examples.imagenet.settings import Processes
from examples.imagenet.state import Weights, merge, split

Find = Callable[[Weights, dict[str, Any], float], tuple[jax.Array, Detections]]


def evaluate(
    run: tyro.conf.Positional[pathlib.Path],
    data: pathlib.Path,
    *,
    split: Literal["train", "val"] = "val",
    step: int | None = None,
    batch_size: int = 16,
    score_threshold: float = 0.05,
    results: pathlib.Path | None = None,
    workers: int = 8,
    processes: Processes = Processes(),
) -> None:
    """Tests a detector: COCO's average precisions of boxes, and of masks if it makes them.

    Args:
      run: Folder of a training run, or of imported weights.
      data: As for `train`.
      split: Which images.
      step: Which checkpoint; by default the best.
      batch_size: Images at a time, over all devices.
      score_threshold: Detections have higher scores.
      results: A file .json to write the detections to, in COCO's format of results.
      workers: Processes that decode images; 0 decodes in threads.
      processes: Other processes to share the work with.
    """
    connect(processes)
    with together():
        placement = place(batch_size)
        network = load(run, step, placement)
        architecture = network.description.model
        reader = CocoReader(data, split, architecture.rule.extent)
        check_classes(reader, network.description)
        found = detect_all(
            make_finder(network.model, placement),
            network.weights,
            reader,
            placement,
            architecture=architecture,
            batch_size=batch_size,
            workers=workers,
            score_threshold=score_threshold,
        )
        measured = measure(reader.content, found, masks=architecture.model == "mask")
        if jax.process_index() == 0:
            print(f"step {network.step}, {len(reader)} images: {show(measured.summary)}")
            print(table(measured))
            if results is not None:
                results.parent.mkdir(parents=True, exist_ok=True)
                results.write_text(json.dumps(found))
                print(f"Wrote {results}.")


def load(run: pathlib.Path, step: int | None, placement: Placement) -> Network:
    """The detector of a run's best checkpoint, or of that of `step`."""
    return load_network(
        Checkpoints(run),
        step,
        placement,
        lambda description: description.model.build(len(description.class_names)),
    )


def make_finder(detector: Detector, placement: Placement) -> Find:
    """A function from weights, a batch and a threshold to the batch's `index` and what is found.

    Its results are whole on every process.
    """
    detector.eval()
    graph, _ = split(detector)

    def find(weights: Weights, batch: dict, score_threshold: float) -> tuple[jax.Array, Detections]:
        images = normalise(batch["image"], batch["size"], batch["scale"])
        return batch["index"], run(merge(graph, weights), images, score_threshold).detections

    return jax.jit(find, out_shardings=placement.whole)


def test(
    find: Find,
    weights: Weights,
    reader: CocoReader,
    placement: Placement,
    *,
    architecture: Architecture,
    batch_size: int,
    workers: int,
) -> Measured:
    """The average precisions of a detector on all images of a reader."""
    found = detect_all(
        find,
        weights,
        reader,
        placement,
        architecture=architecture,
        batch_size=batch_size,
        workers=workers,
    )
    return measure(reader.content, found, masks=architecture.model == "mask")


def detect_all(
    find: Find,
    weights: Weights,
    reader: CocoReader,
    placement: Placement,
    *,
    architecture: Architecture,
    batch_size: int,
    workers: int,
    score_threshold: float = 0.05,
) -> list[dict[str, Any]]:
    """What is found in all images of a reader, in COCO's format of results."""
    batches, steps = evaluation_batches(
        reader,
        batch_size=batch_size,
        view=architecture.view,
        workers=workers,
        share=placement.share,
    )
    found: list[dict[str, Any]] = []
    quiet = None if jax.process_index() == 0 else True
    with tqdm(total=steps * batch_size, unit=" images", leave=False, disable=quiet) as bar:
        for batch in batches:
            index, detections = find(weights, placement.put_batch(batch), score_threshold)
            detections = jax.tree.map(np.asarray, detections)
            for row, image in enumerate(np.asarray(index)):
                if image != NOTHING:
                    found += _results(detections, row, reader, int(image), architecture.rule)
            bar.update(batch_size)
    return found


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
    """The average precisions in words."""
    words = []
    for prefix, name in (("", "boxes"), ("mask_", "masks")):
        if f"{prefix}AP" in result:
            values = [100 * result[f"{prefix}{key}"] for key in ("AP", "AP50", "AP75")]
            words.append("{}: AP {:.1f}, AP50 {:.1f}, AP75 {:.1f}".format(name, *values))
    return "; ".join(words)


def table(measured: Measured) -> str:
    """The average precision of every class, a line each."""
    lines = []
    for name, values in measured.classes.items():
        cells = "  ".join(f"{key} {100 * value:5.1f}" for key, value in values.items())
        lines.append(f"  {name:20} {cells}")
    return "\n".join(lines)


def check_classes(reader: CocoReader, description: Any) -> None:
    """Refuses data with another number of classes, or with others that have names."""
    names, known = reader.class_names, description.class_names
    numbers = [str(index) for index in range(len(known))]  # Imported weights know no names.
    if len(names) != len(known) or known not in (names, numbers):
        raise UserError(
            f"The detector knows {len(known)} classes ({known[0]}, ...), and the data has "
            f"{len(names)} ({names[0]}, ...): choose the data that it was trained for."
        )
