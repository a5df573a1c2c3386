# SPDX-License-Identifier: MIT
"""Handwritten digits under random rotation, scale, shear, shift and elastic warps."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from scipy.ndimage import zoom
from sklearn.datasets import load_digits

CANVAS = 24  # Height and width of the warped images in pixels.
DIGIT = 16  # Height and width of a digit at scale 1, in pixels of the canvas.
CLASSES = 10
_SPLIT_SEED = 20170317  # Fixed, so that every run trains and tests on the same scans.
_SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


class Scans(NamedTuple):
    """Upright scans `[N, DIGIT, DIGIT]`, ink 1 on paper 0, and the digits they show, `[N]`."""

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Warp:
    """How far a random warp may go, up or down from the upright scan."""

    rotation: float = 60.0  # degrees
    scale: float = 1.6  # factor
    shear: float = 0.3
    shift: float = 3.0  # pixels of the canvas
    elastic: float = 1.0  # pixels of the scan, the standard deviation


def load_scans() -> dict[str, Scans]:
    """The 1797 scans that come with scikit-learn: `train`, `validation` and `test`.

    Every digit is split in the same proportions, and a scan is in one part only.
    """
    digits = load_digits()
    magnified = zoom(
        digits.images, (1, DIGIT / 8, DIGIT / 8), order=3, grid_mode=True, mode="nearest"
    )
    images = np.clip(magnified / 16, 0, 1).astype(np.float32)
    labels = digits.target.astype(np.int32)
    return {
        name: Scans(images[indices], labels[indices])
        for name, indices in _split_by_class(labels).items()
    }


def _split_by_class(labels: np.ndarray) -> dict[str, np.ndarray]:
    random = np.random.default_rng(_SPLIT_SEED)
    parts = {name: [] for name in _SHARES}
    bounds = np.cumsum(list(_SHARES.values()))[:-1]
    for digit in range(CLASSES):
        indices = random.permutation(np.flatnonzero(labels == digit))
        cuts = np.round(bounds * len(indices)).astype(int)
        for name, part in zip(_SHARES, np.split(indices, cuts), strict=True):
            parts[name].append(part)
    return {name: random.permutation(np.concatenate(part)) for name, part in parts.items()}


def warp_images(images: jax.Array, key: jax.Array, warp: Warp) -> jax.Array:
    """Draws every image `[N, DIGIT, DIGIT]` under its own warp: `[N, CANVAS, CANVAS, 1]`."""
    keys = jax.random.split(key, images.shape[0])
    return jax.vmap(lambda image, key: _warp_image(image, key, warp))(images, keys)[..., None]


def _warp_image(image: jax.Array, key: jax.Array, warp: Warp) -> jax.Array:
    keys = jax.random.split(key)
    centred = jnp.arange(CANVAS, dtype=jnp.float32) - (CANVAS - 1) / 2
    position = jnp.stack(jnp.meshgrid(centred, centred, indexing="ij"))
    source = _affine(keys[0], warp, position) + _elastic_displacement(keys[1], warp.elastic)
    source = source + (image.shape[0] - 1) / 2
    return map_coordinates(image, list(source), order=1, mode="constant")


def _elastic_displacement(key: jax.Array, size: float) -> jax.Array:
    # Few random numbers and smooth interpolation between them: strokes bend, and do not fray.
    coarse = size * jax.random.normal(key, (2, 5, 5), jnp.float32)
    return jax.image.resize(coarse, (2, CANVAS, CANVAS), "cubic")


def _affine(key: jax.Array, warp: Warp, position: jax.Array) -> jax.Array:
    """Where in the scan, from its centre, a position of the canvas from its centre comes from."""
    random = jax.random.uniform(key, (5,), jnp.float32, minval=-1.0, maxval=1.0)
    angle, shear = math.radians(warp.rotation) * random[0], warp.shear * random[1]
    magnification = jnp.exp(math.log(warp.scale) * random[2])
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y, x = position - warp.shift * random[3:, None, None]
    y, x = (cos * y - sin * x) / magnification, (sin * y + cos * x) / magnification
    return jnp.stack([y, x + shear * y])
