# SPDX-License-Identifier: MIT
"""Named problems of pooling regions, shared by tests and benchmarks.

The small ones have sizes that all differ, so that no swapped axis goes unseen.
"""

import dataclasses
import functools

import numpy as np

from jax_dcn import deform_roi_align, deform_roi_pool

ARGUMENTS = ("x", "rois", "offset", "mask")


@dataclasses.dataclass(frozen=True)
class RoICase:
    name: str
    images: int
    size: tuple[int, int]
    features: int
    regions: int
    pooled_size: int | tuple[int, int] = 3
    samples: int = 4
    group_size: int = 1
    part_size: int | None = None
    classes: int = 1
    spatial_scale: float = 0.23
    displaced: bool = True
    modulated: bool = True
    aligned: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def options(self) -> dict:
        shared = dict(spatial_scale=self.spatial_scale, pooled_size=self.pooled_size)
        if self.aligned:
            return shared | dict(sampling_ratio=self.samples, gamma=0.17)
        return shared | dict(
            output_dim=self.features,
            group_size=self.group_size,
            part_size=self.part_size,
            samples_per_part=self.samples,
            trans_std=0.13 if self.displaced else 0.0,
        )

    @property
    def bins(self) -> tuple[int, int]:
        size = self.pooled_size
        return (size, size) if isinstance(size, int) else size

    def function(self, implementation: str | None = None):
        operator = deform_roi_align if self.aligned else deform_roi_pool
        return functools.partial(operator, **self.options, implementation=implementation)

    def rois(self, random: np.random.Generator) -> np.ndarray:
        """Regions of all sizes: inside, partly and wholly outside, inverted, empty."""
        height, width = (size / self.spatial_scale for size in self.size)
        corner = random.uniform(-0.4, 1.1, (self.regions, 2)) * (width, height)
        size = random.uniform(-0.2, 0.9, (self.regions, 2)) * (width, height)
        size[1::5] = 0
        index = random.integers(0, max(1, self.images), (self.regions, 1))
        return np.concatenate([index, corner, corner + size], axis=1)

    def arrays(self, dtype: str = "float64", seed: int = 0) -> tuple:
        """Random `(x, rois, offset, mask)`."""
        random = np.random.default_rng(seed)
        channels = self.features * self.group_size**2
        parts = self.bins if self.part_size is None else (self.part_size,) * 2
        offset = random.normal(size=(self.regions, *parts, self.classes, 2))
        mask = random.uniform(size=(self.regions, *self.bins))
        arrays = (
            random.normal(size=(self.images, *self.size, channels)),
            self.rois(random),
            offset if self.displaced else None,
            mask if self.modulated else None,
        )
        return tuple(None if a is None else np.asarray(a, dtype) for a in arrays)

    def cotangent(self, dtype: str = "float64", seed: int = 1) -> np.ndarray:
        shape = (self.regions, *self.bins, self.features)
        return np.random.default_rng(seed).normal(size=shape).astype(dtype)


CASES = [
    RoICase("pool", images=2, size=(9, 11), features=5, regions=7),
    RoICase(
        "cells_parts_and_classes",
        images=3,
        size=(8, 7),
        features=6,
        regions=5,
        pooled_size=4,
        samples=3,
        group_size=2,
        part_size=3,
        classes=2,
    ),
    RoICase("plain", 2, (7, 10), 3, 6, samples=2, displaced=False, modulated=False),
    RoICase("version_1", 1, (6, 9), 41, 4, pooled_size=2, modulated=False),
    RoICase("one_pixel", 1, (1, 1), 1, 3, pooled_size=1, samples=1, spatial_scale=1.0),
    RoICase("no_regions", 2, (5, 4), 3, 0),
    RoICase("align", 2, (10, 8), 4, 6, pooled_size=(3, 2), samples=2, aligned=True),
    RoICase("align_adaptive", 2, (11, 9), 6, 7, pooled_size=(2, 4), samples=0, aligned=True),
]

# The second stage of detectors: 512 regions of the levels of a feature pyramid, and R-FCN.
WORKLOADS = [
    RoICase("R1", 1, (50, 84), 256, 512, 7, spatial_scale=1 / 16),
    RoICase("R2", 2, (100, 168), 256, 256, 7, spatial_scale=1 / 8),
    RoICase("R3", 1, (38, 63), 21, 300, 7, group_size=7, classes=21, spatial_scale=1 / 16),
    RoICase("R4", 1, (50, 84), 256, 512, 7, spatial_scale=1 / 16, displaced=False, modulated=False),
    RoICase("R5", 1, (50, 84), 256, 512, 7, samples=2, spatial_scale=1 / 16, aligned=True),
]
