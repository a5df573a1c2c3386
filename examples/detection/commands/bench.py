# SPDX-License-Identifier: MIT
"""How many images a second can be read, trained on and searched here."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from examples.detection.commands.train import Training
from examples.detection.training.recipes import KEEPS_RANDOM_WEIGHTS, Preset
from examples.imagenet.bench import UNTIMED, report, timed_steps
from examples.imagenet.data import Batch, read_ahead


def bench(settings: Preset) -> None:
    """Measures what `train` would do with the same options, part by part.

    A run takes as long as the slower of reading and training. Nothing is written.
    """
    if settings.keeps_random_weights:
        print(f"Note: {KEEPS_RANDOM_WEIGHTS}", file=sys.stderr)
    steps = timed_steps(settings)
    training = Training(settings, None)
    training.steps = 1 + read_ahead(settings.workers) + UNTIMED + steps
    with contextlib.closing(training.batches(0)) as batches:
        report(_parts(training, batches), settings.batch_size, steps)


def _parts(training: Training, batches: Iterator[Batch]) -> dict[str, Callable]:
    placed = training.placement.put_batch(next(batches))
    scale = np.ones_like(placed["size"])
    searched = {"image": placed["image"], "size": placed["size"], "scale": scale}
    searched["index"] = np.zeros(len(scale), np.int32)
    # A step of training donates its weights.
    weights = jax.tree.map(jnp.copy, training.state.weights)
    for _ in range(read_ahead(training.settings.workers)):
        next(batches)

    def train() -> jax.Array:
        training.state, losses = training.train_step(training.state, placed)
        return losses["loss"]

    return {
        "reading": lambda: next(batches),
        "training": train,
        "detecting": lambda: training.finder.find(weights, searched, 0.05),
    }
