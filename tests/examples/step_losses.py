# SPDX-License-Identifier: MIT
"""The losses of every step of a detector's training, as a function and as a program that prints them."""

import json
import sys
from collections.abc import Sequence

import tyro

from examples.detection.commands.train import Training
from examples.detection.training.recipes import Preset
from examples.imagenet.devices import connect


def step_losses(arguments: Sequence[str]) -> list[dict[str, float]]:
    """What `train` with these arguments computes in every step; nothing is written or tested."""
    settings = tyro.cli(Preset, args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    connect(settings.processes)
    training = Training(settings, None)
    every = []
    for batch in training.batches(0):
        placed = training.placement.put_batch(batch)
        training.state, losses = training.train_step(training.state, placed)
        every.append({name: float(loss) for name, loss in losses.items()})
    return every


if __name__ == "__main__":
    print(json.dumps(step_losses(sys.argv[1:])))
