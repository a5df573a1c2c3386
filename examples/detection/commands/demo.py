# SPDX-License-Identifier: MIT
"""All in one: composes images, trains the small detector, and draws what the detector finds."""

import dataclasses
import pathlib

import numpy as np
from PIL import Image

from examples.detection.commands.predict import drawn, find_in, load_detector, whole_masks
from examples.detection.commands.train import train
from examples.detection.data.coco import CocoReader
from examples.detection.data.compose import compose
from examples.detection.training.recipes import COMPOSED
from examples.imagenet.errors import UserError, check_option

_COLUMNS, _ROWS = 6, 3
_MAGNIFIED = 2


def demo(
    output: pathlib.Path = pathlib.Path("build/detection-demo"),
    *,
    images: int = 4000,
    steps: int = 2000,
    seed: int = 0,
) -> None:
    """Trains a small deformable detector on composed images, and draws its detections: minutes.

    Interrupted, the same command goes on where it stopped.

    Args:
      output: Folder for the images, the run, and the picture `detections.png`.
      images: Composed images to train on.
      steps: Steps to train, of 16 images each.
      seed: Of images and initial weights.
    """
    check_option("images", images, 1)
    settings = dataclasses.replace(COMPOSED, output=output / "run", steps=steps, seed=seed)
    data = output / "data"
    _compose_once(data, images, seed)
    train(dataclasses.replace(settings, data=data))
    picture = output / "detections.png"
    Image.fromarray(montage(output / "run", data)).save(picture)
    print(f"Wrote {picture}.")


def _compose_once(data: pathlib.Path, images: int, seed: int) -> None:
    """Composes the images, or makes sure that the images of an earlier demo are the same."""
    if not (data / "annotations" / "val.json").exists():
        compose(data, train=images, val=200, seed=seed)
        return
    content = CocoReader(data, "train").content
    count, about = len(content["images"]), content["info"]["description"]
    if count != images or not about.endswith(f", seed {seed}"):
        raise UserError(
            f"{data} holds {count} training images ({about}), not {images} of seed {seed}: choose "
            "another --output, or the same --images and --seed."
        )


def montage(run: pathlib.Path, data: pathlib.Path, score_threshold: float = 0.5) -> np.ndarray:
    """The first composed images of the validation split with what a detector finds in them."""
    loaded = load_detector(run, None)
    reader = CocoReader(data, "val")
    tiles = []
    for index in range(min(_COLUMNS * _ROWS, len(reader))):
        pixels = reader.pixels(index)
        found = find_in(loaded, pixels, score_threshold)
        masks = whole_masks(loaded, found, pixels)
        large = found._replace(boxes=found.boxes * _MAGNIFIED)
        masks = None if masks is None else _magnified(masks, 1)
        tiles.append(drawn(_magnified(pixels, 0), large, masks, loaded.class_names))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % _COLUMNS)
    rows = [tiles[start : start + _COLUMNS] for start in range(0, len(tiles), _COLUMNS)]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def _magnified(array: np.ndarray, axis: int) -> np.ndarray:
    """An array with every pixel repeated, along `axis` and the next axis."""
    return array.repeat(_MAGNIFIED, axis).repeat(_MAGNIFIED, axis + 1)
