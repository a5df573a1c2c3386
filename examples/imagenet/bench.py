# SPDX-License-Identifier: MIT
"""How many images a second can be read, trained on and tested here."""

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import jax

import jax_dcn
from examples.imagenet.data import Batch, read_ahead, training_batches
from examples.imagenet.devices import place
from examples.imagenet.readers import Reader, open_reader
from examples.imagenet.settings import Preset, Run, Settings
from examples.imagenet.state import (
    initial_state,
    learning_rate,
    make_optimizer,
    make_predictor,
    make_train_step,
    split,
)

STEPS = 20  # That are timed, unless --steps says otherwise.
UNTIMED = 3  # Before them.


def bench(settings: Preset) -> None:
    """Measures what `train` would do with the same options, part by part.

    A run takes as long as the slower of reading and training.
    """
    steps = timed_steps(settings)
    reader = open_reader(settings.data, "train")
    batches = training_batches(
        reader,
        range(1 + read_ahead(settings.workers) + UNTIMED + steps),
        batch_size=settings.batch_size,
        image_size=settings.model.image_size,
        workers=settings.workers,
    )
    with contextlib.closing(batches):
        compiled = _compiled(settings, reader, next(batches))
        # Workers fill their buffers while the network is built.
        for _ in range(read_ahead(settings.workers)):
            next(batches)
        functions = {"reading": lambda: next(batches)} | compiled
        report(functions, settings.batch_size, steps)


def timed_steps(settings: Run) -> int:
    """How many steps are timed: as many of every worker, since workers deliver their batches together."""
    workers = max(1, settings.workers)
    return workers * math.ceil((settings.steps or STEPS) / workers)


def _compiled(settings: Settings, reader: Reader, batch: Batch) -> dict[str, Callable]:
    placement = place(settings.batch_size, settings.accumulate)
    placed = placement.put_batch(batch)
    model = settings.model.build(len(reader.class_names), settings.seed, settings.dtype)
    optimizer = make_optimizer(settings, learning_rate(settings, len(reader)))
    state = initial_state(split(model)[1], optimizer, settings.average > 0)
    state = jax.device_put(state, placement.whole)
    train_step = jax.jit(make_train_step(model, optimizer, settings))
    predict = jax.jit(make_predictor(model))
    return {
        "training": lambda: train_step(state, placed),
        "testing": lambda: predict(state.tested, placed["image"]),
    }


def report(functions: dict[str, Callable[[], Any]], batch_size: int, steps: int) -> None:
    """Prints the machine, and how many images a second go through every function."""
    print(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}, "
        f"jax_dcn {jax_dcn.__version__}; native kernels: "
        f"{jax_dcn.available_implementations()['native']}."
    )
    for name, function in functions.items():
        rate = batch_size / seconds(function, steps)
        print(f"{name:10}{rate:12,.1f} images/s")


def seconds(function: Callable[[], Any], steps: int) -> float:
    """Of one call, the first ones, which compile and fill buffers, left out."""
    for _ in range(UNTIMED - 1):
        jax.block_until_ready(function())
    start = time.perf_counter()
    for _ in range(steps):
        result = function()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / steps
