# SPDX-License-Identifier: MIT
"""The command that trains a detector."""

from collections.abc import Generator

from examples.detection.commands.evaluate import make_finder, open_split, show
from examples.detection.commands.weights import initial_weights
from examples.detection.data.batches import note_left_out, training_batches, training_plan
from examples.detection.data.coco import SPLITS
from examples.detection.training.checkpoint import Checkpoints
from examples.detection.training.recipes import KEEPS_RANDOM_WEIGHTS, Preset, Settings
from examples.detection.training.step import learning_rate, make_optimizer, make_train_step
from examples.imagenet.checkpoint import Description
from examples.imagenet.data import Batch
from examples.imagenet.devices import place
from examples.imagenet.errors import OptionError
from examples.imagenet.evaluate import check_classes
from examples.imagenet.loop import Loop
from examples.imagenet.settings import check_dtype
from examples.imagenet.state import split
from examples.imagenet.weights import widened


def train(settings: Preset) -> None:
    """Trains a detector, or goes on where an interrupted run stopped.

    Run the same command again to resume: the result is the same as without the interruption.
    """
    if settings.keeps_random_weights:
        raise OptionError(KEEPS_RANDOM_WEIGHTS)
    Training.start(settings)


class Training(Loop):
    """One run."""

    kind_of_checkpoints = Checkpoints
    settings: Settings

    def __init__(self, settings: Settings, checkpoints: Checkpoints):
        check_dtype(settings.dtype)
        self.settings, self.checkpoints = settings, checkpoints
        self.placement = place(settings.batch_size)
        self.readers = {
            split: open_split(
                settings.data, split, settings.architecture, to_train=split == "train"
            )
            for split in SPLITS
        }
        note_left_out(self.readers["train"], settings.max_objects)
        plan, _ = training_plan(self.readers["train"], settings.batch_size, settings.seed)
        self.steps = settings.total_steps(plan.steps)
        class_names = list(self.readers["train"].class_names)
        self.description = Description(
            settings.architecture, class_names, options=settings.decisive()
        )
        check_classes(self.readers["val"].class_names, self.description)
        self.schedule = learning_rate(settings, self.steps)
        self._build()

    def _build(self) -> None:
        settings = self.settings
        detector = settings.architecture.build(len(self.description.class_names), settings.seed)
        weights = initial_weights(settings, split(detector)[1], self.placement)
        weights = widened(weights, settings.dtype)
        optimizer = make_optimizer(settings, self.schedule)
        self.finder = make_finder(
            detector,
            settings.architecture,
            self.placement,
            settings.batch_size,
            settings.workers,
        )
        self.prepare(weights, optimizer, make_train_step(detector, optimizer, settings))

    def batches(self, first: int) -> Generator[Batch, None, None]:
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
        return self.finder.measure(self.state.tested, self.readers["val"]).summary

    def show(self, result: dict[str, float]) -> str:
        return show(result)
