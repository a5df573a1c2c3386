# SPDX-License-Identifier: MIT
"""Composes a data set: handwritten digits, rotated, scaled and sheared, on photographs."""

import functools
import importlib.util
import json
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import tyro
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from examples.detection.commands.evaluate import encode
from examples.imagenet.errors import UserError, check_option
from examples.imagenet.readers import decode
from examples.imagenet.settings import LARGEST_SEED

# Taken apart by hand: no photograph, and no digit, is in both splits.
PHOTOGRAPHS = {
    "train": (
        "sklearn/datasets/images/china.jpg",
        "skimage/data/astronaut.png",
        "skimage/data/brick.png",
        "skimage/data/camera.png",
        "skimage/data/cell.png",
        "skimage/data/coffee.png",
        "skimage/data/grass.png",
        "skimage/data/hubble_deep_field.jpg",
        "skimage/data/moon.png",
        "skimage/data/motorcycle_left.png",
        "skimage/data/retina.jpg",
        "skimage/data/rocket.jpg",
    ),
    "val": (
        "sklearn/datasets/images/flower.jpg",
        "skimage/data/chelsea.png",
        "skimage/data/coins.png",
        "skimage/data/gravel.png",
        "skimage/data/ihc.png",
    ),
}
_HELD_OUT = 5  # Every fifth digit is for tests.
_TRIES = 50  # Attempts to place a digit.
_MOST_COVERED = 0.1  # Largest part of a digit that later digits may cover.
_CONTRAST = 90  # Difference between a digit and its background, of 255.


class Warp(NamedTuple):
    """How far digits may be warped."""

    rotation: float = 60.0
    """Degrees, to either side."""
    smallest: float = 20.0
    """Least pixels of the side of an upright scan, the paper around the digit included."""
    largest: float = 64.0
    """Most pixels of this side; half of the sizes are below the geometric mean of the two."""
    shear: float = 0.4
    """Pixels to the side for each pixel up, to either side."""


class Placed(NamedTuple):
    """A digit of an image: the pixels that show it, and how it was warped."""

    label: int
    mask: np.ndarray
    values: dict[str, float]


def compose(
    output: tyro.conf.Positional[pathlib.Path],
    *,
    train: int = 4000,
    val: int = 500,
    size: int = 128,
    most: int = 4,
    warp: Warp = Warp(),
    seed: int = 0,
) -> None:
    """Writes composed images with exact boxes and masks, in COCO's format.

    The digits are the scans that come with scikit-learn, the photographs those that come with
    scikit-learn and scikit-image. Training and validation images share neither. Figures on this
    data set say how well composed images are understood, and nothing of photographs of objects.

    Args:
      output: Folder to write.
      train: Images to train on.
      val: Images to test on.
      size: Their height and width.
      most: Most digits of an image; the fewest are 1.
      warp: How far digits may be warped.
      seed: Of all choices: the same seed gives the same files.
    """
    for name, value in warp._asdict().items():
        check_option(name, value, 0)
    at_least_one = dict(train=train, val=val, size=size, most=most, smallest=warp.smallest)
    for name, value in at_least_one.items():
        check_option(name, value, 1)
    check_option("largest", warp.largest, warp.smallest, size)
    check_option("seed", seed, 0, LARGEST_SEED)
    if (output / "annotations").exists():
        raise UserError(f"{output} has a data set already: choose another folder.")
    contents = {}
    for index, (split, count) in enumerate((("train", train), ("val", val))):
        source = Source(split)
        randoms = (np.random.default_rng([seed, index, number]) for number in range(count))
        composed = (composed_image(random, source, size, most, warp) for random in randoms)
        shown = tqdm(composed, desc=split, unit=" images", total=count, disable=None)
        contents[split] = _content(output / split, shown, size, seed)
    # Annotations come last: after an interruption, the same command writes the folder again.
    (output / "annotations").mkdir()
    for split, content in contents.items():
        (output / "annotations" / f"{split}.json").write_text(json.dumps(content))
    print(f"Wrote {output}: {train} + {val} composed images.")


def _content(
    folder: pathlib.Path, composed: Iterable[tuple[np.ndarray, list]], size: int, seed: int
) -> dict[str, Any]:
    """Writes images, and returns what COCO's format says of them."""
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (pixels, placed) in enumerate(composed):
        name = f"{number:06}.png"
        Image.fromarray(pixels).save(folder / name)
        images.append(dict(id=number, file_name=name, height=size, width=size))
        annotations += [_annotation(number, entry) for entry in placed]
    return {
        "info": {"description": f"composed: warped digits on photographs, seed {seed}"},
        "images": images,
        "annotations": [{"id": place + 1} | entry for place, entry in enumerate(annotations)],
        "categories": [{"id": digit, "name": str(digit)} for digit in range(10)],
    }


class Source:
    """The scans and the photographs of one split."""

    def __init__(self, split: str):
        from sklearn.datasets import load_digits

        digits = load_digits()
        held_out = np.arange(len(digits.target)) % _HELD_OUT == 0
        chosen = held_out if split == "val" else ~held_out
        self.scans = digits.images[chosen] / 16
        self.labels = digits.target[chosen]
        self.photographs = [_photograph(path) for path in PHOTOGRAPHS[split]]


@functools.cache
def _photograph(path: str) -> np.ndarray:
    package, _, rest = path.partition("/")
    found = importlib.util.find_spec(package)
    if found is None:
        raise UserError(f"Composing needs photographs of {package}: pip install -e '.[examples]'.")
    return decode(pathlib.Path(found.origin).parent / rest)


def composed_image(
    random: np.random.Generator, source: Source, size: int, most: int, warp: Warp
) -> tuple[np.ndarray, list[Placed]]:
    """An image `[size, size, 3]` with `most` digits at most."""
    pixels = _background(random, source.photographs, size)
    placed: list[Placed] = []
    for _ in range(random.integers(1, most, endpoint=True)):
        for _ in range(_TRIES):
            index = random.integers(len(source.labels))
            ink, values = _warped(random, source.scans[index], size, warp)
            mask = ink > 0.5
            covered = [np.mean(mask[entry.mask]) for entry in placed]
            if mask.any() and all(share <= _MOST_COVERED for share in covered):
                placed = [entry._replace(mask=entry.mask & ~mask) for entry in placed]
                placed.append(Placed(int(source.labels[index]), mask, values))
                pixels = _drawn(random, pixels, ink)
                break
    return np.rint(pixels).astype(np.uint8), [entry for entry in placed if entry.mask.any()]


def _background(random: np.random.Generator, photographs: list, size: int) -> np.ndarray:
    """A square of a photograph, maybe mirrored, in changed colours."""
    photograph = photographs[random.integers(len(photographs))]
    shorter = min(photograph.shape[:2])
    side = int(random.uniform(0.3, 1) * shorter)
    top, left = (random.integers(length - side + 1) for length in photograph.shape[:2])
    crop = photograph[top : top + side, left : left + side]
    crop = crop[:, ::-1] if random.random() < 0.5 else crop
    image = Image.fromarray(np.ascontiguousarray(crop))
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BOX), np.float32)
    # Few photographs stand for many: channels trade places, and become lighter or darker.
    gain = random.uniform(0.6, 1.2) * random.uniform(0.8, 1.2, 3)
    return np.clip(pixels[..., random.permutation(3)] * gain.astype(np.float32), 0, 255)


def _warped(
    random: np.random.Generator, scan: np.ndarray, size: int, warp: Warp
) -> tuple[np.ndarray, dict[str, float]]:
    """The ink `[size, size]`, from 0 to 1, of a warped scan, and how it was warped."""
    angle = random.uniform(-warp.rotation, warp.rotation)
    side = np.exp(random.uniform(np.log(warp.smallest), np.log(warp.largest)))
    shear = random.uniform(-warp.shear, warp.shear)
    middle = random.uniform(side / 2, size - side / 2, 2)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    # From pixels of the image to pixels of the scan.
    matrix = np.array([[1, 0], [shear, 1]]) @ np.array([[cos, -sin], [sin, cos]])
    matrix *= len(scan) / side
    offset = (len(scan) - 1) / 2 - matrix @ (middle - 0.5)
    ink = ndimage.affine_transform(scan, matrix, offset, (size, size), order=3, mode="constant")
    values = {"rotation": float(angle), "side": float(side), "shear": float(shear)}
    return np.clip(ink, 0, 1), values


def _drawn(random: np.random.Generator, pixels: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """A digit in one colour, which stands out from what is behind the digit."""
    behind = pixels[ink > 0.5].mean()
    if behind > 128:
        light = random.uniform(0, behind - _CONTRAST)
    else:
        light = random.uniform(behind + _CONTRAST, 255)
    colour = np.clip(light + random.uniform(-30, 30, 3), 0, 255)
    return pixels + ink[..., None].astype(np.float32) * (colour.astype(np.float32) - pixels)


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The edges of a mask in pixels: top, left, bottom, right."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _annotation(image_id: int, placed: Placed) -> dict[str, Any]:
    top, left, bottom, right = box_of(placed.mask)
    return {
        "image_id": image_id,
        "category_id": placed.label,
        "bbox": [left, top, right - left, bottom - top],
        "area": int(placed.mask.sum()),
        "iscrowd": 0,
        "segmentation": encode(placed.mask),
        **placed.values,
    }
