# SPDX-License-Identifier: MIT
"""Outlines of objects in COCO's format: polygons, or run lengths down the columns of an image."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as run_lengths

_ZERO = ord("0")
_BITS = 5  # Bits of a number that one character holds.
_MORE, _NEGATIVE = 32, 16  # Flags of a character: the number goes on; the number is negative.
_MOST_CHARACTERS = 7  # Characters of the longest number: enough for 2**34 pixels.
_FARTHEST = 10  # Sides of the image, the longer ones, that a corner may be away.


def is_outline(value: Any) -> bool:
    """Whether this is made of polygons, or of run lengths."""
    if isinstance(value, dict):
        return {"size", "counts"} <= value.keys()
    polygons = value if isinstance(value, list) else []
    return bool(polygons) and all(isinstance(p, list) and p for p in polygons)


def fault_of(outline: Any, size: tuple[int, int]) -> str | None:
    """The fault of an outline in an image of `size` `(height, width)`; `None` for a sound outline."""
    if isinstance(outline, list):
        fault_of_polygon = functools.partial(_fault_of_polygon, longer=max(size))
        return next(filter(None, map(fault_of_polygon, outline)), None)
    if outline["size"] != list(size):
        return f"size {outline['size']}, and the image has {list(size)}"
    counts = counts_of(outline["counts"])
    if counts is None or np.any(counts < 0):
        return "counts that are no run lengths"
    pixels = math.prod(size)
    if np.sum(counts) != pixels:
        return f"counts of {np.sum(counts)} pixels, and the image has {pixels}"
    return None


def mask_of(outline: Any, size: tuple[int, int]) -> np.ndarray:
    """The pixels `[H, W]` inside an outline without fault, booleans."""
    if isinstance(outline, list):
        runs = run_lengths.merge(run_lengths.frPyObjects(outline, *size))
    elif isinstance(outline["counts"], list):
        runs = run_lengths.frPyObjects(outline, *size)
    else:
        runs = outline
    return run_lengths.decode(runs).astype(bool)


def counts_of(counts: Any) -> np.ndarray | None:
    """The lengths of runs, packed or not; `None` if `counts` are neither."""
    if isinstance(counts, str):
        return _unpacked(counts)
    if not isinstance(counts, list) or not all(map(_is_count, counts)):
        return None
    return np.array(counts, np.int64)


def _is_count(count: Any) -> bool:
    return type(count) is int and abs(count) < 2**31


def _unpacked(text: str) -> np.ndarray | None:
    """The lengths of runs in a text of pycocotools.

    A number has five bits in each character, the lowest first. From the fourth number on, the text
    has the difference from the number two before.
    """
    codes = np.array([ord(character) for character in text], np.int64) - _ZERO
    ends = np.flatnonzero(codes & _MORE == 0) + 1
    lengths = np.diff(ends, prepend=0)
    is_number = np.all((codes >= 0) & (codes < 2 * _MORE)) and np.all(lengths <= _MOST_CHARACTERS)
    if not is_number or np.sum(lengths) != len(codes):
        return None
    place = np.arange(len(codes)) - np.repeat(ends - lengths, lengths)
    bits = np.concatenate([[0], np.cumsum((codes & (_MORE - 1)) << _BITS * place)])
    numbers = bits[ends] - bits[ends - lengths]
    numbers -= np.where(codes[ends - 1] & _NEGATIVE, 1 << _BITS * lengths, 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _fault_of_polygon(polygon: Sequence[Any], longer: int) -> str | None:
    """The fault of a polygon in an image with a `longer` side."""
    if len(polygon) % 2:
        return f"a polygon of {len(polygon)} numbers, which are no pairs"
    if len(polygon) < 6:  # pycocotools takes four numbers for a box.
        return f"a polygon of {len(polygon)} numbers, which are no three corners"
    if not all(isinstance(x, int | float) and abs(x) < math.inf for x in polygon):
        return "a polygon with corners that are no numbers"
    # pycocotools takes memory for every pixel of an edge, also outside the image.
    if not all(abs(x) <= _FARTHEST * longer for x in polygon):
        return f"a corner more than {_FARTHEST} times the longer side of the image away"
    return None
