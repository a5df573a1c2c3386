# SPDX-License-Identifier: MIT
"""Image files as detectors see them: resized, normalised, padded."""

import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from PIL import Image, UnidentifiedImageError

from examples.detection.detect import Images
from examples.imagenet.errors import UserError

_MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # Of ImageNet, red first.
_DEVIATION = np.array([58.395, 57.12, 57.375], np.float32)
_SHORT, _LONG = 800, 1333
_STRIDE = 32  # Of C5: a padded size divides evenly on every level.


def read(path: pathlib.Path) -> np.ndarray:
    """The pixels `[H, W, 3]` of an image file, uint8, red first."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise UserError(f"There is no image {path}: check the path.") from error
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path} is not an image that can be read: {error}.") from error


def batch(
    pixels: Sequence[np.ndarray], *, short: int | None = _SHORT, long: int = _LONG, one_scale=False
) -> Images:
    """Images `[H, W, 3]` of uint8 as one batch.

    Args:
      pixels: The images.
      short: The height of an image or its width, whichever is smaller, after resizing; `None` keeps
        the size.
      long: The largest height and width after resizing.
      one_scale: Whether boxes are divided by the factor of the resizing that was asked for; else by
        the ratios of the rounded widths and heights.
    """
    views, scales = [], []
    for image in pixels:
        height, width = image.shape[:2]
        factor = min(long / max(height, width), short / min(height, width)) if short else 1.0
        size = int(height * factor + 0.5), int(width * factor + 0.5)
        views.append(resize(image, size))
        scales.append((factor, factor) if one_scale else (size[1] / width, size[0] / height))
    return Images(
        jnp.asarray(_padded([(view - _MEAN) / _DEVIATION for view in views])),
        jnp.asarray([view.shape[:2] for view in views], jnp.float32),
        jnp.asarray(scales, jnp.float32),
    )


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear interpolation to `size` `(height, width)` without smoothing, as in OpenCV."""
    if image.shape[:2] == size:
        return image
    rows, columns = (_interpolation(*pair) for pair in zip(image.shape, size, strict=False))
    tall = _interpolate(image.astype(np.float32), *rows)
    wide = _interpolate(tall.swapaxes(0, 1), *columns).swapaxes(0, 1)
    return np.rint(wide).astype(image.dtype)


def _interpolation(before: int, after: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every new pixel of an axis: two old pixels, and the weight of the second."""
    position = np.clip((np.arange(after) + 0.5) * (before / after) - 0.5, 0, before - 1)
    first = np.floor(position).astype(int)
    weight = (position - first).astype(np.float32)
    return first, np.minimum(first + 1, before - 1), weight[:, None, None]


def _interpolate(image: np.ndarray, first, second, weight: np.ndarray) -> np.ndarray:
    return image[first] * (1 - weight) + image[second] * weight


def _padded(views: Sequence[np.ndarray]) -> np.ndarray:
    """Views of different sizes in one array, zero where a view has no pixels."""
    height, width = (
        -(-max(view.shape[axis] for view in views) // _STRIDE) * _STRIDE for axis in (0, 1)
    )
    whole = np.zeros((len(views), height, width, 3), np.float32)
    for padded, view in zip(whole, views, strict=True):
        padded[: view.shape[0], : view.shape[1]] = view
    return whole
