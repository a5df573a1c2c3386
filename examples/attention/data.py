# SPDX-License-Identifier: MIT
"""Images of one digit each on a photograph, composed as for the detectors, and boxes of the digits."""

from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from examples.detection.data.compose import Source, Warp, box_of, composed_image

SIZE = 64
_WARP = Warp(smallest=16, largest=40)


class Images(NamedTuple):
    """Images `[N, SIZE, SIZE, 3]` from -1 to 1, and boxes `[N, 4]` in parts of an image.

    A box is `(x, y)` of the centre, width and height, as a reference of `MSDeformAttn`.
    """

    pixels: np.ndarray
    boxes: np.ndarray


def compose_images(split: str, count: int, seed: int) -> Images:
    """Images of one split: no photograph, and no scan of a digit, is in both."""
    source = Source(split)
    pixels = np.empty((count, SIZE, SIZE, 3), np.float32)
    boxes = np.empty((count, 4), np.float32)
    for index in tqdm(range(count), desc=split, unit=" images", disable=None):
        random = np.random.default_rng([seed, split == "val", index])
        image, placed = composed_image(random, source, SIZE, 1, _WARP)
        top, left, bottom, right = box_of(placed[0].mask)
        boxes[index] = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
        pixels[index] = image / 127.5 - 1
    return Images(pixels, boxes / SIZE)
