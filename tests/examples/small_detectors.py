# SPDX-License-Identifier: MIT
"""Small detectors with random weights, named as in mmdetection."""

import numpy as np
from flax import nnx

from examples.detection.settings import Architecture

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
    detector = nnx.eval_shape(lambda: architecture.build(CLASSES))
    random = np.random.default_rng(0)
    arrays = {}
    for path, value in nnx.to_flat_state(nnx.state(detector, (nnx.Param, nnx.BatchStat))):
        *modules, leaf = map(str, path)
        name = ".".join([*modules, LEAVES.get(leaf, leaf)])
        name = name.replace("conv2.offset_conv", offset_branch).replace(
            "conv1.offset_conv", "conv1.conv_offset"
        )
        shape = value.shape
        if len(shape) > 1:
            shape = (shape[-1], shape[-2], *shape[:-2])
        array = 0.1 * random.normal(size=shape)
        arrays[name] = (np.abs(array) + 0.5 if leaf == "var" else array).astype(np.float32)
    return arrays
