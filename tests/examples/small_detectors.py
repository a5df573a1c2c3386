# SPDX-License-Identifier: MIT
"""Small detectors with random weights, named as in mmdetection."""

from collections.abc import Callable

import numpy as np
from flax import nnx

from examples.detection.model.architecture import Architecture

CLASSES = 3
SMALL = Architecture(depth=10, width=8, features=8, hidden=5, offset_groups=2)
FLAGS = [
    "--depth",
    "10",
    "--width",
    "8",
    "--features",
    "8",
    "--hidden",
    "5",
    "--offset-groups",
    "2",
]
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def small_detector(architecture: Architecture, offset_branch: str = "conv2.conv_offset") -> dict:
    """Random arrays of a detector under the names, and with the axes, of mmdetection 3."""
    random = np.random.default_rng(0)

    def make(name: str, shape: tuple[int, ...]) -> np.ndarray:
        array = 0.1 * random.normal(size=shape)
        return np.abs(array) + 0.5 if name.endswith("running_var") else array

    arrays = arrays_of_detector(architecture, CLASSES, make)
    return {name.replace("conv2.conv_offset", offset_branch): x for name, x in arrays.items()}


def arrays_of_detector(
    architecture: Architecture, classes: int, make: Callable[[str, tuple[int, ...]], np.ndarray]
) -> dict[str, np.ndarray]:
    """What `make` makes of every name and shape that a detector has in mmdetection 3."""
    detector = nnx.eval_shape(lambda: architecture.build(classes))
    arrays = {}
    for path, value in nnx.to_flat_state(nnx.state(detector, (nnx.Param, nnx.BatchStat))):
        *modules, leaf = map(str, path)
        name = ".".join([*modules, LEAVES.get(leaf, leaf)]).replace("offset_conv", "conv_offset")
        shape = value.shape
        if len(shape) > 1:
            shape = (shape[-1], shape[-2], *shape[:-2])
        arrays[name] = make(name, shape).astype(np.float32)
    return arrays
