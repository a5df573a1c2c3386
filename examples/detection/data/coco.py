# SPDX-License-Identifier: MIT
"""Data sets in COCO's format: a folder of images, and a JSON file of boxes and masks."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from examples.detection.data.masks import in_box
from examples.detection.data.outlines import fault_of, is_outline, mask_of
from examples.detection.data.packed import Packed
from examples.imagenet.errors import UserError
from examples.imagenet.readers import decode

SPLITS = ("train", "val")
_SMALLEST = 32  # Pixels of the shorter side of an image to train on, as in mmdetection.
_NUMBER = (int, float)
_LARGEST = 1e15  # Pixels: what boxes and areas stay below.
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "images": {"id": (int, str), "file_name": str, "height": _NUMBER, "width": _NUMBER},
    "annotations": {"image_id": (int, str), "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}
"""Fields that every entry of a list must have, and their types."""


class Objects(NamedTuple):
    """The objects of an image that a detector is trained to find."""

    boxes: np.ndarray
    """`[G, 4]`, float32, in pixels of the file."""
    labels: np.ndarray
    """`[G]`, int32: places in `class_names`."""
    masks: np.ndarray | None
    """`[G, M, M]`, booleans, each stretched over the part of its box that is in the image; `None`
    unless asked for."""


class CocoReader:
    """The images and classes of one split, in the order of the JSON file.

    Args:
      data: A folder with `annotations/*SPLIT*.json` and a folder of images whose name starts with
        the split, such as `train` or `train2017`.
      split: One of `SPLITS`.
      extent: What to add to `x2 - x1` for the width of a box: see `boxes.Conventions`.
    """

    def __init__(self, data: pathlib.Path, split: str, extent: float = 0.0):
        self.path = _annotations(data, split)
        self._folder = _images(data, split, self.path)
        self.extent = extent
        content = self.content
        self.class_names = [category["name"] for category in content["categories"]]
        self.category_ids = [category["id"] for category in content["categories"]]
        images = content["images"]
        _check_files(self._folder, [image["file_name"] for image in images], self.path)
        self.images = Packed({name: image[name] for name in _FIELDS["images"]} for image in images)
        by_image = _by_image(content["annotations"], self.category_ids)
        annotations = [by_image.get(image["id"], []) for image in images]
        self._annotations = Packed(annotations)
        self._counts = np.array(list(map(len, annotations)))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def content(self) -> dict[str, Any]:
        """The whole file, read again each time: only measuring needs all of its objects."""
        return _read(self.path)

    def pixels(self, index: int) -> np.ndarray:
        """The image `[H, W, 3]`, uint8."""
        image = self.images[index]
        path = self._folder / image["file_name"]
        pixels = decode(path)
        expected = (image["height"], image["width"])
        if pixels.shape[:2] != expected:
            turned = ", upright as its camera says," if _stored_size(path) == expected else ""
            raise UserError(
                f"{image['file_name']}{turned} has height and width {pixels.shape[:2]}, and "
                f"{self.path.name} says {expected}: write the size of the image."
            )
        return pixels

    def objects(self, index: int, cells: int | None = None) -> Objects:
        """The objects of an image, crowds and degenerate boxes left out as in mmdetection.

        Args:
          index: Which image.
          cells: Height and width of the masks, `None` for none.
        """
        image = self.images[index]
        kept = [entry for entry in self._annotations[index] if _is_object(entry, image)]
        regions = np.array([entry["bbox"] for entry in kept], np.float32).reshape(-1, 4)
        regions[:, 2:] += regions[:, :2]
        boxes = regions - np.array([0, 0, self.extent, self.extent], np.float32)
        labels = [self.category_ids.index(entry["category_id"]) for entry in kept]
        masks = None if cells is None else self._masks(kept, regions, image, cells)
        return Objects(boxes, np.array(labels, np.int32), masks)

    def _masks(
        self, entries: Sequence[dict], regions: np.ndarray, image: dict[str, Any], cells: int
    ) -> np.ndarray:
        """Masks `[G, cells, cells]` of annotations whose boxes end at the edges of `regions`."""
        # Batches cut boxes at the edges of the image.
        regions = np.clip(regions, 0, 2 * [image["width"], image["height"]])
        masks = [
            in_box(_mask(entry, image, self.path), region, cells)
            for entry, region in zip(entries, regions, strict=True)
        ]
        return np.array(masks, bool).reshape(-1, cells, cells)

    def to_train_on(self) -> np.ndarray:
        """The images with an annotation, crowds included, and a side of 32 pixels at least."""
        large = [min(image["height"], image["width"]) >= _SMALLEST for image in self.images]
        chosen = np.flatnonzero(np.array(large) & (self._counts > 0))
        if not len(chosen):
            raise UserError(f"{self.path} has no image with annotations to train on.")
        return chosen

    def crowded(self, most: int) -> int:
        """How many images to train on have more objects than `most`."""
        chosen = self.to_train_on()
        chosen = chosen[self._counts[chosen] > most]
        return sum(len(self.objects(index).labels) > most for index in chosen)

    def check_masks(self, *, of_objects: bool) -> None:
        """Refuses annotations without a mask, or with one that is damaged.

        Args:
          of_objects: Whether only the objects that a detector is trained to find need a mask. To
            measure a detector, crowds need theirs.
        """
        for image, entries in zip(self.images, self._annotations, strict=True):
            for entry in entries:
                if _is_object(entry, image) or not of_objects:
                    _check_outline(entry, image, self.path)


def _annotations(data: pathlib.Path, split: str) -> pathlib.Path:
    found = sorted((data / "annotations").glob(f"*{split}*.json"))
    # COCO also has captions_val2017.json and person_keypoints_val2017.json.
    found = [path for path in found if path.name.startswith("instances")] or found
    if not found:
        raise UserError(
            f"There is no annotations/*{split}*.json in {data.resolve()}: --data takes a folder in "
            "COCO's layout, such as `python -m examples.detection compose` writes."
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{data / 'annotations'} has {names}: keep one of them.")
    return found[0]


def _images(data: pathlib.Path, split: str, annotations: pathlib.Path) -> pathlib.Path:
    found = sorted(path for path in data.glob(f"{split}*") if path.is_dir())
    if not found:
        raise UserError(
            f"There is no folder {split}* in {data.resolve()}: --data takes a folder that has the "
            "images in folders such as train2017 and val2017."
        )
    same_name = [path for path in found if annotations.stem.endswith(path.name)]
    return (same_name or found)[0]


def _stored_size(path: pathlib.Path) -> tuple[int, int]:
    """Height and width of an image as the file has it, which may be on its side."""
    with Image.open(path) as image:
        return image.height, image.width


def _check_files(folder: pathlib.Path, names: Sequence[str], path: pathlib.Path) -> None:
    """Refuses a folder without all images: training might ask for the lost one hours later."""
    # Folders are listed: to ask for every file takes minutes on a network disk.
    parts = {os.path.dirname(name) for name in names}
    listed = {
        os.path.join(part, name)
        for part in parts
        if (folder / part).is_dir()
        for name in os.listdir(folder / part)
    }
    lost = [name for name in names if name not in listed and not os.path.exists(folder / name)]
    if lost:
        raise UserError(
            f"{len(lost)} of {len(names)} images of {path} are not in {folder}, the first of them "
            f"{lost[0]}: copy the images, or take their entries out of the file."
        )


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON that can be read ({error}): write it again.") from error
    for kind in _FIELDS:
        entries = content.get(kind) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"{path} has no list {kind!r}: expected annotations as of COCO.")
        if not entries and kind != "annotations":
            raise UserError(f"{path} has no {kind}: its list is empty.")
        _check_entries(path, kind, entries)
    for image in content["images"]:  # Some programs write 480.0.
        image |= {name: int(image[name]) for name in ("height", "width")}
    return content


def _check_entries(path: pathlib.Path, kind: str, entries: Sequence[Any]) -> None:
    for place, entry in enumerate(entries):
        wrong = _wrong_field(entry, _FIELDS[kind])
        if wrong is not None:
            given = entry.get(wrong, "nothing") if isinstance(entry, dict) else entry
            raise UserError(
                f"Entry {place} of {kind!r} in {path} has {given!r} as its {wrong!r}: expected "
                "what COCO's format has there."
            )
    _check_ids(path, kind, entries)


def _check_ids(path: pathlib.Path, kind: str, entries: Sequence[dict[str, Any]]) -> None:
    """Refuses an `id` that an entry before has."""
    seen = set()
    for place, entry in enumerate(entries):
        if "id" not in entry:
            continue
        if entry["id"] in seen:
            raise UserError(
                f"Entry {place} of {kind!r} in {path} has the 'id' {entry['id']!r} of an entry before "
                "it: give each its own."
            )
        seen.add(entry["id"])


def _wrong_field(entry: Any, fields: dict[str, type | tuple[type, ...]]) -> str | None:
    """The first field that is missing or that makes no sense."""
    for name, kind in fields.items():
        value = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(value, kind) or (kind is _NUMBER and not _is_length(value)):
            return name
        if name == "bbox" and not _is_box(value):
            return name
    if not isinstance(entry.get("id"), (*_NUMBER, str, type(None))):
        return "id"
    if not _is_measure(entry.get("area", 0)):
        return "area"
    return None if entry.get("iscrowd", 0) in (0, 1) else "iscrowd"


def _is_length(value: float) -> bool:
    """Whether this is a whole number of pixels."""
    return 0 < value < 2**31 and value % 1 == 0


def _is_box(value: list[Any]) -> bool:
    return len(value) == 4 and all(map(_is_measure, value))


def _is_measure(value: Any) -> bool:
    """Whether this is a number that a coordinate or an area can have."""
    return isinstance(value, _NUMBER) and abs(value) < _LARGEST


def _by_image(annotations: list[dict], category_ids: list[int]) -> dict[int, list[dict]]:
    grouped: dict[int, list[dict]] = {}
    for entry in annotations:
        if entry["category_id"] in category_ids:
            grouped.setdefault(entry["image_id"], []).append(entry)
    return grouped


def _is_object(entry: dict[str, Any], image: dict[str, Any]) -> bool:
    """Whether a detector shall find this: a single object, part of which is in the image."""
    x, y, width, height = entry["bbox"]
    inside_x = min(x + width, image["width"]) - max(x, 0)
    inside_y = min(y + height, image["height"]) - max(y, 0)
    large = width >= 1 and height >= 1 and entry.get("area", width * height) > 0
    single = not entry.get("iscrowd", 0) and not entry.get("ignore", False)
    return single and large and inside_x > 0 and inside_y > 0


def _mask(entry: dict[str, Any], image: dict[str, Any], path: pathlib.Path) -> np.ndarray:
    """The pixels `[H, W]` of an object."""
    _check_outline(entry, image, path)
    return mask_of(entry["segmentation"], (image["height"], image["width"]))


def _check_outline(entry: dict[str, Any], image: dict[str, Any], path: pathlib.Path) -> None:
    box = f"The annotation with the box {entry['bbox']}"
    name = f"Annotation {entry['id']}" if "id" in entry else box
    outline = entry.get("segmentation")
    if not is_outline(outline):
        raise UserError(
            f"{name} of {path} has no segmentation in polygons or run lengths: choose --model "
            "faster, or add masks."
        )
    fault = fault_of(outline, (image["height"], image["width"]))
    if fault is not None:
        raise UserError(f"{name} of {path} has a segmentation with {fault}: write the mask again.")
