# SPDX-License-Identifier: MIT
"""Draws a box on a photograph, with the positions that its bins sample, and what they pool."""

from collections.abc import Sequence

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

SAMPLES = 4  # of a bin along each axis: the default of `deform_roi_pool`


def draw_box(
    axes: Axes,
    photograph: np.ndarray,
    box: Sequence[int],
    offset: jax.Array | None,
    bins: int,
    trans_std: float,
) -> None:
    """The photograph, the box and a dot for each sample, coloured by the row of its bin."""
    axes.imshow(photograph)
    left, top, right, bottom = box
    outline = Rectangle((left, top), right - left, bottom - top, fill=False, color="white", lw=1.5)
    axes.add_patch(outline)
    position = _sampled_positions(box, offset, bins, trans_std)
    rows = np.broadcast_to(np.arange(bins)[:, None, None, None], position.shape[:-1])
    axes.scatter(position[..., 1], position[..., 0], c=rows, cmap="autumn", s=1.5)
    axes.set_axis_off()


def draw_pooled(axes: Axes, pooled: jax.Array) -> None:
    axes.imshow(np.clip(pooled, 0, 1))
    axes.set_axis_off()


def _sampled_positions(box, offset, bins: int, trans_std: float) -> np.ndarray:
    """`(y, x)` in pixels of the photograph, `[bins, bins, samples, samples, 2]`."""
    left, top, right, bottom = box
    size = np.array([bottom + 1 - top, right + 1 - left])
    row, column, i, j = np.indices((bins, bins, SAMPLES, SAMPLES))
    bin_index, sample = np.stack([row, column], -1), np.stack([i, j], -1)
    position = np.array([top, left]) - 0.5 + (bin_index + sample / SAMPLES) * size / bins
    if offset is not None:
        position = position + trans_std * size * np.asarray(offset)[0, :, :, :1, None, :]
    return position
