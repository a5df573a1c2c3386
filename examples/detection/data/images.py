# SPDX-License-Identifier: MIT
"""Image files as detectors see them: resized, normalised, padded."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from examples.detection.model.architecture import View, padded_length
from examples.detection.model.detect import Images

# Means and standard deviations of ImageNet, red first.
_COLOURS = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def batch(pixels: Sequence[np.ndarray], view: View) -> Images:
    """Images `[H, W, 3]` of uint8, resized, as one batch."""
    views, scales = zip(*(fit(image, view) for image in pixels), strict=True)
    sizes = np.array([view.shape[:2] for view in views])
    height, width = map(padded_length, sizes.max(0))
    canvases = np.stack([on_canvas(image, (height, width)) for image in views])
    return normalise(
        jnp.asarray(canvases), jnp.asarray(sizes, jnp.float32), jnp.asarray(scales, jnp.float32)
    )


def on_canvas(view: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """An image `[H, W, 3]`, padded at the right and at the bottom to `canvas` `(height, width)`."""
    whole = np.zeros((*canvas, 3), np.uint8)
    whole[: view.shape[0], : view.shape[1]] = view
    return whole


@jax.jit
def normalise(pixels: jax.Array, sizes: jax.Array, scales: jax.Array) -> Images:
    """Pixels `[N, H, W, 3]` of uint8 as the networks expect them; padding is zero."""
    mean, deviation = (jnp.asarray(values, jnp.float32).reshape(1, 1, 1, 3) for values in _COLOURS)
    rows, columns = (jnp.arange(length, dtype=sizes.dtype)[None] for length in pixels.shape[1:3])
    inside = (rows < sizes[:, :1])[:, :, None] & (columns < sizes[:, 1:])[:, None]
    normalised = (pixels.astype(jnp.float32) - mean) / deviation
    return Images(jnp.where(inside[..., None], normalised, 0), sizes, scales)


def fit(image: np.ndarray, view: View) -> tuple[np.ndarray, tuple[float, float]]:
    """An image `[H, W, 3]` of uint8 at the size that a detector sees, and how much wider and higher."""
    height, width = image.shape[:2]
    factor = 1.0
    if view.short is not None:
        factor = min(view.long / max(height, width), view.short / min(height, width))
    # An image of one line keeps at least one line.
    size = max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))
    scale = (factor, factor) if view.one_scale else (size[1] / width, size[0] / height)
    return resize(image, size), scale


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear interpolation of uint8 to `size` `(height, width)` without smoothing.

    Weights and sums are rounded as OpenCV rounds them, so that every bit equals OpenCV's.
    """
    if image.shape[:2] == size:
        return image
    rows, columns = (_taps(*pair) for pair in zip(image.shape, size, strict=False))
    image = image.astype(np.int32)
    wide = sum(image[:, index] * weight[:, None] for index, weight in columns) >> 4
    tall = sum(wide[index] * weight[:, None, None] >> 16 for index, weight in rows)
    return ((tall + 2) >> 2).astype(np.uint8)


def _taps(before: int, after: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The first and the second old pixel for every new pixel of an axis, with weights of 11 bits."""
    position = ((np.arange(after) + 0.5) * (before / after) - 0.5).astype(np.float32)
    first = np.floor(position)
    second_weight = position - first
    return [
        (np.clip(index, 0, before - 1).astype(int), np.rint(2048 * weight).astype(np.int32))
        for index, weight in ((first, 1 - second_weight), (first + 1, second_weight))
    ]
