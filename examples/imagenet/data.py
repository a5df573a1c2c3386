# SPDX-License-Identifier: MIT
"""Batches of images: a step's batch depends on the seed and the step alone.

Neither the number of worker processes, nor that of training processes, nor an interruption changes
what a step sees: the number of the step is all the state that there is.
"""

import contextlib
import dataclasses
import functools
import gc
import signal
from collections.abc import Generator, Iterable, Iterator

import absl.flags
import grain
import numpy as np
from grain.multiprocessing import SharedMemoryArray
from PIL import Image

from examples.imagenet.readers import Reader

Batch = dict[str, np.ndarray]
"""`image`, `[N, H, W, 3]` of uint8, and `label`, `[N]` of int32."""

NO_LABEL = -1  # Of the images that fill the last batch of a test up.
_KEPT = 0.875  # The share of the shorter side that a test sees, as everybody's since AlexNet.
_THREADS = 4  # That read ahead where there are no worker processes.
_PER_WORKER = 2  # Batches in each of the two queues between a worker process and this one.
_HELD_PER_WORKER = 1 + 2 * (_PER_WORKER + 1)
"""Batches of a worker process: one that it reads, and for each queue those in it and one before it."""


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of every batch that this process reads: the `index`-th of `count` blocks."""

    index: int = 0
    count: int = 1


def training_batches(
    reader: Reader,
    steps: range,
    *,
    batch_size: int,
    image_size: int,
    flip: bool = True,
    seed: int = 0,
    workers: int = 0,
    share: Share = Share(),
) -> Generator[Batch, None, None]:
    """This process's share of the batches of `steps`, out of endless shuffled epochs.

    Args:
      reader: Where images come from.
      steps: The steps to train; those after an interruption start where it was.
      batch_size: Images in a step, over all processes; `share.count` divides it.
      image_size: Height and width to crop to.
      flip: Whether to mirror half of the images.
      seed: Of order and crops.
      workers: Processes that decode; 0 decodes in threads of this one.
      share: What this process reads.
    """
    epochs = -(-steps.stop * batch_size // len(reader))
    augment = functools.partial(_random_view, size=image_size, flip=flip)
    images = grain.MapDataset.source(reader).seed(seed).shuffle().repeat(epochs)
    views = images.random_map(augment)
    return read_blocks(_blocks(views, batch_size, share), steps, workers, share)


def evaluation_batches(
    reader: Reader, *, batch_size: int, image_size: int, workers: int = 0, share: Share = Share()
) -> Iterator[Batch]:
    """This process's share of every image once; the last batch is filled up with `NO_LABEL`."""
    steps = range(-(-len(reader) // batch_size))
    padded = _Padded(reader, steps.stop * batch_size, image_size)
    views = grain.MapDataset.source(padded)
    return read_blocks(_blocks(views, batch_size, share), steps, workers, share)


def _blocks(images: grain.MapDataset, batch_size: int, share: Share) -> grain.MapDataset:
    return images.batch(batch_size // share.count, batch_fn=_stack)


def read_blocks(
    blocks: grain.MapDataset, steps: range, workers: int, share: Share
) -> Generator[Batch, None, None]:
    """This process's blocks of the batches of `steps`, read ahead.

    A batch has one block for each process, next to each other: no process decodes another's. Close
    what is not read to its end.
    """
    mine = blocks[share.index :: share.count][steps.start : steps.stop]
    threads = _THREADS if workers == 0 else 1
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    batches = mine.to_iter_dataset(ahead)
    if workers:
        # Grain asks absl for options of its own, which only a program of absl has parsed.
        absl.flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=_PER_WORKER
        )
        batches = batches.mp_prefetch(options, worker_init_fn=_ignore_interrupts)
    try:
        yield from _copies(batches)
    finally:
        _wait_until_freed()


def _ignore_interrupts(index: int, count: int) -> None:
    """Leaves Ctrl-C, which every process of the terminal gets, to the one that ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def read_ahead(workers: int) -> int:
    """How many batches `read_blocks` holds at most before they are asked for."""
    return workers * _HELD_PER_WORKER if workers else _THREADS


def _copies(batches: grain.IterDataset) -> Iterator[Batch]:
    """Batches outside of the memory that Grain shares with its workers."""
    with contextlib.closing(iter(batches)) as read:
        for batch in read:
            yield {name: np.array(array) for name, array in batch.items()}


def _wait_until_freed() -> None:
    """Waits until Grain has freed the memory that it shares: a program that ends earlier would warn.

    Grain frees memory on one thread, in turn; no public function waits for this thread.
    """
    gc.collect()  # iterators of Grain, which refer to each other
    if freeing := getattr(SharedMemoryArray, "_del_thread_pool", None):
        freeing.apply(int)


def _stack(examples: Iterable[tuple[np.ndarray, int]]) -> Batch:
    images, labels = zip(*examples, strict=True)
    return {"image": np.stack(images), "label": np.array(labels, np.int32)}


def _random_view(
    example: tuple[np.ndarray, int], random: np.random.Generator, *, size: int, flip: bool
) -> tuple[np.ndarray, int]:
    image, label = example
    view = _resize(_random_crop(image, random), size)
    return (view[:, ::-1] if flip and random.random() < 0.5 else view), label


def _random_crop(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The crop of Szegedy et al. (2015): 8 % to 100 % of the area, 3:4 to 4:3."""
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * random.uniform(0.08, 1.0)
        ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        crop_width, crop_height = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = random.integers(width - crop_width, endpoint=True)
            top = random.integers(height - crop_height, endpoint=True)
            return image[top : top + crop_height, left : left + crop_width]
    return _centre(image, 1.0)


def _centre(image: np.ndarray, share: float) -> np.ndarray:
    """A square in the middle, its side a share of the shorter side."""
    height, width = image.shape[:2]
    side = max(1, round(share * min(height, width)))
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    # A crop is not contiguous, and Pillow wants it to be.
    whole = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR))


def centre_view(image: np.ndarray, size: int) -> np.ndarray:
    """The middle of an image `[H, W, 3]` as a test sees it, `[size, size, 3]`."""
    return _resize(_centre(image, _KEPT), size)


class _Padded:
    """A reader's images as a test sees them, then as many without a label as are missing."""

    def __init__(self, reader: Reader, length: int, image_size: int):
        self._reader, self._length, self._size = reader, length, image_size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if index >= len(self._reader):
            return np.zeros((self._size, self._size, 3), np.uint8), NO_LABEL
        image, label = self._reader[index]
        return centre_view(image, self._size), label
