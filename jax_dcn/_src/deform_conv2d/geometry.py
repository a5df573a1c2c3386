# SPDX-License-Identifier: MIT
"""The geometry of a convolution: strides, padding, dilation and groups."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax_dcn._src.arguments import choice, positive, positive_pair
from jax_dcn._src.public import public
from jax_dcn._src.sampling import window
from jax_dcn._src.sampling.bilinear import BOUNDARIES, Boundary
from jax_dcn._src.sampling.window import Padding, Size


@public("jax_dcn.reference")
@dataclasses.dataclass(frozen=True)
class ConvGeometry:
    """The places of the taps: the options of a convolution, no sizes of arrays.

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
        return window.output_size(
            image_size,
            kernel_size,
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
        )

    def free_shift(self, padding: Padding, image_size: Size, kernel_size: Size) -> tuple[Any, Any]:
        """Correction of offsets `(dy, dx)` for a padding that is unknown, see `window.free_shift`."""
        return window.free_shift(
            padding, self.padding, image_size, kernel_size, self.strides, self.kernel_dilation
        )


@public("jax_dcn.reference")
def conv_geometry(
    image_size: Size,
    kernel_size: Size,
    *,
    strides: int | Sequence[int] | None = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    boundary: Boundary = "padded",
) -> ConvGeometry:
    """Validates the options of a convolution as users write them.

    Raises:
      ValueError: if an option has a wrong value; the message names it.
    """
    choice("boundary", boundary, BOUNDARIES)
    groups = positive("feature_group_count", feature_group_count)
    steps = positive_pair("strides", 1 if strides is None else strides)
    dilation = positive_pair("kernel_dilation", kernel_dilation)
    pads = window.explicit_padding(padding, image_size, kernel_size, steps, dilation)
    return ConvGeometry(steps, pads, dilation, groups, boundary)
