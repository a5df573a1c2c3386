# SPDX-License-Identifier: MIT
"""The command that trains a detector."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from examples.detection.commands.evaluate import check_classes, make_finder, show, test
from examples.detection.commands.weights import initial_weights
from examples.detection.data.batches import training_batches, training_plan
from examples.detection.data.coco import SPLITS, CocoReader
from examples.detection.training.checkpoint import Checkpoints
from examples.detection.training.recipes import Preset, Settings
from examples.detection.training.step import learning_rate, make_optimizer, make_train_step
from examples.imagenet.checkpoint import Description
from examples.imagenet.data import Batch
from examples.imagenet.devices import connect, place, together
from examples.imagenet.errors import UserError
from examples.imagenet.loop import Loop
from examples.imagenet.state import TrainState, initial_state, split


def train(settings: Preset) -> None:
    """Trains a detector, or goes on where an interrupted run stopped.

    Run the same command again to resume: the result is the same as without the interruption.
    """
    connect(settings.processes)
    with Checkpoints(settings.output, write=True) as checkpoints, together():
        Training(settings, checkpoints).run()


class Training(Loop):
    """One run."""

    def __init__(self, settings: Settings, checkpoints: Checkpoints):
        if settings.dtype == "float64" and not jax.config.jax_enable_x64:
            raise UserError("--dtype float64 needs the environment variable JAX_ENABLE_X64=1.")
        self.settings, self.checkpoints = settings, checkpoints
        self.placement = place(settings.batch_size)
        extent = settings.architecture.rule.extent
        self.readers = {split: CocoReader(settings.data, split, extent) for split in SPLITS}
        plan, _ = training_plan(self.readers["train"], settings.batch_size, settings.seed)
        self.steps = settings.steps or max(1, round(settings.epochs * plan.steps))
        class_names = list(self.readers["train"].class_names)
        self.description = Description(settings.architecture, class_names)
        check_classes(self.readers["val"], self.description)
        self.schedule = learning_rate(settings, self.steps)
        self._build()

    def _build(self) -> None:
        settings, whole = self.settings, self.placement.whole
        detector = settings.architecture.build(len(self.description.class_names), settings.seed)
        weights = initial_weights(settings, split(detector)[1], self.placement)
        weights = jax.tree.map(lambda array: array.astype(jnp.dtype(settings.dtype)), weights)
        optimizer = make_optimizer(settings, self.schedule)
        self.state: TrainState = jax.device_put(initial_state(weights, optimizer, False), whole)
        self.find = make_finder(detector, self.placement)
        train_step = make_train_step(detector, optimizer, settings)
        self.train_step = jax.jit(train_step, donate_argnums=0, out_shardings=(whole, whole))

    def batches(self, first: int) -> Iterator[Batch]:
        return training_batches(
            self.readers["train"],
            range(first, self.steps),
            batch_size=self.settings.batch_size,
            view=self.settings.architecture.view,
            max_objects=self.settings.max_objects,
            masks=self.settings.architecture.model == "mask",
            flip=self.settings.flip,
            seed=self.settings.seed,
            workers=self.settings.workers,
            share=self.placement.share,
        )

    def test(self) -> dict[str, float]:
        measured = test(
            self.find,
            self.state.tested,
            self.readers["val"],
            self.placement,
            architecture=self.settings.architecture,
            batch_size=self.settings.batch_size,
            workers=self.settings.workers,
        )
        return measured.summary

    def show(self, result: dict[str, float]) -> str:
        return show(result)
