# SPDX-License-Identifier: MIT
"""The window that a convolution moves over an image: its strides, padding and dilation."""

import numbers
from collections.abc import Sequence
from typing import Any

from jax import lax

Size = Sequence[int]
"""`(height, width)`."""

Padding = str | int | Sequence[int | tuple[int, int]]
"""`"SAME"`, `"VALID"`, `p`, `(ph, pw)` or `((top, bottom), (left, right))`."""


def output_size(
    image_size: Size,
    kernel_size: Size,
    *,
    strides: Size,
    padding: Sequence[Size],
    kernel_dilation: Size,
) -> tuple[int, int]:
    """Number of output positions `(height, width)`; not positive where the kernel does not fit."""
    height, width = (
        (size + sum(pads) - _reach(taps, dilation)) // stride + 1
        for size, pads, taps, dilation, stride in zip(
            image_size, padding, kernel_size, kernel_dilation, strides, strict=True
        )
    )
    return height, width


def positive_pair(name: str, value: Any) -> tuple[int, int]:
    """`value` for the height and for the width; `name` is the argument's name in the error."""
    pair = (value, value) if is_integer(value) else value
    if not _is_pair(pair) or not all(is_integer(v) and v > 0 for v in pair):
        raise ValueError(f"{name} must be a positive integer or a pair of them, got {value!r}.")
    return int(pair[0]), int(pair[1])


def explicit_padding(
    padding: Any, image_size: Size, kernel_size: Size, strides: Size, kernel_dilation: Size
) -> tuple[tuple[int, int], tuple[int, int]]:
    """`padding`, as users write it, as `((top, bottom), (left, right))`."""
    if isinstance(padding, str):
        return _named_padding(padding, image_size, kernel_size, strides, kernel_dilation)
    pairs = (padding, padding) if is_integer(padding) else padding
    if _is_pair(pairs):
        pairs = tuple((p, p) if is_integer(p) else p for p in pairs)
        if all(_is_pair(p) and all(is_integer(v) and v >= 0 for v in p) for p in pairs):
            (top, bottom), (left, right) = pairs
            return (int(top), int(bottom)), (int(left), int(right))
    raise ValueError(
        'padding must be "SAME", "VALID", an integer >= 0, (height, width) or '
        f"((top, bottom), (left, right)), got {padding!r}."
    )


def is_integer(value: object) -> bool:
    """Whether `value` is an integer of Python or NumPy; a boolean is not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _reach(taps: int, dilation: int) -> int:
    return dilation * (taps - 1) + 1


def _is_pair(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2


def _named_padding(
    padding: str, image_size: Size, kernel_size: Size, strides: Size, kernel_dilation: Size
) -> tuple[tuple[int, int], tuple[int, int]]:
    if padding not in ("SAME", "VALID"):
        raise ValueError(f'padding must be "SAME" or "VALID" when it is a string, got {padding!r}.')
    window = tuple(_reach(t, d) for t, d in zip(kernel_size, kernel_dilation, strict=True))
    (top, bottom), (left, right) = lax.padtype_to_pads(image_size, window, strides, padding)
    return (int(top), int(bottom)), (int(left), int(right))
