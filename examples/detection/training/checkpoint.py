# SPDX-License-Identifier: MIT
"""Checkpoints of detectors: the classifiers' checkpoints with another description and measure."""

from examples.detection.model.architecture import Architecture
from examples.imagenet import checkpoint


class Checkpoints(checkpoint.Checkpoints):
    """The checkpoints in a folder; the best has the largest average precision."""

    model = Architecture
    metric = "AP"
    other = (
        "a classifier: commands of `python -m examples.imagenet` use it, and `train --backbone` "
        "here starts with it"
    )
