# SPDX-License-Identifier: MIT
"""Named problems of aggregation, shared by tests and benchmarks.

The small ones have sizes that all differ, so that no swapped axis goes unseen.
"""

import dataclasses
import functools
import math

import numpy as np

from jax_dcn import deform_aggregate
from jax_dcn._src.deform_aggregate.geometry import AggregateGeometry

ARGUMENTS = ("x", "positions", "weights")


@dataclasses.dataclass(frozen=True)
class AggregateCase:
    name: str
    batch: int
    shapes: tuple[tuple[int, int], ...]
    points: tuple[int, ...]
    queries: int
    groups: int
    group_channels: int
    weighted: bool = True
    boundary: str = "padded"

    def __str__(self) -> str:
        return self.name

    @property
    def options(self) -> dict:
        return dict(shapes=self.shapes, points=self.points, boundary=self.boundary)

    @property
    def geometry(self) -> AggregateGeometry:
        return AggregateGeometry(**self.options)

    @property
    def channels(self) -> int:
        return self.groups * self.group_channels

    @property
    def samples(self) -> tuple[int, ...]:
        return (self.batch, self.queries, self.groups, sum(self.points))

    def function(self, implementation: str | None = None):
        return functools.partial(deform_aggregate, **self.options, implementation=implementation)

    def arrays(self, dtype: str = "float64", seed: int = 0) -> tuple:
        """Random `(x, positions, weights)`; a quarter of the coordinates are whole numbers."""
        random = np.random.default_rng(seed)
        sizes = np.repeat(np.array(self.shapes), self.points, axis=0)
        positions = random.uniform(-0.2, 1.2, (*self.samples, 2)) * sizes
        whole = random.uniform(size=positions.shape) < 0.25
        arrays = (
            random.normal(size=(self.batch, sum(map(math.prod, self.shapes)), self.channels)),
            np.where(whole, np.round(positions), positions),
            random.uniform(size=self.samples) if self.weighted else None,
        )
        return tuple(None if a is None else np.asarray(a, dtype) for a in arrays)

    def cotangent(self, dtype: str = "float64", seed: int = 1) -> np.ndarray:
        shape = (self.batch, self.queries, self.channels)
        return np.random.default_rng(seed).normal(size=shape).astype(dtype)


CASES = [
    AggregateCase("levels", 2, ((5, 7), (3, 2), (1, 1)), (3, 0, 2), 11, 3, 4),
    AggregateCase("legacy", 1, ((4, 6), (2, 3)), (2, 3), 7, 2, 5, boundary="legacy"),
    AggregateCase("not_weighted", 3, ((6, 4),), (5,), 9, 2, 3, weighted=False),
    AggregateCase("one_channel_a_group", 1, ((5, 3),), (9,), 13, 7, 1),
    AggregateCase("wide_groups", 1, ((3, 4), (2, 2)), (1, 2), 5, 2, 67),
    AggregateCase("one_element", 1, ((1, 1),), (1,), 1, 1, 1),
    AggregateCase("many_queries", 1, ((9, 8),), (4,), 301, 1, 17),
    AggregateCase("no_queries", 2, ((5, 4),), (3,), 0, 2, 3),
    AggregateCase("no_samples", 2, ((5, 4), (2, 3)), (0, 0), 4, 2, 3),
    AggregateCase("no_images", 0, ((5, 4),), (3,), 4, 2, 3),
]
