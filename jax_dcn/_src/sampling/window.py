# SPDX-License-Identifier: MIT
"""The window that a convolution moves over an image: its strides, padding and dilation."""

from collections.abc import Sequence
from typing import Any

from jax import export, lax

from jax_dcn._src.arguments import LIMIT, is_integer, is_pair

Size = Sequence[int]
"""`(height, width)`."""

Padding = str | int | Sequence[int | tuple[int, int]]
"""`"SAME"`, `"SAME_LOWER"`, `"VALID"`, `p`, `(ph, pw)` or `((top, bottom), (left, right))`."""

PADDINGS = ("SAME", "SAME_LOWER", "VALID")


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
        (size + sum(pads) - _reach_along(taps, dilation)) // stride + 1
        for size, pads, taps, dilation, stride in zip(
            image_size, padding, kernel_size, kernel_dilation, strides, strict=True
        )
    )
    return height, width


def is_empty(output_size: Size) -> bool:
    """Whether an output size is known to leave no output position."""
    return any(not export.is_symbolic_dim(size) and size < 1 for size in output_size)


def check_output_size(output_size: Size, image_size: Size, kernel: str) -> None:
    """Refuses images that are smaller than the kernel; the error calls the kernel `kernel`."""
    if is_empty(output_size):
        raise ValueError(
            f"x is smaller than the kernel: with these strides, padding and kernel_dilation, images "
            f"of {image_size[0]}x{image_size[1]} and {kernel} leave {output_size[0]}x{output_size[1]} "
            "output positions."
        )


def explicit_padding(
    padding: Any, image_size: Size, kernel_size: Size, strides: Size, kernel_dilation: Size
) -> tuple[tuple[int, int], tuple[int, int]]:
    """`padding`, as users write it, as `((top, bottom), (left, right))`."""
    written = written_padding(padding)
    if not isinstance(written, str):
        return written
    pads = _named_padding(written, image_size, kernel_size, strides, kernel_dilation)
    reaches = reach(kernel_size, kernel_dilation)
    (top, bottom), (left, right) = map(_known, pads, reaches, (written, written))
    return (top, bottom), (left, right)


def written_padding(
    padding: Any, names: Sequence[str] = PADDINGS
) -> str | tuple[tuple[int, int], tuple[int, int]]:
    """`padding`, as users write it, as one of `names` or as `((top, bottom), (left, right))`."""
    if isinstance(padding, str) and padding.upper() in names:
        return padding.upper()
    pairs = (padding, padding) if is_integer(padding) else padding
    if is_pair(pairs):
        pairs = tuple((p, p) if is_integer(p) else p for p in pairs)
        if all(is_pair(p) and all(is_integer(v) and 0 <= v < LIMIT for v in p) for p in pairs):
            (top, bottom), (left, right) = pairs
            return (int(top), int(bottom)), (int(left), int(right))
    listed = ", ".join(f'"{name}"' for name in names)
    raise ValueError(
        f"padding must be {listed}, an integer >= 0, (height, width) or ((top, bottom), (left, "
        f"right)), all less than 2**31, got {padding!r}."
    )


def reach(kernel_size: Size, kernel_dilation: Size) -> tuple[int, ...]:
    """Pixels from the first to the last tap, `(height, width)`."""
    return tuple(map(_reach_along, kernel_size, kernel_dilation))


def free_shift(
    padding: Padding,
    known: Sequence[Size],
    image_size: Size,
    kernel_size: Size,
    strides: Size,
    kernel_dilation: Size,
) -> tuple[Any, Any]:
    """Correction of offsets `(dy, dx)`, where the padding `known` takes the place of `padding`.

    With strides, the padding `"SAME"` depends on the size of the image. If the size is unknown,
    `explicit_padding` returns a padding with the same output size, and the samples must be shifted.
    """
    if not isinstance(padding, str) or not any(map(export.is_symbolic_dim, image_size)):
        return 0, 0
    exact = _named_padding(padding, image_size, kernel_size, strides, kernel_dilation)
    return known[0][0] - exact[0][0], known[1][0] - exact[1][0]


def _reach_along(taps: int, dilation: int) -> int:
    return dilation * (taps - 1) + 1


def _named_padding(
    padding: str, image_size: Size, kernel_size: Size, strides: Size, kernel_dilation: Size
) -> Sequence[tuple[Any, Any]]:
    return lax.padtype_to_pads(image_size, reach(kernel_size, kernel_dilation), strides, padding)


def _known(pads: tuple[Any, Any], reach: int, padding: str) -> tuple[int, int]:
    """`pads`; where these are symbols, known pads with the same output size."""
    if not any(map(export.is_symbolic_dim, pads)):
        return int(pads[0]), int(pads[1])
    less = (reach - 1) // 2
    return (reach - 1 - less, less) if padding == "SAME_LOWER" else (less, reach - 1 - less)
