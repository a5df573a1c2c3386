# SPDX-License-Identifier: MIT
"""The training loop: from the latest checkpoint to the last step, with a log and tests on the way."""

import abc
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from examples.imagenet.checkpoint import Checkpoints, Description
from examples.imagenet.data import Batch
from examples.imagenet.devices import Placement, connect, together
from examples.imagenet.errors import UserError
from examples.imagenet.logs import Log
from examples.imagenet.settings import Run
from examples.imagenet.state import TrainState, Weights, initial_state


class Loop(abc.ABC):
    """One run; a subclass sets what is declared here, and says what batches and tests are."""

    kind_of_checkpoints: type[Checkpoints] = Checkpoints
    settings: Run
    checkpoints: Checkpoints
    description: Description
    placement: Placement
    schedule: optax.Schedule
    steps: int
    state: TrainState
    train_step: Callable[[TrainState, dict], tuple[TrainState, dict[str, jax.Array]]]
    """From a state and a batch to the next state and the losses, "loss" among them."""

    @abc.abstractmethod
    def __init__(self, settings: Any, checkpoints: Checkpoints):
        """Prepares the run of `settings`."""

    @abc.abstractmethod
    def batches(self, first: int) -> Iterator[Batch]:
        """This process's share of the batches after step `first`."""

    @abc.abstractmethod
    def test(self) -> dict[str, float]:
        """How good the network is, by the names of measures."""

    @abc.abstractmethod
    def show(self, result: dict[str, float]) -> str:
        """The result of a test in words."""

    @classmethod
    def start(cls, settings: Run) -> None:
        """Trains as the settings say, together with the other processes, if there are others."""
        connect(settings.processes)
        with cls.kind_of_checkpoints(settings.output, write=True) as checkpoints, together():
            cls(settings, checkpoints).run()

    def prepare(
        self,
        weights: Weights,
        optimizer: optax.GradientTransformation,
        train_step: Callable,
        average: bool = False,
    ) -> None:
        """Sets the state before the first step, and the step."""
        whole = self.placement.whole
        self.state = jax.device_put(initial_state(weights, optimizer, average), whole)
        self.train_step = jax.jit(train_step, donate_argnums=0, out_shardings=(whole, whole))

    def run(self) -> None:
        """Trains from the latest checkpoint, if there is one, to the last step."""
        first = self._resume()
        if first > self.steps:
            raise UserError(
                f"The run has taken {first} steps, and {self.steps} are asked for: raise --epochs or "
                "--steps, or choose another --output."
            )
        with Log(self.settings.output, first, self.steps, self.settings.batch_size) as log:
            if first:
                log.say(f"Resumes after step {first} of {self.steps}.")
            for step, batch in enumerate(self.batches(first), first + 1):
                self.state, losses = self.train_step(self.state, self.placement.put_batch(batch))
                log.advance()
                self._check(step, losses["loss"])
                self._report(log, step, losses)
                self._keep(log, step)

    def _resume(self) -> int:
        latest = self.checkpoints.latest
        if latest is None:
            return 0
        self.state = self.checkpoints.restore(self.state, self.description)
        return latest

    def _check(self, step: int, loss: jax.Array) -> None:
        """Refuses to log, to test or to keep a loss or weights that are not finite."""
        settings = self.settings
        # Reading a loss waits for the step: not too often.
        if not self._due(
            step, settings.log_every, settings.evaluate_every, settings.checkpoint_every
        ):
            return
        remedy = "lower --learning-rate, or lengthen the warm-up."
        if not math.isfinite(loss):
            raise UserError(f"The loss of step {step} is {float(loss)}: {remedy}")
        if not _is_finite(self.state):
            raise UserError(f"Weights after step {step} are not finite: {remedy}")

    def _report(self, log: Log, step: int, losses: dict[str, jax.Array]) -> None:
        if not self._due(step, self.settings.log_every):
            return
        values = {name: float(loss) for name, loss in losses.items()}
        values["learning_rate"] = float(self.schedule(step - 1))
        log.write(step, **values, images_per_second=log.images_per_second(step))
        log.show(step, **values)
        log.start_clock(step)

    def _keep(self, log: Log, step: int) -> None:
        result = self._test(log, step) if self._due(step, self.settings.evaluate_every) else None
        if result or self._due(step, self.settings.checkpoint_every):
            self.checkpoints.save(self.state, self.description, result)

    def _due(self, step: int, *intervals: int) -> bool:
        return step == self.steps or any(step % every == 0 for every in intervals)

    def _test(self, log: Log, step: int) -> dict[str, float]:
        try:
            result = self.test()
        except Exception:
            # Processes save together, and others are in the test still.
            if jax.process_count() == 1:
                self.checkpoints.save(self.state, self.description)
                log.say(f"Keeps step {step} without its test, which `eval` can make.")
            raise
        log.write(step, **result)
        log.say(f"step {step}: {self.show(result)}")
        log.start_clock(step)  # Speed is that of training, without the test.
        return result


@jax.jit
def _is_finite(state: Any) -> jax.Array:
    """Whether every element of the arrays in `state` is finite."""
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()
