# SPDX-License-Identifier: MIT
"""The problems that are timed: attention layers of known models, and DCNv3 layers as attention.

A DCNv3 layer is an attention layer of one level, whose heads are its groups and whose points are its
taps: so every engine can run every problem.
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class AttentionCase:
    """Maps `shapes` with `points` samples each, for every head of every query.

    `queries` is a number of queries at random places, or None: one query on every pixel. Samples lie
    in rings around the query, as a fresh layer places them, or anywhere if `scattered`.
    """

    name: str
    shapes: tuple[tuple[int, int], ...]
    points: int
    heads: int
    channels: int
    queries: int | None = None
    scattered: bool = False
    batch: int = 1

    def __str__(self) -> str:
        return self.name

    @property
    def pixels(self) -> int:
        return sum(map(math.prod, self.shapes))

    @property
    def query_count(self) -> int:
        return self.pixels if self.queries is None else self.queries

    @property
    def samples(self) -> tuple[int, ...]:
        return (self.batch, self.query_count, self.heads, len(self.shapes), self.points)

    def arrays(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`value [N, S, M, D]`, `locations [N, Q, M, L, P, 2]` and `weights [N, Q, M, L, P]`.

        Samples stay a tenth of a pixel away from whole numbers, where derivatives are one-sided and
        rounding decides on the side.
        """
        random = np.random.default_rng(seed)
        value = random.normal(size=(self.batch, self.pixels, self.heads, self.channels))
        sizes = np.array(self.shapes)[:, None, ::-1]
        pixels = self._locations(random) * sizes - 0.5
        pixels = np.floor(pixels) + 0.1 + 0.8 * (pixels - np.floor(pixels))
        weights = random.uniform(size=self.samples)
        weights /= weights.sum((-2, -1), keepdims=True)
        return tuple(a.astype(np.float32) for a in (value, (pixels + 0.5) / sizes, weights))

    def cotangent(self) -> np.ndarray:
        shape = (self.batch, self.query_count, self.heads * self.channels)
        return np.random.default_rng(1).normal(size=shape).astype(np.float32)

    def _locations(self, random: np.random.Generator) -> np.ndarray:
        if self.scattered:
            return random.uniform(size=(*self.samples, 2))
        angle = 2 * np.pi * np.arange(self.heads) / self.heads
        ring = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        ring /= np.abs(ring).max(-1, keepdims=True)
        steps = np.arange(1, self.points + 1)
        offsets = (ring[:, None] * steps[:, None])[:, None] + random.normal(size=(*self.samples, 2))
        sizes = np.array(self.shapes)[:, None, ::-1]
        return self._references(random)[:, None, None, None] + offsets / sizes

    def _references(self, random: np.random.Generator) -> np.ndarray:
        if self.queries is not None:
            return random.uniform(size=(self.queries, 2))
        grids = [
            np.stack(np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5), axis=-1) / (w, h)
            for h, w in self.shapes
        ]
        return np.concatenate([grid.reshape(-1, 2) for grid in grids])


DETR = ((100, 167), (50, 84), (25, 42), (13, 21))
RTDETR = ((80, 80), (40, 40), (20, 20))
MASK2FORMER = ((128, 128), (64, 64), (32, 32))

# A: Deformable DETR's encoder and decoder, RT-DETR's decoder, Mask2Former's pixel decoder.
# D: the stages of InternImage-T.
CASES = (
    AttentionCase("A1", DETR, 4, 8, 32),
    AttentionCase("A1 scattered", DETR, 4, 8, 32, scattered=True),
    AttentionCase("A2", DETR, 4, 8, 32, queries=300),
    AttentionCase("A3", RTDETR, 4, 8, 32, queries=300),
    AttentionCase("A4", MASK2FORMER, 4, 8, 32),
    AttentionCase("A4 scattered", MASK2FORMER, 4, 8, 32, scattered=True),
    AttentionCase("D1", ((56, 56),), 9, 4, 16),
    AttentionCase("D2", ((28, 28),), 9, 8, 16),
    AttentionCase("D3", ((14, 14),), 9, 16, 16),
    AttentionCase("D4", ((7, 7),), 9, 32, 16),
)


def case(name: str) -> AttentionCase:
    return next(c for c in CASES if c.name == name)
