# SPDX-License-Identifier: MIT
"""What the deformable layers of a network sample, in pixels of the image."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx

from examples.imagenet.state import Weights, merge, split
from jax_dcn.nnx import DeformConv


@dataclasses.dataclass(frozen=True)
class Samples:
    """What one layer samples for every output position; `[..., 2]` is `(y, x)`."""

    name: str
    position: np.ndarray
    """`[H, W, K, 2]`, in pixels of the image."""
    regular: np.ndarray
    """Where an ordinary convolution would sample, likewise."""
    mask: np.ndarray
    """`[H, W, K]`."""
    scale: np.ndarray
    """`[2]`: pixels of the image between neighbouring output positions."""

    @property
    def offset_size(self) -> np.ndarray:
        """Mean length of the offsets of every output position, `[H, W]`."""
        return np.linalg.norm(self.position - self.regular, axis=-1).mean(-1)

    def undeformed(self) -> "Samples":
        """An ordinary convolution instead."""
        return dataclasses.replace(self, position=self.regular, mask=np.ones_like(self.mask))


def samples_of(
    model: nnx.Module, weights: Weights, images: jax.Array, method: str = "__call__"
) -> list[Samples]:
    """What every deformable layer samples of one image, first layer first.

    Args:
      model: The network.
      weights: Its weights.
      images: The image as the network expects it, `[1, H, W, 3]`.
      method: What of the network to call.
    """
    model.eval()
    graph, _ = split(model)

    @jax.jit
    def capture(weights: Weights, images: jax.Array):
        call = getattr(merge(graph, weights), method)
        return nnx.capture(call, nnx.Intermediate)(images)[1]

    sown = capture(weights, images)
    modules = nnx.iter_modules(model)
    layers = {path: layer for path, layer in modules if isinstance(layer, DeformConv)}
    return [_samples(path, layers[path], sown, images.shape[1:3]) for path in sorted(layers)]


def _samples(path: tuple, layer: DeformConv, sown: Any, image_size: tuple[int, int]) -> Samples:
    for key in path:
        sown = sown[key]
    # Of the only image and the first group.
    position, offset = (
        np.asarray(sown[name][0])[0, :, :, 0] for name in ("sampling_positions", "offset")
    )
    mask = sown["mask"][0]
    # Every layer of a ResNet halves the image or keeps it, rounding up.
    scale = 2.0 ** np.ceil(np.log2(np.divide(image_size, position.shape[:2])))
    pixels = scale / np.broadcast_to(layer.strides, 2)
    return Samples(
        name=".".join(map(str, path)),
        position=position * pixels,
        regular=(position - offset) * pixels,
        mask=np.ones(position.shape[:-1]) if mask is None else np.asarray(mask)[0, :, :, 0],
        scale=scale,
    )


def trace(layers: list[Samples], start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What one output position of the last of consecutive `layers` gets from the image.

    Args:
      layers: The layers, first layer first.
      start: The pixel of the image `(y, x)` that the output position is at.

    Returns:
      Positions `[K ** len(layers), 2]` in pixels of the image, and the product of their masks.
    """
    position, weight = np.asarray(start, float)[None], np.ones(1)
    for layer in reversed(layers):
        # Offsets are known at whole output positions: we take those of the nearest.
        last = np.array(layer.mask.shape[:2]) - 1
        nearest = np.clip(np.round(position / layer.scale), 0, last).astype(int)
        y, x = nearest.T
        moved = layer.position[y, x] + (position - nearest * layer.scale)[:, None]
        weight = (weight[:, None] * layer.mask[y, x]).reshape(-1)
        position = moved.reshape(-1, 2)
    return position, weight
