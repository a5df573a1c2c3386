# SPDX-License-Identifier: MIT
"""The training loop."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from examples.imagenet.checkpoint import Checkpoints, Description
from examples.imagenet.data import Batch, training_batches
from examples.imagenet.devices import connect, place, together
from examples.imagenet.errors import UserError
from examples.imagenet.evaluate import accuracy, check_classes, make_counter, show
from examples.imagenet.logs import Log
from examples.imagenet.readers import SPLITS, open_reader
from examples.imagenet.settings import Preset, Settings
from examples.imagenet.state import (
    TrainState,
    initial_state,
    learning_rate,
    make_optimizer,
    make_train_step,
    split,
)
from examples.imagenet.weights import initial_weights


def train(settings: Preset) -> None:
    """Trains a network, or goes on where an interrupted run stopped.

    Run the same command again to resume: the result is the same as without the interruption.
    """
    connect(settings.processes)
    with Checkpoints(settings.output, write=True) as checkpoints, together():
        Training(settings, checkpoints).run()


class Training:
    """One run."""

    def __init__(self, settings: Settings, checkpoints: Checkpoints):
        self.settings, self.checkpoints = settings, checkpoints
        self.placement = place(settings.batch_size, settings.accumulate)
        self.readers = {split: open_reader(settings.data, split) for split in SPLITS}
        images = len(self.readers["train"])
        self.steps = settings.total_steps(images)
        names = list(self.readers["train"].class_names)
        self.description = Description(settings.model, names, settings.dtype)
        check_classes(self.readers["validation"], self.description)
        self.schedule = learning_rate(settings, images)
        self._build()

    def _build(self) -> None:
        settings, whole = self.settings, self.placement.whole
        classes = len(self.description.class_names)
        model = settings.model.build(classes, settings.seed, settings.dtype)
        weights = split(model)[1]
        if settings.initial is not None:
            weights = initial_weights(settings.initial, weights, self.placement)
        # Batch normalisation makes its statistics in float32 whatever it is told.
        wide = jnp.promote_types(settings.dtype, jnp.float32)
        weights = jax.tree.map(lambda array: array.astype(wide), weights)
        optimizer = make_optimizer(settings, self.schedule)
        state = initial_state(weights, optimizer, settings.average > 0)
        self.state: TrainState = jax.device_put(state, whole)
        train_step = make_train_step(model, optimizer, settings)
        self.train_step = jax.jit(train_step, donate_argnums=0, out_shardings=(whole, whole))
        self.count = make_counter(model, self.placement)

    def run(self) -> None:
        """Trains from the latest checkpoint, if there is one, to the last step."""
        first = self._resume()
        with Log(self.settings.output, first, self.steps, self.settings.batch_size) as log:
            if first:
                log.say(f"Resumes after step {first} of {self.steps}.")
            for step, batch in enumerate(self._batches(first), first + 1):
                self.state, loss = self.train_step(self.state, self.placement.put_batch(batch))
                log.advance()
                self._report(log, step, loss)
                self._keep(log, step)

    def _resume(self) -> int:
        latest = self.checkpoints.latest
        if latest is None:
            return 0
        self.state = self.checkpoints.restore(self.state, self.description)
        return latest

    def _batches(self, first: int) -> Iterator[Batch]:
        return training_batches(
            self.readers["train"],
            range(first, self.steps),
            batch_size=self.settings.batch_size,
            image_size=self.settings.model.image_size,
            flip=self.settings.flip,
            seed=self.settings.seed,
            workers=self.settings.workers,
            share=self.placement.share,
        )

    def _report(self, log: Log, step: int, loss: jax.Array) -> None:
        # Reading the loss waits for the step: not too often.
        if not self._due(step, self.settings.log_every):
            return
        values = dict(loss=float(loss), learning_rate=float(self.schedule(step - 1)))
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"The loss of step {step} is {values['loss']}: lower --learning-rate, or lengthen "
                "--warmup-epochs."
            )
        log.write(step, **values, images_per_second=log.images_per_second(step))
        log.show(step, **values)

    def _keep(self, log: Log, step: int) -> None:
        result = self._test(log, step) if self._due(step, self.settings.evaluate_every) else None
        if result or self._due(step, self.settings.checkpoint_every):
            self.checkpoints.save(self.state, self.description, result)

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.steps

    def _test(self, log: Log, step: int) -> dict[str, float]:
        result = accuracy(
            self.count,
            self.state.tested,
            self.readers["validation"],
            self.placement,
            batch_size=self.settings.batch_size,
            image_size=self.settings.model.image_size,
            workers=self.settings.workers,
        )
        log.write(step, **result)
        log.say(f"step {step}: {show(result)}")
        return result
