# SPDX-License-Identifier: MIT
"""What is in images: boxes, masks and scores, drawn and as JSON."""

import colorsys
import json
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image, ImageDraw
from tqdm import tqdm

from examples.detection.commands.evaluate import encode, load, of_image
from examples.detection.data.images import fit, normalise, on_canvas
from examples.detection.data.masks import paste
from examples.detection.model.architecture import Architecture
from examples.detection.model.detect import Detections, Images, detect
from examples.detection.model.networks import Detector
from examples.imagenet.devices import one_device
from examples.imagenet.errors import UserError, check_option
from examples.imagenet.readers import decode
from examples.imagenet.state import merge, split

_MASK_WEIGHT = 0.45  # Share of a mask's colour where the mask lies over the image.


class Loaded(NamedTuple):
    """A detector with its weights."""

    detector: Detector
    architecture: Architecture
    class_names: list[str]


def predict(
    run: tyro.conf.Positional[pathlib.Path],
    images: tyro.conf.Positional[tuple[pathlib.Path, ...]],
    *,
    output: pathlib.Path = pathlib.Path("build/predictions"),
    score_threshold: float = 0.3,
    step: int | None = None,
) -> None:
    """Draws the detections in images, and writes the detections as JSON.

    Args:
      run: Folder of a training run, or of imported weights.
      images: Image files.
      output: Folder for a picture of each image, and for `detections.json`: of every image its
        `detections`, best first, with `class`, `score`, `box` (left, top, right, bottom, in pixels),
        and the run lengths of the `mask` if the detector makes masks.
      score_threshold: Detections have higher scores.
      step: Which checkpoint; by default the best.
    """
    check_option("score_threshold", score_threshold, 0, 1)
    if not images:
        raise UserError("There is no image to look at: name one or more files after the run.")
    loaded = load_detector(run, step)
    for path in images:  # A damaged file would come to light after the work on those before.
        decode(path)
    output.mkdir(parents=True, exist_ok=True)
    found = []
    for number, path in enumerate(tqdm(images, unit=" images", disable=None)):
        pixels = decode(path)
        detections = find_in(loaded, pixels, score_threshold)
        masks = whole_masks(loaded, detections, pixels)
        picture = output / f"{number:03}-{path.stem}.png"
        Image.fromarray(drawn(pixels, detections, masks, loaded.class_names)).save(picture)
        entries = _entries(detections, masks, loaded.class_names)
        found.append({"image": str(path), "picture": picture.name, "detections": entries})
        tqdm.write(f"{path}: {_summary(entries)}")
    (output / "detections.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"Wrote {output}.")


def load_detector(run: pathlib.Path, step: int | None) -> Loaded:
    """The detector of a checkpoint, to use on a few images."""
    network = load(run, step, one_device())
    network.model.eval()
    detector = merge(split(network.model)[0], network.weights)
    return Loaded(detector, network.description.model, network.description.class_names)


def images_of(architecture: Architecture, pixels: np.ndarray) -> Images:
    """An image `[H, W, 3]` of uint8 as a batch of one, on the canvas that all images share."""
    view, scale = fit(pixels, architecture.view)
    height, width = view.shape[:2]
    canvas = on_canvas(view, architecture.view.canvas(height > width))
    size = jnp.array([[height, width]], jnp.float32)
    return normalise(jnp.asarray(canvas[None]), size, jnp.array([scale], jnp.float32))


def find_in(loaded: Loaded, pixels: np.ndarray, score_threshold: float) -> Detections:
    """What is in an image `[H, W, 3]` of uint8."""
    images = images_of(loaded.architecture, pixels)
    return of_image(detect(loaded.detector, images, score_threshold), 0)


def whole_masks(loaded: Loaded, detections: Detections, pixels: np.ndarray) -> np.ndarray | None:
    """The masks `[D, H, W]` of detections in an image, if the detector makes masks."""
    if detections.masks is None:
        return None
    size = pixels.shape[:2]
    return paste(detections.masks, detections.boxes, size, loaded.architecture.rule)


def drawn(
    pixels: np.ndarray, detections: Detections, masks: np.ndarray | None, class_names: list[str]
) -> np.ndarray:
    """The image with boxes, masks, classes and scores, the best detection on top."""
    picture = pixels.astype(np.float32)
    for row, mask in reversed(list(enumerate([] if masks is None else masks))):
        colour = np.array(colour_of(detections.labels[row], len(class_names)))
        picture[mask] += _MASK_WEIGHT * (colour - picture[mask])
    canvas = Image.fromarray(np.rint(picture).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for row in reversed(range(len(detections.labels))):
        colour = colour_of(detections.labels[row], len(class_names))
        # The seed's boxes of less than a pixel end left of where they start.
        corners = np.sort(detections.boxes[row].reshape(2, 2), axis=0).ravel().tolist()
        pen.rectangle(corners, outline=colour, width=max(1, min(pixels.shape[:2]) // 300))
        name = f"{class_names[detections.labels[row]]} {detections.scores[row]:.2f}"
        box = pen.textbbox(corners[:2], name)
        pen.rectangle(box, fill=colour)
        pen.text(corners[:2], name, fill="black")
    return np.asarray(canvas)


def colour_of(label: int, classes: int) -> tuple[int, int, int]:
    """A light colour for each class."""
    red, green, blue = colorsys.hsv_to_rgb(label / classes, 0.6, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _entries(
    detections: Detections, masks: np.ndarray | None, class_names: list[str]
) -> list[dict[str, Any]]:
    entries = []
    for row, label in enumerate(detections.labels):
        box = [round(float(corner), 2) for corner in detections.boxes[row]]
        entry = {"class": class_names[label], "score": float(detections.scores[row]), "box": box}
        entries.append(entry if masks is None else entry | {"mask": encode(masks[row])})
    return entries


def _summary(entries: list[dict[str, Any]]) -> str:
    if not entries:
        return "nothing found; lower --score-threshold to see more"
    return ", ".join(f"{entry['class']} {entry['score']:.2f}" for entry in entries)
