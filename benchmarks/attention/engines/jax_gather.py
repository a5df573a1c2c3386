# SPDX-License-Identifier: MIT
"""Plain JAX, as people write it: a gather for each of the four corners of all samples of a level."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.attention.engines.jax_dcn import task
from benchmarks.cpu.engines import Task


def version() -> str:
    return jax.__version__


def prepare(case, mode: str, dtype: str, threads: int) -> Task:
    def attend(value, locations, weights):
        sums, first = 0, 0
        for index, (height, width) in enumerate(case.shapes):
            maps = value[:, first : first + height * width].transpose(0, 2, 1, 3)
            where = locations[:, :, :, index].transpose(0, 2, 1, 3, 4)
            samples = gather(maps, where, height, width)
            sums += jnp.einsum("nmqpd,nqmp->nqmd", samples, weights[:, :, :, index])
            first += height * width
        return sums.reshape(*sums.shape[:2], -1).astype(value.dtype)

    return task(attend, case, mode, dtype)


def gather(maps, locations, height: int, width: int):
    """Samples `[N, M, Q, P, D]` of maps `[N, M, H * W, D]`."""
    positions = locations * np.array([width, height], np.float32) - 0.5
    low = jnp.floor(positions)
    fraction = positions - low
    flat = (*maps.shape[:2], math.prod(locations.shape[2:4]))
    total = 0
    for dy, dx in itertools.product((0, 1), repeat=2):
        x, y = low[..., 0] + dx, low[..., 1] + dy
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        pixel = (jnp.clip(y, 0, height - 1) * width + jnp.clip(x, 0, width - 1)).astype(jnp.int32)
        corner = jnp.take_along_axis(maps, pixel.reshape(flat)[..., None], axis=2)
        corner = corner.reshape(*locations.shape[:-1], -1)
        part_x = fraction[..., 0] if dx else 1 - fraction[..., 0]
        part_y = fraction[..., 1] if dy else 1 - fraction[..., 1]
        total += corner * (part_x * part_y * inside)[..., None]
    return total
