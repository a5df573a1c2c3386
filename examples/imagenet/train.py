# SPDX-License-Identifier: MIT
"""The command that trains a classifier."""

from collections.abc import Iterator

from examples.imagenet.checkpoint import Checkpoints, Description
from examples.imagenet.data import Batch, training_batches
from examples.imagenet.devices import place
from examples.imagenet.evaluate import accuracy, check_classes, make_counter, show
from examples.imagenet.loop import Loop
from examples.imagenet.readers import SPLITS, open_reader
from examples.imagenet.settings import Preset, Settings
from examples.imagenet.state import learning_rate, make_optimizer, make_train_step, split
from examples.imagenet.weights import initial_weights, widened


def train(settings: Preset) -> None:
    """Trains a network, or goes on where an interrupted run stopped.

    Run the same command again to resume: the result is the same as without the interruption.
    """
    Training.start(settings)


class Training(Loop):
    """One run."""

    settings: Settings

    def __init__(self, settings: Settings, checkpoints: Checkpoints):
        self.settings, self.checkpoints = settings, checkpoints
        self.placement = place(settings.batch_size, settings.accumulate)
        self.readers = {split: open_reader(settings.data, split) for split in SPLITS}
        images = len(self.readers["train"])
        self.steps = settings.total_steps(images / settings.batch_size)
        names = list(self.readers["train"].class_names)
        self.description = Description(settings.model, names, settings.dtype, settings.decisive())
        check_classes(self.readers["validation"].class_names, self.description)
        self.schedule = learning_rate(settings, images)
        self._build()

    def _build(self) -> None:
        settings = self.settings
        classes = len(self.description.class_names)
        model = settings.model.build(classes, settings.seed, settings.dtype)
        weights = split(model)[1]
        if settings.initial is not None:
            weights = initial_weights(settings.initial, settings.model, weights, self.placement)
        weights = widened(weights, settings.dtype)
        optimizer = make_optimizer(settings, self.schedule)
        train_step = make_train_step(model, optimizer, settings)
        self.prepare(weights, optimizer, train_step, settings.average > 0)
        self.count = make_counter(model, self.placement)

    def batches(self, first: int) -> Iterator[Batch]:
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

    def test(self) -> dict[str, float]:
        return accuracy(
            self.count,
            self.state.tested,
            self.readers["validation"],
            self.placement,
            batch_size=self.settings.batch_size,
            image_size=self.settings.model.image_size,
            workers=self.settings.workers,
        )

    def show(self, result: dict[str, float]) -> str:
        return show(result)
