# SPDX-License-Identifier: MIT
"""One depthwise `deform_conv2d` with a kernel of ones for each level: heads are offset groups.

The queries lie on a grid of their own, and offsets carry the absolute positions minus that grid.
"""

import math

import jax.numpy as jnp
import numpy as np

import jax_dcn
from benchmarks.attention.engines.jax_dcn import task, version as version
from benchmarks.cpu.engines import Task


def prepare(case, mode: str, dtype: str, threads: int) -> Task:
    def attend(value, locations, weights):
        return sum(
            level(case, index, value, locations, weights) for index in range(len(case.shapes))
        )

    return task(attend, case, mode, dtype)


def level(case, index: int, value, locations, weights):
    height, width = case.shapes[index]
    first = sum(map(math.prod, case.shapes[:index]))
    image = value[:, first : first + height * width].reshape(case.batch, height, width, -1)
    rows, columns = grid_of(case, index)
    positions = locations[..., index, :, ::-1] * np.array([height, width], np.float32) - 0.5
    base = np.stack(np.indices((rows, columns), np.float32), axis=-1)[:, :, None, None]
    steps = np.stack([np.zeros(case.points), np.arange(case.points)], axis=-1).astype(np.float32)
    offset = on_grid(positions, rows, columns) - base - steps
    y = jax_dcn.deform_conv2d(
        image,
        jnp.ones((1, case.points, 1, image.shape[-1]), image.dtype),
        offset,
        on_grid(weights[..., index, :], rows, columns),
        padding=((0, max(0, rows - height)), (0, max(0, columns - width + case.points - 1))),
        feature_group_count=image.shape[-1],
        implementation="native",
    )
    return y[:, :rows, :columns].reshape(case.batch, rows * columns, -1)[:, : case.query_count]


def grid_of(case, index: int) -> tuple[int, int]:
    """Rows and columns that hold all queries, at least as many as the map has."""
    height, width = case.shapes[index]
    columns = max(width, math.ceil(math.sqrt(case.query_count)))
    return max(height, math.ceil(case.query_count / columns)), columns


def on_grid(samples, rows: int, columns: int):
    missing = rows * columns - samples.shape[1]
    padded = jnp.pad(samples, [(0, 0), (0, missing)] + [(0, 0)] * (samples.ndim - 2))
    return padded.reshape(len(samples), rows, columns, *samples.shape[2:])
