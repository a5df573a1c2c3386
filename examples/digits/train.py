# SPDX-License-Identifier: MIT
"""Trains a classifier on digits that are warped anew in every step, and tests it."""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from examples.digits.data import Scans, Warp, warp_images
from examples.digits.models import Classifier

_TEST_SEED = 20190616  # Fixed, so that every network sees the same test images.


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a network may spend: every network of a comparison gets the same."""

    steps: int  # At least two: the first compiles, and is not timed.
    batch_size: int
    learning_rate: float
    warp: Warp = dataclasses.field(default_factory=Warp)


def train(
    model: Classifier,
    scans: Scans,
    budget: Budget,
    seed: int,
    on_step: Callable[[jax.Array], None] = lambda loss: None,
) -> float:
    """Trains `model` in place, calling `on_step(loss)` after every step.

    The batches depend on `seed` alone, so that networks of one seed see the same images.

    Returns:
      Seconds per step, warping included, compilation excluded.
    """
    optimizer = nnx.Optimizer(model, _adam(budget.learning_rate, budget.steps), wrt=nnx.Param)
    images, labels = jnp.asarray(scans.images), jnp.asarray(scans.labels)
    keys = jax.random.split(jax.random.key(seed), budget.steps)
    for step, key in enumerate(keys):
        batch = _random_batch(images, labels, key, budget.batch_size, budget.warp)
        loss = _train_step(model, optimizer, *batch)
        on_step(loss)
        if step == 0:
            jax.block_until_ready(loss)
            start = time.perf_counter()
    jax.block_until_ready(loss)
    return (time.perf_counter() - start) / (budget.steps - 1)


@functools.cache  # The compiled step knows its optimiser by identity: one for all seeds.
def _adam(learning_rate: float, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(learning_rate, steps))


@functools.partial(jax.jit, static_argnames=("batch_size", "warp"))
def _random_batch(
    images: jax.Array, labels: jax.Array, key: jax.Array, batch_size: int, warp: Warp
) -> tuple[jax.Array, jax.Array]:
    choice_key, warp_key = jax.random.split(key)
    choice = jax.random.randint(choice_key, (batch_size,), 0, images.shape[0])
    return warp_images(images[choice], warp_key, warp), labels[choice]


@nnx.jit
def _train_step(
    model: Classifier, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array
) -> jax.Array:
    def loss_of(model: Classifier) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(model(images), labels)
        return jnp.mean(losses)

    loss, gradient = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradient)
    return loss


def warped_test_set(scans: Scans, warp: Warp, warps_per_scan: int) -> Scans:
    """Every scan under `warps_per_scan` warps, `[warps_per_scan * N, CANVAS, CANVAS, 1]`."""
    labels = np.tile(scans.labels, warps_per_scan)
    images = jnp.tile(scans.images, (warps_per_scan, 1, 1))
    warped = jax.jit(warp_images, static_argnames="warp")(images, jax.random.key(_TEST_SEED), warp)
    return Scans(np.asarray(warped), labels)


def accuracy(model: Classifier, test_set: Scans, batch_size: int = 256) -> float:
    """The share of the test images that `model` gets right."""
    starts = range(0, len(test_set.labels), batch_size)
    guesses = [_guess(model, test_set.images[start : start + batch_size]) for start in starts]
    return float(np.mean(np.concatenate(guesses) == test_set.labels))


@nnx.jit
def _guess(model: Classifier, images: jax.Array) -> jax.Array:
    return jnp.argmax(model(images), axis=-1)
