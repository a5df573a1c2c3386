# SPDX-License-Identifier: MIT
"""Masks of whole images, from the small ones that a detector predicts inside boxes."""

import numpy as np

from examples.detection.model.boxes import Conventions

_THRESHOLD = 0.5


def paste(
    masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], rule: Conventions
) -> np.ndarray:
    """Which pixels of an image belong to each object.

    Args:
      masks: Probabilities `[D, M, M]` inside the boxes.
      boxes: `[D, 4]`, in pixels of the image.
      size: Height and width of the image.
      rule: How boxes are measured.

    Returns:
      `[D, height, width]`, booleans.
    """
    result = np.zeros((len(masks), *size), bool)
    for pasted, mask, box in zip(result, masks, boxes, strict=True):
        x1, y1, x2, y2 = _whole_pixels(box) if rule.whole_pixel_masks else box
        cells = mask.shape[0]
        rows = _weights(y1, y2, size[0], cells, rule)
        columns = _weights(x1, x2, size[1], cells, rule)
        share = rows @ mask @ columns.T
        # mmdetection 0.5 leaves pixels out that lie on the threshold.
        pasted[:] = share > _THRESHOLD if rule.whole_pixel_masks else share >= _THRESHOLD
    return result


def in_box(mask: np.ndarray, box: np.ndarray, cells: int) -> np.ndarray:
    """A mask `[H, W]` of an image, cut to a box and stretched to `[cells, cells]`; booleans."""
    x1, y1, x2, y2 = box
    rows, columns = (
        _around(start, end, length, cells)
        for start, end, length in ((y1, y2, mask.shape[0]), (x1, x2, mask.shape[1]))
    )
    return rows @ mask @ columns.T >= _THRESHOLD


def _around(start: float, end: float, pixels: int, cells: int) -> np.ndarray:
    """The weights `[cells, pixels]` of bilinear interpolation at the middles of cells of a box."""
    position = start + (np.arange(cells) + 0.5) / cells * (end - start) - 0.5
    position = np.clip(position, 0, pixels - 1)
    return np.maximum(1 - np.abs(position[:, None] - np.arange(pixels)), 0)


def _whole_pixels(box: np.ndarray) -> np.ndarray:
    """The box that ends after the last of the pixels in which the corners lie."""
    first, last = box.astype(np.int32).reshape(2, 2)
    return np.concatenate([first, np.maximum(last + 1, first + 1)]).astype(np.float32)


def _weights(start: float, end: float, pixels: int, cells: int, rule: Conventions) -> np.ndarray:
    """The weights `[pixels, cells]` of bilinear interpolation along one axis of a mask.

    The cells divide the box from `start` to `end`. Beyond the box a mask fades to zero within half
    a cell, or, for masks at whole pixels, ends sharply.
    """
    middle = np.arange(pixels, dtype=np.float32) + np.float32(0.5)
    inside = np.ones(pixels, bool)
    if start == end:
        # mmdetection divides by zero: the pixels around the line see the middle of the mask.
        inside = (np.floor(start) - 1 < middle) & (middle < np.ceil(end) + 1) & (middle != start)
        position = np.full(pixels, (cells - 1) / 2, np.float32)
    else:
        position = (middle - start) / (end - start) * cells - 0.5
    if rule.whole_pixel_masks:
        inside = (start < middle) & (middle < end)
        position = np.clip(position, 0, cells - 1)
    distance = np.abs(position[:, None] - np.arange(cells, dtype=np.float32))
    return np.maximum(1 - distance, 0) * inside[:, None]
