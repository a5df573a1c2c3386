# SPDX-License-Identifier: MIT
"""The geometry of a convolution: strides, padding, dilation and groups."""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

from jax import lax

from jax_dcn._src.public import public

Size = Sequence[int]
"""`(height, width)`."""

Padding = str | int | Sequence[int | tuple[int, int]]
"""`"SAME"`, `"VALID"`, `p`, `(ph, pw)` or `((top, bottom), (left, right))`."""

BOUNDARIES = ("padded", "legacy")


@public("jax_dcn.reference")
@dataclasses.dataclass(frozen=True)
class ConvGeometry:
    """Where the taps of a convolution lie; everything about it but the sizes of the arrays.

    Attributes:
      strides: Output step in pixels, `(height, width)`.
      padding: Rows and columns of zeros around the image, `((top, bottom), (left, right))`.
      kernel_dilation: Distance of neighbouring taps in pixels, `(height, width)`.
      feature_group_count: Number of groups that input and output channels are split into.
      boundary: `"padded"` or `"legacy"`, see `jax_dcn.deform_conv2d`.
    """

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    kernel_dilation: tuple[int, int]
    feature_group_count: int = 1
    boundary: str = "padded"

    def output_size(self, image_size: Size, kernel_size: Size) -> tuple[int, int]:
        """Number of output positions `(height, width)`; not positive where the kernel does not fit."""
        height, width = (
            (size + sum(pads) - _reach(taps, dilation)) // stride + 1
            for size, pads, taps, dilation, stride in zip(
                image_size,
                self.padding,
                kernel_size,
                self.kernel_dilation,
                self.strides,
                strict=True,
            )
        )
        return height, width


@public("jax_dcn.reference")
def conv_geometry(
    image_size: Size,
    kernel_size: Size,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    boundary: str = "padded",
) -> ConvGeometry:
    """Validates the options of a convolution as users write them.

    Raises:
      ValueError: if an option has a wrong value; the message names it.
    """
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {BOUNDARIES}, got {boundary!r}.")
    if not _is_integer(feature_group_count) or feature_group_count < 1:
        raise ValueError(
            f"feature_group_count must be a positive integer, got {feature_group_count!r}."
        )
    steps = _positive_pair("strides", strides)
    dilation = _positive_pair("kernel_dilation", kernel_dilation)
    pads = _explicit_padding(padding, image_size, kernel_size, steps, dilation)
    return ConvGeometry(steps, pads, dilation, int(feature_group_count), boundary)


def _reach(taps: int, dilation: int) -> int:
    return dilation * (taps - 1) + 1


def _is_integer(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _positive_pair(name: str, value: Any) -> tuple[int, int]:
    pair = (value, value) if _is_integer(value) else value
    if not _is_pair(pair) or not all(_is_integer(v) and v > 0 for v in pair):
        raise ValueError(f"{name} must be a positive integer or a pair of them, got {value!r}.")
    return int(pair[0]), int(pair[1])


def _is_pair(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2


def _explicit_padding(
    padding: Any, image_size: Size, kernel_size: Size, strides: Size, kernel_dilation: Size
) -> tuple[tuple[int, int], tuple[int, int]]:
    if isinstance(padding, str):
        return _named_padding(padding, image_size, kernel_size, strides, kernel_dilation)
    pairs = (padding, padding) if _is_integer(padding) else padding
    if _is_pair(pairs):
        pairs = tuple((p, p) if _is_integer(p) else p for p in pairs)
        if all(_is_pair(p) and all(_is_integer(v) and v >= 0 for v in p) for p in pairs):
            (top, bottom), (left, right) = pairs
            return (int(top), int(bottom)), (int(left), int(right))
    raise ValueError(
        'padding must be "SAME", "VALID", an integer >= 0, (height, width) or '
        f"((top, bottom), (left, right)), got {padding!r}."
    )


def _named_padding(
    padding: str, image_size: Size, kernel_size: Size, strides: Size, kernel_dilation: Size
) -> tuple[tuple[int, int], tuple[int, int]]:
    if padding not in ("SAME", "VALID"):
        raise ValueError(f'padding must be "SAME" or "VALID" when it is a string, got {padding!r}.')
    window = tuple(_reach(t, d) for t, d in zip(kernel_size, kernel_dilation, strict=True))
    (top, bottom), (left, right) = lax.padtype_to_pads(image_size, window, strides, padding)
    return (int(top), int(bottom)), (int(left), int(right))
