# SPDX-License-Identifier: MIT
"""Batches of images and objects: a step's batch depends on the seed and the step alone."""

import dataclasses
import sys
from collections.abc import Generator, Iterator

import grain
import jax
import numpy as np

from examples.detection.data.coco import CocoReader, Objects
from examples.detection.data.images import fit, on_canvas
from examples.detection.model.architecture import View
from examples.imagenet.data import Batch, Share, read_blocks

NOTHING = -1
"""The label of a row without an object, and the index of a row without an image."""

MASK_CELLS = 112
"""Height and width of the masks of objects, each stretched over its box."""


class Plan:
    """The images of every step. All images of a step are higher than wide, or none is.

    Args:
      sizes: Heights and widths `[images, 2]`.
      batch_size: Images in a step.
      seed: Of the order, which differs from epoch to epoch; `None` keeps the order, and fills
        batches up with `NOTHING` instead of more images.
    """

    def __init__(self, sizes: np.ndarray, batch_size: int, seed: int | None):
        high = sizes[:, 0] > sizes[:, 1]
        self._groups = [np.flatnonzero(high == value) for value in (False, True)]
        self._batch_size, self._seed = batch_size, seed
        self._last: tuple[int, np.ndarray] | None = None
        self.steps = sum(-(-len(group) // batch_size) for group in self._groups)
        """Of one epoch."""

    def images(self, step: int) -> np.ndarray:
        """The indices `[batch_size]` of the images of a step."""
        epoch, batch = divmod(step, self.steps)
        last = self._last
        if last is None or last[0] != epoch:
            self._last = last = (epoch, self._epoch(epoch))
        return last[1][batch]

    def _epoch(self, epoch: int) -> np.ndarray:
        if self._seed is None:
            return np.concatenate([self._batches(group) for group in self._groups])
        random = np.random.default_rng([self._seed, epoch])
        return random.permutation(
            np.concatenate([self._batches(random.permutation(group)) for group in self._groups])
        )

    def _batches(self, group: np.ndarray) -> np.ndarray:
        full = -(-len(group) // self._batch_size) * self._batch_size
        if self._seed is None:
            whole = np.concatenate([group, np.full(full - len(group), NOTHING, int)])
        else:
            whole = np.resize(group, full)
        return whole.reshape(-1, self._batch_size)


@dataclasses.dataclass
class Blocks:
    """The blocks of all steps, in order: of every step one for each process."""

    reader: CocoReader
    plan: Plan
    chosen: np.ndarray
    """The images of the reader that the plan numbers."""
    steps: int
    batch_size: int
    count: int
    view: View
    max_objects: int | None
    """Rows for objects; `None` for a test, which needs none."""
    flip: bool = False
    masks: bool = False
    seed: int = 0

    def __len__(self) -> int:
        return self.steps * self.count

    def __getitem__(self, index: int) -> Batch:
        step, block = divmod(index, self.count)
        size = self.batch_size // self.count
        rows = range(block * size, (block + 1) * size)
        images = self.plan.images(step)
        canvas = self.view.canvas(self._is_high(images))
        examples = [self._example(images[row], canvas, [self.seed, step, row]) for row in rows]
        return {name: np.stack([example[name] for example in examples]) for name in examples[0]}

    def _is_high(self, images: np.ndarray) -> bool:
        image = self.reader.images[self.chosen[images[0]]]
        return image["height"] > image["width"]

    def _example(self, number: int, canvas: tuple[int, int], seed: list[int]) -> Batch:
        if number == NOTHING:
            return _empty(canvas)
        index = int(self.chosen[number])
        pixels, scale = fit(self.reader.pixels(index), self.view)
        flipped = self.flip and np.random.default_rng(seed).random() < 0.5
        image = on_canvas(pixels[:, ::-1] if flipped else pixels, canvas)
        size = np.array(pixels.shape[:2], np.float32)
        scale = np.array(scale, np.float32)
        if self.max_objects is None:
            return dict(image=image, size=size, scale=scale, index=np.int32(index))
        objects = self.reader.objects(index, MASK_CELLS if self.masks else None)
        placed = place_objects(objects, scale, size, flipped, self.reader.extent)
        return dict(image=image, size=size, **_rows(placed, self.max_objects))


def place_objects(
    objects: Objects, scale: np.ndarray, size: np.ndarray, flipped: bool, extent: float
) -> Objects:
    """Objects in a resized, and maybe mirrored, image of `size` `(height, width)`."""
    height, width = size
    last = np.array([width, height, width, height]) - extent
    boxes = np.clip(objects.boxes * np.tile(scale, 2), 0, last)
    masks = objects.masks
    if flipped:
        boxes[:, [0, 2]] = width - extent - boxes[:, [2, 0]]
        masks = None if masks is None else masks[:, :, ::-1]
    return Objects(boxes.astype(np.float32), objects.labels, masks)


def _rows(objects: Objects, count: int) -> Batch:
    """Objects in arrays of fixed length; those that find no room are left out."""
    real = min(len(objects.labels), count)
    rows = {
        "boxes": np.zeros((count, 4), np.float32),
        "labels": np.full(count, NOTHING, np.int32),
    }
    rows["boxes"][:real] = objects.boxes[:real]
    rows["labels"][:real] = objects.labels[:real]
    if objects.masks is not None:
        rows["masks"] = np.zeros((count, *objects.masks.shape[1:]), bool)
        rows["masks"][:real] = objects.masks[:real]
    return rows


def _empty(canvas: tuple[int, int]) -> Batch:
    return dict(
        image=np.zeros((*canvas, 3), np.uint8),
        size=np.array(canvas, np.float32),
        scale=np.ones(2, np.float32),
        index=np.int32(NOTHING),
    )


def training_plan(reader: CocoReader, batch_size: int, seed: int) -> tuple[Plan, np.ndarray]:
    """Which images every step sees, and their places in the reader."""
    chosen = reader.to_train_on()
    return Plan(_sizes(reader, chosen), batch_size, seed), chosen


def note_left_out(reader: CocoReader, max_objects: int) -> None:
    """Says how many images to train on have objects that find no room."""
    count = reader.crowded(max_objects)
    if count and jax.process_index() == 0:
        print(
            f"Note: {count} of {len(reader)} images have more objects than --max-objects "
            f"{max_objects}: the rest is trained as background.",
            file=sys.stderr,
        )


def training_batches(
    reader: CocoReader,
    steps: range,
    *,
    batch_size: int,
    view: View,
    max_objects: int = 100,
    masks: bool = False,
    flip: bool = True,
    seed: int = 0,
    workers: int = 0,
    share: Share = Share(),
) -> Generator[Batch, None, None]:
    """This process's share of the batches of `steps`, out of endless shuffled epochs.

    A batch has `image` `[N, H, W, 3]` of uint8, `size` `[N, 2]`, `boxes` `[N, max_objects, 4]`,
    `labels` `[N, max_objects]`, and `masks` `[N, max_objects, MASK_CELLS, MASK_CELLS]` if asked for.

    Args:
      reader: Where images and objects come from.
      steps: The steps to train. A resumed run begins with the step after the last checkpoint.
      batch_size: Images in a step, over all processes; a multiple of `share.count`.
      view: How images are resized.
      max_objects: Rows for the objects of an image.
      masks: Whether to read masks.
      flip: Whether to mirror half of the images.
      seed: Of order and mirroring.
      workers: Processes that decode; 0 decodes in threads of this one.
      share: What this process reads.
    """
    plan, chosen = training_plan(reader, batch_size, seed)
    blocks = Blocks(
        reader,
        plan,
        chosen,
        steps.stop,
        batch_size,
        share.count,
        view,
        max_objects,
        flip=flip,
        masks=masks,
        seed=seed,
    )
    return read_blocks(grain.MapDataset.source(blocks), steps, workers, share)


def evaluation_batches(
    reader: CocoReader, *, batch_size: int, view: View, workers: int = 0, share: Share = Share()
) -> tuple[Iterator[Batch], int]:
    """This process's share of every image once, and the number of batches.

    A batch has `image`, `size`, `scale` `[N, 2]` and `index` `[N]`, which is `NOTHING` for an image
    that only fills the last batch up.
    """
    chosen = np.arange(len(reader))
    plan = Plan(_sizes(reader, chosen), batch_size, None)
    blocks = Blocks(reader, plan, chosen, plan.steps, batch_size, share.count, view, None)
    source = grain.MapDataset.source(blocks)
    return read_blocks(source, range(plan.steps), workers, share), plan.steps


def _sizes(reader: CocoReader, chosen: np.ndarray) -> np.ndarray:
    images = (reader.images[index] for index in chosen)
    return np.array([(image["height"], image["width"]) for image in images]).reshape(-1, 2)
