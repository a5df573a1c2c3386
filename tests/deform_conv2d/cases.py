# SPDX-License-Identifier: MIT
"""Named problems, shared by tests and benchmarks.

The small ones have sizes that all differ, so that no swapped axis goes unseen.
"""

import dataclasses
import functools

import jax
import numpy as np

from jax_dcn import deform_conv2d
from jax_dcn._src.deform_conv2d.geometry import ConvGeometry, conv_geometry

ARGUMENTS = ("x", "kernel", "offset", "mask", "bias")


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    batch: int
    image: tuple[int, int]
    channels: int
    features: int
    kernel: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: object = ((1, 1), (1, 1))
    kernel_dilation: tuple[int, int] = (1, 1)
    feature_group_count: int = 1
    offset_groups: int = 1
    modulated: bool = True
    boundary: str = "padded"

    def __str__(self) -> str:
        return self.name

    @property
    def options(self) -> dict:
        return dict(
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
            boundary=self.boundary,
        )

    @property
    def geometry(self) -> ConvGeometry:
        return conv_geometry(self.image, self.kernel, **self.options)

    @property
    def output(self) -> tuple[int, int]:
        return self.geometry.output_size(self.image, self.kernel)

    def function(self, implementation: str | None = None):
        return functools.partial(deform_conv2d, **self.options, implementation=implementation)

    def arrays(self, dtype: str = "float32", seed: int = 0, spread: float = 2.0) -> tuple:
        """Random `(x, kernel, offset, mask, bias)`; a quarter of the offsets are whole numbers."""
        random = np.random.default_rng(seed)
        fan_in = self.kernel[0] * self.kernel[1] * self.channels // self.feature_group_count
        taps = self.kernel[0] * self.kernel[1]
        samples = (self.batch, *self.output, self.offset_groups, taps)
        offset = random.normal(scale=spread, size=(*samples, 2))
        whole = random.random(offset.shape) < 0.25
        arrays = (
            random.normal(size=(self.batch, *self.image, self.channels)),
            random.normal(
                scale=fan_in**-0.5,
                size=(*self.kernel, self.channels // self.feature_group_count, self.features),
            ),
            np.where(whole, np.rint(offset), offset),
            random.random(samples) if self.modulated else None,
            random.normal(size=self.features),
        )
        return tuple(None if a is None else np.asarray(a, dtype) for a in arrays)

    def ordinary_convolution(self, x, kernel) -> jax.Array:
        """XLA's convolution of the same shape, without bias."""
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            self.strides,
            self.geometry.padding,
            rhs_dilation=self.kernel_dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.feature_group_count,
        )

    def cotangent(self, dtype: str = "float32", seed: int = 1) -> np.ndarray:
        shape = (self.batch, *self.output, self.features)
        return np.random.default_rng(seed).normal(size=shape).astype(dtype)


CASES = [
    Case("plain", batch=2, image=(7, 9), channels=5, features=4, kernel=(3, 2)),
    Case("version_1", batch=1, image=(9, 6), channels=4, features=3, modulated=False),
    Case(
        "every_option",
        batch=3,
        image=(13, 10),
        channels=12,
        features=10,
        kernel=(2, 3),
        strides=(2, 1),
        padding=((1, 0), (2, 3)),
        kernel_dilation=(3, 2),
        feature_group_count=2,
        offset_groups=3,
    ),
    Case(
        "groups_do_not_divide",
        batch=2,
        image=(6, 5),
        channels=60,
        features=8,
        kernel=(1, 2),
        padding="VALID",
        feature_group_count=4,
        offset_groups=3,
    ),
    Case("legacy", 2, (8, 11), 6, 5, kernel=(3, 1), offset_groups=2, boundary="legacy"),
    Case("depthwise", 2, (6, 7), 10, 20, padding=2, feature_group_count=10, offset_groups=5),
    Case("depthwise_alone", 1, (5, 6), 11, 11, kernel=(2, 3), padding=1, feature_group_count=11),
    Case("one_by_one", 3, (5, 4), 7, 6, kernel=(1, 1), padding="SAME"),
    Case("one_by_five", 2, (3, 8), 5, 4, kernel=(1, 5), padding="SAME", kernel_dilation=(1, 2)),
    Case("seven_by_seven", 1, (6, 8), 2, 3, kernel=(7, 7), padding="SAME", boundary="legacy"),
    Case("seven_by_five", 1, (9, 8), 3, 2, kernel=(7, 5), padding="SAME", strides=(2, 3)),
    Case("one_pixel", 1, (1, 1), 1, 1, offset_groups=1),
    Case("kernel_larger_than_image", 2, (2, 3), 2, 3, kernel=(5, 4), padding=(3, 2)),
    Case("empty_batch", 0, (6, 5), 4, 3),
    # Larger than the kernels' tiles, and never a multiple of them.
    Case("many_pixels", 3, (25, 17), 3, 5, kernel=(2, 2), padding="SAME"),
    Case(  # CPU kernels leave out the samples outside so small an image
        "small_image",
        batch=9,
        image=(4, 5),
        channels=96,
        features=20,
        kernel=(2, 3),
        padding=((2, 1), (1, 1)),
        feature_group_count=4,
        offset_groups=3,
    ),
    Case("wide", 2, (7, 8), 70, 37, kernel=(2, 1), padding="SAME"),
    Case("deep", 1, (5, 6), 301, 19, kernel=(1, 2), padding="SAME", modulated=False),
]


def workload(name: str, batch: int, size: tuple[int, int], channels: int, **options) -> Case:
    return Case(name, batch, size, channels, channels, **options)


# Layers of classifiers and detectors; the names are those of the tables of results.
WORKLOADS = [
    workload("W1", 1, (56, 56), 64),
    workload("W2", 1, (28, 28), 128),
    workload("W3", 8, (14, 14), 256),
    workload("W4", 8, (7, 7), 512),
    workload("W5", 1, (50, 84), 256),
    workload("W6", 32, (28, 28), 128),
    workload("W7", 2, (56, 56), 64, strides=(2, 2)),
    workload("W8", 4, (14, 14), 256, offset_groups=4),
    workload("W9", 1, (28, 28), 128, modulated=False),
]
