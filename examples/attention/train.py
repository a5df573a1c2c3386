# SPDX-License-Identifier: MIT
"""Trains the queries to find the digit, and measures how well each layer does."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from examples.attention.data import Images
from examples.attention.model import Finder


def train(
    model: Finder,
    images: Images,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    on_step: Callable[[jax.Array], None] = lambda loss: None,
) -> None:
    """Trains `model` in place, calling `on_step(loss)` after every step."""
    rate = optax.cosine_onecycle_schedule(max(steps, 10), learning_rate)
    optimizer = nnx.Optimizer(model, optax.adam(rate), wrt=nnx.Param)
    random = np.random.default_rng(seed)
    for _ in range(steps):
        chosen = random.integers(len(images.boxes), size=batch_size)
        on_step(_step(model, optimizer, images.pixels[chosen], images.boxes[chosen]))


@nnx.jit
def _step(model: Finder, optimizer: nnx.Optimizer, pixels, boxes) -> jax.Array:
    def loss(model: Finder) -> jax.Array:
        errors = [jnp.mean(jnp.abs(look.box - boxes[:, None])) for look in model(pixels)]
        return jnp.mean(jnp.stack(errors))

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value


def overlaps(model: Finder, images: Images, batch_size: int = 100) -> list[float]:
    """Mean intersection over union of the queries' boxes with the digit's, after each layer."""
    found: list[list[np.ndarray]] = []
    for first in range(0, len(images.boxes), batch_size):
        part = slice(first, first + batch_size)
        boxes = images.boxes[part][:, None]
        looks = _looks(model, images.pixels[part])
        found.append([_intersection_over_union(np.asarray(look.box), boxes) for look in looks])
    return [float(np.mean(np.concatenate(of_layer))) for of_layer in zip(*found, strict=True)]


@nnx.jit
def _looks(model: Finder, pixels):
    return model(pixels)


def _intersection_over_union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low = np.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = np.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    both = np.prod(np.maximum(high - low, 0), axis=-1)
    return both / (np.prod(a[..., 2:], axis=-1) + np.prod(b[..., 2:], axis=-1) - both)
